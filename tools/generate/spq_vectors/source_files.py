"""Source files as literals and parts of tensors (FORMAT.md 7.2), and files of safetensors and GGUF to make them of."""

import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from spq_vectors.build import Record, Stream
from spq_vectors.gguf_blocks import KINDS

LITERALS = "source_literals.bin"


@dataclass(frozen=True)
class Part:
    """A part of a tensor, or `n_bytes` of it from byte `first` on, as it lies in a file."""

    tensor: int
    data: bytes
    part: int = 0
    first: int | None = None

    def piece(self) -> list[int]:
        """Return what a piece says of it."""
        return [self.tensor, self.part, *([] if self.first is None else [self.first, len(self.data)])]


@dataclass
class Sources:
    """The record `sources` in the making."""

    literals: bytearray = field(default_factory=bytearray)
    records: list[Record] = field(default_factory=list)
    made: dict[str, bytes] = field(default_factory=dict)

    def add(self, name: str, runs: Sequence[bytes | Part]) -> None:
        """Put in a file of literals and parts."""
        pieces: list[list[int]] = []
        data = b""
        for run in runs:
            if isinstance(run, bytes):
                self.literals += run
                pieces.append([len(run)])
            elif pieces and len(pieces[-1]) == 1:
                pieces[-1] += run.piece()
            else:
                pieces.append([0, *run.piece()])
            data += run if isinstance(run, bytes) else run.data
        self.keep(name, data, pieces=pieces)
        self.made[name] = data

    def keep(self, name: str, data: bytes, **more: object) -> None:
        """Put in a file that is an asset, or was left out."""
        sha256 = hashlib.sha256(data).hexdigest()
        self.records.append({"name": name, "file_bytes": len(data), "sha256": sha256, **more})

    def record(self) -> Record:
        """Return the record as JSON has it."""
        return ({"literals": LITERALS} if self.literals else {}) | {"files": self.records}

    def assets(self) -> list[tuple[str, Stream]]:
        """Return the asset of the literals, where there are some."""
        return [(LITERALS, Stream("asset", "u8", bytes(self.literals)))] if self.literals else []


def safetensors(
    tensors: Mapping[str, tuple[str, Sequence[int], bytes | Part]], metadata: Mapping[str, str] | None = None
) -> list[bytes | Part]:
    """Return a file of safetensors: each tensor's dtype and shape as its header has them, and its bytes."""
    header: Record = {} if metadata is None else {"__metadata__": dict(metadata)}
    end = 0
    for name, (dtype, shape, held) in tensors.items():
        n_bytes = len(held if isinstance(held, bytes) else held.data)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + n_bytes]}
        end += n_bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    runs: list[bytes | Part] = [struct.pack("<Q", len(text)) + text]
    for _, _, held in tensors.values():
        if isinstance(held, bytes) and isinstance(runs[-1], bytes):
            runs[-1] += held
        else:
            runs.append(held)
    return runs


def gguf(tensors: Mapping[str, tuple[str, Sequence[int], Part]]) -> list[bytes | Part]:
    """Return a file of GGUF version 3 with these tensors: name, type of blocks, shape with the columns last."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), 1)
    head += text("general.architecture") + struct.pack("<I", 8) + text("vector")
    offset = 0
    runs: list[bytes | Part] = []
    for name, (kind, shape, part) in tensors.items():
        head += text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *reversed(shape))
        head += struct.pack("<IQ", KINDS[kind].number, offset)
        padding = bytes(-len(part.data) % 32)
        runs += [part, padding] if padding else [part]
        offset += len(part.data) + len(padding)
    return [head + bytes(-len(head) % 32), *runs]


def packed_words(codes: np.ndarray, bits: int) -> np.ndarray:
    """Pack codes [n, k] along the last axis into 32-bit words as GPTQ does: code j of a word at bit j * bits."""
    n, k = codes.shape
    assert k * bits % 32 == 0
    out = np.zeros((n, k * bits // 32), np.uint64)
    for j in range(k):
        word, shift = divmod(j * bits, 32)
        value = codes[:, j].astype(np.uint64) << np.uint64(shift)
        out[:, word] |= value & np.uint64(0xFFFFFFFF)
        if shift + bits > 32:
            out[:, word + 1] |= value >> np.uint64(32)
    return out.astype(np.uint32)
