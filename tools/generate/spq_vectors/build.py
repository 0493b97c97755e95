"""Files: stream and tensor records, layout, index and trailer, with a hook wherever an invalid file breaks a rule."""

import hashlib
import json
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import zstandard

from spq_vectors import encode

MAGIC = b"\x93SPQ\r\n\x1a\n"
FEATURES = {
    "zstd": 0, "rans": 1, "uniform": 2, "grouped": 3, "supergroups": 4, "outliers": 5, "permutation": 6,
    "channel_order": 7, "activation_clamp": 8, "activation_quantization": 9, "tied": 10, "shared_streams": 11,
    "shard": 12,
}  # fmt: skip

Record = dict[str, Any]


@dataclass
class Stream:
    """A stream to write: `sizes` are the chunks' elements, `encoders` take turns over all planes of all chunks."""

    role: str
    dtype: str
    elements: Sequence[int] = ()
    encoders: Sequence[encode.Encoder] = (encode.raw,)
    sizes: Sequence[int] | None = None
    n: int | None = None
    same_as: int | None = None
    extra: Record = field(default_factory=dict)

    def build(self) -> tuple[Record, list[bytes]]:
        """Return the record and the stored planes in file order."""
        n = len(self.elements) if self.n is None else self.n
        record: Record = {"role": self.role, "dtype": self.dtype, "n": n}
        if self.same_as is not None:
            return {**record, "same_as": self.same_as, **self.extra}, []
        sizes = self.sizes if self.sizes is not None else [len(self.elements)] * (len(self.elements) > 0)
        chunks, stored, begin, turn = [], [], 0, 0
        for size in sizes:
            chunk = [size]
            for plane in encode.planes(self.dtype, self.elements[begin : begin + size]):
                codec, data = self.encoders[turn % len(self.encoders)](plane) if plane else (0, b"")
                turn += 1
                chunk += [len(data), codec, zlib.crc32(data)]
                stored.append(data)
            chunks.append(chunk)
            begin += size
        return {**record, "chunks": chunks, **self.extra}, stored


@dataclass
class Tensor:
    """A tensor to write; `extra` goes into its record as it is."""

    name: str
    shape: Sequence[int]
    dtype: str
    streams: Sequence[Stream] = ()
    scheme: str = "dense"
    parameters: Record = field(default_factory=dict)
    extra: Record = field(default_factory=dict)

    def build(self) -> tuple[Record, list[bytes]]:
        """Return the record and the stored planes in file order."""
        built = [stream.build() for stream in self.streams]
        record: Record = {
            "name": self.name,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "scheme": self.scheme,
        }
        record |= {
            "method": "vector",
            "parameters": self.parameters,
            "streams": [record for record, _ in built],
        }
        return {**record, **self.extra}, [plane for _, stored in built for plane in stored]


@dataclass
class File:
    """A file to write. The defaults are right; a test of the reader sets what is to be wrong."""

    segments: Sequence[tuple[str, Sequence[Tensor]]] = ()
    assets: Sequence[tuple[str, Stream]] = ()
    alignment: int = 64
    version: tuple[int, int] = (1, 0)
    header_version: tuple[int, int] | None = None
    header_zeros: bytes = bytes(52)
    required: int | None = None  # None: what the file uses
    optional: int = 0
    extra: Record = field(default_factory=dict)
    edit: Callable[[Record], object] = lambda _: None  # changes the index before it becomes text
    text: Callable[[str], bytes] = str.encode
    compress: Callable[[bytes], bytes] = lambda text: text
    padding: int = 0  # every padding byte
    trailer: dict[int, bytes] = field(
        default_factory=dict
    )  # offset: bytes put there before the digest is taken
    payload: Callable[[bytearray], object] = lambda _: None  # changes the bytes between header and index

    def build(self) -> bytes:
        """Return the file."""
        out = bytearray(
            MAGIC + struct.pack("<HH", *(self.header_version or self.version)) + self.header_zeros
        )

        def put(planes: Sequence[bytes], alignment: int) -> None:
            for plane in planes:
                out.extend([self.padding] * (-len(out) % alignment))
                alignment = 64
                out.extend(plane)

        records, segments = [], []
        for name, tensors in self.segments:
            built = [tensor.build() for tensor in tensors]
            put([plane for _, stored in built for plane in stored], self.alignment)
            records += [record for record, _ in built]
            segments.append({"name": name, "n_tensors": len(tensors)})
        index: Record = {
            "segment_alignment": self.alignment,
            "segments": segments,
            "tensors": records,
            "assets": [],
        }
        for name, stream in self.assets:
            record, stored = stream.build()
            put(stored, 64)
            index["assets"].append({"name": name, "stream": record})
        out.extend([self.padding] * (-len(out) % 64))
        index |= {"metadata": {}, **self.extra}
        required = self.required if self.required is not None else used_features(index)
        self.edit(index)
        self.payload(out)
        text = self.text(json.dumps(index, ensure_ascii=False, separators=(",", ":")))
        return bytes(out) + self.tail(text, len(out), required)

    def tail(self, text: bytes, index_offset: int, required: int) -> bytes:
        """Return stored index and trailer."""
        stored = self.compress(text)
        trailer = bytearray(96)
        file_bytes = index_offset + len(stored) + 96
        struct.pack_into(
            "<6Q", trailer, 32, index_offset, len(stored), len(text), file_bytes, required, self.optional
        )
        struct.pack_into("<HHI8s", trailer, 80, *self.version, 0, MAGIC)
        for offset, value in self.trailer.items():
            trailer[offset : offset + len(value)] = value
        if 0 not in self.trailer:
            trailer[:32] = hashlib.sha256(trailer[32:] + stored).digest()
        return stored + bytes(trailer)


def used_features(index: Record) -> int:
    """Return the required bits of what an index uses."""
    names = {"shard"} & set(index)
    streams = [asset["stream"] for asset in index["assets"]]
    for tensor in index["tensors"]:
        names |= {tensor["scheme"], *tensor, *tensor["parameters"]} | {
            stream["role"] for stream in tensor["streams"]
        }
        names |= {"supergroups"} if "supergroup" in tensor["parameters"] else set()
        streams += tensor["streams"]
    for stream in streams:
        names |= {"shared_streams"} if "same_as" in stream else set()
        for chunk in stream.get("chunks", ()):
            names |= {("raw", "zstd", "rans")[codec] for codec in chunk[2::3]}
    return sum(1 << bit for name, bit in FEATURES.items() if name in names)


def zstd_index(text: bytes) -> bytes:
    """Compress the index."""
    return zstandard.ZstdCompressor(level=19).compress(text)
