"""Files: stream and tensor records, layout, index and trailer, with a hook wherever an invalid file breaks a rule."""

import hashlib
import json
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import zstandard

from spq_vectors import digest, encode

MAGIC = b"\x93SPQ\r\n\x1a\n"
FEATURES = {
    "zstd": 0, "rans": 1, "uniform": 2, "grouped": 3, "supergroups": 4, "outliers": 5, "permutation": 6,
    "channel_order": 7, "activation_clamp": 8, "activation_quantization": 9, "tied": 10, "shared_streams": 11,
    "shard": 12, "small_floats": 14, "complex": 15, "levels": 16, "supergroup_minimums": 17, "group_rows": 18,
    "stacked_transposed": 19, "view": 20, "dense_order": 21, "named_schemes": 22, "chunk_alignment": 23,
    "trellis": 24,
}  # fmt: skip
OPTIONAL = {"assets": 0, "partial_plan": 1, "content": 2, "origin": 3, "sources": 4}
NEW_DTYPES = dict.fromkeys(set(encode.BITS) - set(encode.DTYPES_1_0), "small_floats") | {"c64": "complex"}

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
    chunk_alignment: int | None = None
    content: bool = False  # with the digests of all tensors, and of the model's
    version: tuple[int, int] | None = (1, 0)  # None: the lowest that has what the file uses
    header_version: tuple[int, int] | None = None
    header_zeros: bytes = bytes(52)
    required: int | None = None  # None: what the file uses
    optional: int | None = 0  # None: what the file uses
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
        """Return the bytes of the file."""
        out = bytearray(64)

        def put(planes: Sequence[bytes], alignment: int) -> None:
            for plane in planes:
                out.extend([self.padding] * (-len(out) % alignment))
                alignment = self.chunk_alignment or 64
                out.extend(plane)

        records, segments = [], []
        for name, members in self.segments:
            built = [tensor.build() for tensor in members]
            put([plane for _, stored in built for plane in stored], self.alignment)
            records += [record for record, _ in built]
            segments.append({"name": name, "n_tensors": len(members)})
        index: Record = {
            "segment_alignment": self.alignment,
            "segments": segments,
            "tensors": records,
            "assets": [],
        }
        if self.chunk_alignment is not None:
            index["chunk_alignment"] = self.chunk_alignment
        for name, stream in self.assets:
            record, stored = stream.build()
            put(stored, self.chunk_alignment or 64)
            index["assets"].append({"name": name, "stream": record})
        out.extend([self.padding] * (-len(out) % 64))
        index |= {"metadata": {}, **self.extra}
        if self.content:
            tensors = [tensor for _, members in self.segments for tensor in members]
            elements = [[stream.elements for stream in tensor.streams] for tensor in tensors]
            index["content"] = digest.add_content(records, elements)
        required = self.required if self.required is not None else used_features(index)
        optional = self.optional if self.optional is not None else used_optional(index)
        version = self.version or (1, int(required >= 1 << 14 or optional >= 1 << 2))
        out[:64] = MAGIC + struct.pack("<HH", *(self.header_version or version)) + self.header_zeros
        self.edit(index)
        self.payload(out)
        text = self.text(json.dumps(index, ensure_ascii=False, separators=(",", ":")))
        return bytes(out) + self.tail(text, len(out), required, optional, version)

    def tail(
        self,
        text: bytes,
        index_offset: int,
        required: int,
        optional: int = 0,
        version: tuple[int, int] = (1, 0),
    ) -> bytes:
        """Return stored index and trailer."""
        stored = self.compress(text)
        trailer = bytearray(96)
        file_bytes = index_offset + len(stored) + 96
        struct.pack_into(
            "<6Q", trailer, 32, index_offset, len(stored), len(text), file_bytes, required, optional
        )
        struct.pack_into("<HHI8s", trailer, 80, *version, 0, MAGIC)
        for offset, value in self.trailer.items():
            trailer[offset : offset + len(value)] = value
        if 0 not in self.trailer:
            trailer[:32] = hashlib.sha256(trailer[32:] + stored).digest()
        return stored + bytes(trailer)


def used_features(index: Record) -> int:
    """Return the required bits of what an index uses."""
    names = {"shard", "chunk_alignment"} & set(index)
    streams = [asset["stream"] for asset in index["assets"]]
    for tensor in index["tensors"]:
        streams += tensor["streams"]
        names |= {NEW_DTYPES.get(tensor["dtype"], ""), *tensor}
        if "/" in tensor["scheme"]:
            names.add("named_schemes")
            continue
        roles = {stream["role"] for stream in tensor["streams"]}
        names |= {tensor["scheme"], *tensor["parameters"]} | roles
        names |= {"supergroups"} if "supergroup" in tensor["parameters"] else set()
        names |= {"levels"} if any(role.endswith("_levels") for role in roles) else set()
        names |= {"supergroup_minimums"} if any(role.endswith("_minimums") for role in roles) else set()
        is_ordered = "orientation" in tensor["parameters"] or "channel_order" in roles
        names |= {"dense_order"} if tensor["scheme"] == "dense" and is_ordered else set()
        n_dimensions = len(tensor.get("view", tensor["shape"]))
        names |= {"stacked_transposed"} if tensor.get("transposed") and n_dimensions > 2 else set()
    for stream in streams:
        names |= {"shared_streams"} if "same_as" in stream else set()
        names.add(NEW_DTYPES.get(stream["dtype"], ""))
        is_small = stream["dtype"] in ("f8_e4m3", "f8_e5m2")
        names |= {"small_floats"} if is_small and stream["role"] != "values" else set()
        for chunk in stream.get("chunks", ()):
            names |= {("raw", "zstd", "rans")[codec] for codec in chunk[2::3]}
    return sum(1 << bit for name, bit in FEATURES.items() if name in names)


def used_optional(index: Record) -> int:
    """Return the optional bits of what an index uses."""
    names = {"assets"} if index["assets"] else set()
    for record in (index, *index["tensors"]):
        names |= {"partial_plan", "content", "origin", "sources"} & set(record)
    return sum(1 << bit for name, bit in OPTIONAL.items() if name in names)


def zstd_index(text: bytes) -> bytes:
    """Compress the text of the index."""
    return zstandard.ZstdCompressor(level=19).compress(text)
