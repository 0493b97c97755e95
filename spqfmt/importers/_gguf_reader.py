"""The header of a GGUF file: metadata and the table of tensors, read without touching the weights.

Layout: ggml's docs/gguf.md, versions 2 and 3, little-endian. The `gguf` package's own reader takes seconds on a
vocabulary of usual size, because it makes an array of every field; this one walks the bytes once.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from spqfmt.errors import ImporterError
from spqfmt.importers._source_file import SourceFile

MAGIC = b"GGUF"
_FLOAT32, _STRING, _ARRAY = 6, 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_MAX_DIMENSIONS = 4
_STEP_BYTES = 1 << 20
# ggml type -> (elements a block, bytes a block). Numbers are ggml's own and never change.
BLOCKS = {
    0: (1, 4),  # F32
    1: (1, 2),  # F16
    2: (32, 18),  # Q4_0
    3: (32, 20),  # Q4_1
    6: (32, 22),  # Q5_0
    7: (32, 24),  # Q5_1
    8: (32, 34),  # Q8_0
    10: (256, 84),  # Q2_K
    11: (256, 110),  # Q3_K
    12: (256, 144),  # Q4_K
    13: (256, 176),  # Q5_K
    14: (256, 210),  # Q6_K
    16: (256, 66),  # IQ2_XXS
    17: (256, 74),  # IQ2_XS
    18: (256, 98),  # IQ3_XXS
    19: (256, 50),  # IQ1_S
    20: (32, 18),  # IQ4_NL
    21: (256, 110),  # IQ3_S
    22: (256, 82),  # IQ2_S
    23: (256, 136),  # IQ4_XS
    24: (1, 1),  # I8
    25: (1, 2),  # I16
    26: (1, 4),  # I32
    27: (1, 8),  # I64
    28: (1, 8),  # F64
    29: (256, 56),  # IQ1_M
    30: (1, 2),  # BF16
    34: (256, 54),  # TQ1_0
    35: (256, 66),  # TQ2_0
    39: (32, 17),  # MXFP4
}
FORMS = {
    2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K",
    16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS",
    29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip
"""What ggml calls its blocks of codes."""


@dataclass(frozen=True)
class GgufTensor:
    """One tensor of the table. `shape` is in torch's order, rows first; `offset` counts from the file's start.

    Of a type that is not known, the bytes are all up to the next tensor's.
    """

    file: SourceFile
    name: str
    shape: tuple[int, ...]
    ggml_type: int
    offset: int
    n_bytes: int

    @property
    def form(self) -> str:
        """Return what ggml calls its blocks."""
        return FORMS.get(self.ggml_type, f"type {self.ggml_type}")

    @property
    def block_bytes(self) -> int:
        """Return the length of a block; 1 where the type is not known."""
        return BLOCKS.get(self.ggml_type, (1, 1))[1]


@dataclass(frozen=True)
class GgufHeader:
    """Metadata by key (numbers, strings, lists of them) and the tensors in the file's order."""

    metadata: dict[str, Any]
    tensors: tuple[GgufTensor, ...]


class _UnknownLayoutError(Exception):
    """A sound file of a kind this reader does not know."""


class _Cursor:
    """Reads forward through the file; every length is checked against what is left before it is used."""

    def __init__(self, file: SourceFile) -> None:
        self.n_bytes = file.n_bytes
        self.position = 0
        self.file = file
        self._data = bytearray()

    def _reach(self, n_bytes: int) -> int:
        """Have the next `n_bytes` at hand; where they end."""
        end = self.position + n_bytes
        if end > self.n_bytes:
            raise ValueError("a field of its header runs past the end of the file")
        if end > len(self._data):
            # Twice as much each time: a header has megabytes of vocabulary, and many fields.
            step = max(end - len(self._data), len(self._data), _STEP_BYTES)
            self._data += self.file.read(len(self._data), step)
        return end

    def take(self, layout: str) -> tuple[Any, ...]:
        end = self._reach(struct.calcsize("<" + layout))
        values = struct.unpack_from("<" + layout, self._data, self.position)
        self.position = end
        return values

    def number(self, layout: str) -> Any:
        return self.take(layout)[0]

    def string(self) -> str:
        end = self._reach(self.number("Q"))
        value = self._data[self.position : end].decode("utf-8")
        self.position = end
        return value

    def value(self, kind: int) -> Any:
        if kind == _FLOAT32:
            # The shortest decimal that is this float32: 1e-05 instead of 9.999999747378752e-06.
            return float(str(np.float32(self.number("f"))))
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            raise ValueError(f"metadata of unknown type {kind}")
        item, count = self.take("IQ")
        if item in _SCALARS:
            width = struct.calcsize("<" + _SCALARS[item])
            if count > (self.n_bytes - self.position) // width:
                raise ValueError("an array runs past the end of the file")
            return list(self.take(f"{count}{_SCALARS[item]}"))
        if item != _STRING:
            raise ValueError(f"metadata array of type {item}")
        # A string takes at least the eight bytes of its length.
        if count > (self.n_bytes - self.position) // 8:
            raise ValueError("an array runs past the end of the file")
        return [self.string() for _ in range(count)]


def read_header(file: SourceFile) -> GgufHeader:
    """Parse and check the header of `file`. Raises ImporterError for a file that breaks the layout or is cut short."""
    try:
        return _parse(_Cursor(file))
    except _UnknownLayoutError as error:
        raise ImporterError(
            f"{file.path}: {error}; convert it to a known one with llama.cpp's tools"
        ) from None
    # What decode says of broken text is a ValueError too.
    except (ValueError, struct.error) as error:
        raise ImporterError(f"{file.path}: broken GGUF file ({error}); download it again") from None


def _parse(cursor: _Cursor) -> GgufHeader:
    if cursor.take("4s") != (MAGIC,):
        raise ValueError("it does not begin with GGUF")
    version, n_tensors, n_pairs = cursor.take("IQQ")
    if version and not version & 0xFFFF:
        raise _UnknownLayoutError("a big-endian GGUF file, only little-endian ones are known")
    if version not in (2, 3):
        raise _UnknownLayoutError(f"version {version} of GGUF, only 2 and 3 are known")
    metadata: dict[str, Any] = {}
    for _ in range(n_pairs):
        key = cursor.string()
        if key in metadata:
            raise ValueError(f"two values of {key!r} in its metadata")
        metadata[key] = cursor.value(cursor.number("I"))
    names: set[str] = set()
    table: list[tuple[str, tuple[int, ...], int, int]] = []
    for _ in range(n_tensors):
        name, n_dimensions = cursor.string(), cursor.number("I")
        if not name.isprintable():
            raise ValueError("the name of a tensor is not text")
        if name in names:
            raise ValueError(f"two tensors of the name {name}")
        names.add(name)
        if not 1 <= n_dimensions <= _MAX_DIMENSIONS:
            raise ValueError(f"tensor {name} has {n_dimensions} dimensions")
        # ggml writes the fastest dimension first
        shape = tuple(reversed(cursor.take(f"{n_dimensions}Q")))
        ggml_type, offset = cursor.take("IQ")
        table.append((name, shape, ggml_type, offset))
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise ValueError(f"alignment {alignment}, which is no power of two")
    for name, _, _, offset in table:
        if offset % alignment:
            raise ValueError(f"tensor {name} begins at {offset}, which is no multiple of {alignment}")
    start = -(-cursor.position // alignment) * alignment
    offsets = sorted({offset for _, _, _, offset in table} | {max(0, cursor.n_bytes - start)})
    tensors = []
    for name, shape, ggml_type, offset in table:
        if ggml_type in BLOCKS:
            n_bytes = _n_bytes(name, shape, ggml_type)
        else:
            n_bytes = next((end - offset for end in offsets if end > offset), 1)
        if start + offset + n_bytes > cursor.n_bytes:
            raise ValueError(f"tensor {name} runs past the end of the file")
        tensors.append(
            GgufTensor(
                file=cursor.file,
                name=name,
                shape=shape,
                ggml_type=ggml_type,
                offset=start + offset,
                n_bytes=n_bytes,
            )
        )
    _check_apart(tensors)
    return GgufHeader(metadata, tuple(tensors))


def _check_apart(tensors: list[GgufTensor]) -> None:
    """Raise ValueError where two tensors have bytes in common; in which order they lie is free."""
    filled = sorted((t for t in tensors if 0 not in t.shape), key=lambda tensor: tensor.offset)
    for before, after in pairwise(filled):
        if before.offset + before.n_bytes > after.offset:
            raise ValueError(f"tensors {before.name} and {after.name} overlap")


def _n_bytes(name: str, shape: tuple[int, ...], ggml_type: int) -> int:
    elements, block_bytes = BLOCKS[ggml_type]
    if shape[-1] % elements:
        raise ValueError(f"tensor {name} has rows of {shape[-1]}, not a multiple of its blocks of {elements}")
    return math.prod(shape) // elements * block_bytes
