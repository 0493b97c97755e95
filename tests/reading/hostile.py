"""Files that claim far more than they hold, of about 1 kB and 100 kB; a reader's work must follow what they hold.

A file may claim EXPANSION_RATIO times its size and EXPANSION_SLACK_BYTES, an index INDEX_RATIO times its stored size
and INDEX_SLACK_BYTES (FORMAT.md section 9): these are about as bad as that lets them be.
"""

import base64
import hashlib
import random
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import zstandard

from spqfmt import wire
from spqfmt.codecs.chunks import EncodedChunk, EncodedPlane
from spqfmt.container.encode import encode_chunk
from spqfmt.container.writer import Writer
from spqfmt.records import Stream, TensorRecord, n_planes
from spqfmt.schemes.base import bits_from_float

_TRAILER = struct.Struct("<4Q")
_CODES_A_CHUNK = 1 << 26
"""Of 2 bits: what the largest chunk holds."""
_CARRIERS = {"i2": np.int8, "i8": np.int8, "bf16": np.uint16, "f32": np.float32}
Chunks = Sequence[EncodedChunk]
Tensors = Sequence[tuple[TensorRecord, Sequence[Chunks]]]


def _constant(dtype: str, n: int, codec: str = "rans") -> EncodedChunk:
    return encode_chunk(np.ones(n, _CARRIERS[dtype]), dtype, codec)


def _nothing(dtype: str) -> EncodedChunk:
    return EncodedChunk(0, (EncodedPlane(b"", wire.CODEC_RAW, 0, 0.0),) * n_planes(dtype))


def _tensor(
    name: str,
    shape: tuple[int, ...],
    streams: Mapping[str, tuple[str, Chunks]],
    scheme: str = "uniform",
    dtype: str = "bf16",
    **parameters: object,
) -> tuple[TensorRecord, list[Chunks]]:
    if scheme == "uniform":
        parameters = {"step": bits_from_float(0.5), "orientation": "rows", **parameters}
    records = tuple(
        Stream(role, of, sum(chunk.n_elements for chunk in chunks)) for role, (of, chunks) in streams.items()
    )
    record = TensorRecord(
        name=name, shape=shape, dtype=dtype, scheme=scheme, parameters=parameters, streams=records
    )
    return record, [chunks for _, chunks in streams.values()]


def plain(large: bool) -> Tensors:
    """Nothing hostile."""
    return [_tensor("w", (4, 4), {"codes": ("i8", [_constant("i8", 16)])})]


def bands(large: bool) -> Tensors:
    """Outlier bands without an outlier, one for each row."""
    n = 200_000 if large else 3000
    return [
        _tensor(
            "w",
            (n, 1),
            {
                "codes": ("i8", [_constant("i8", n)]),
                "outlier_gaps": ("u8", [_nothing("u8")] * n),
                "outlier_values": ("bf16", [_nothing("bf16")] * n),
            },
            outliers={"rows_per_band": 1},
        )
    ]


def no_elements(large: bool) -> Tensors:
    """Many tensors of nothing."""
    return [
        _tensor(f"t{i}", (0,), {"values": ("f32", [])}, "dense", "f32")
        for i in range(40_000 if large else 300)
    ]


def many_chunks(large: bool) -> Tensors:
    """A tensor in chunks of one element."""
    n = 1500 if large else 20
    chunk = _constant("i8", 1, "raw")
    return [_tensor("w", (n, 1), {"codes": ("i8", [chunk] * n)})]


def _noise(large: bool) -> Tensors:
    """Bytes by which a larger file earns what it claims."""
    values = np.frombuffer(random.Random(1).randbytes(90_000 if large else 4), np.float32)
    return [
        _tensor(
            "noise", values.shape, {"values": ("f32", [encode_chunk(values, "f32", "raw")])}, "dense", "f32"
        )
    ]


def _codes(shape: tuple[int, int], large: bool, dtype: str = "bf16") -> Tensors:
    n = shape[0] * shape[1] // _CODES_A_CHUNK
    chunks = [_constant("i2", _CODES_A_CHUNK)] * n
    return [*_noise(large), _tensor("w", shape, {"codes": ("i2", chunks)}, dtype=dtype)]


def constant_codes(large: bool) -> Tensors:
    """As many equal codes as a file may claim, in a matrix; each is a float64 to whoever decodes it."""
    return _codes((2048 * (20 if large else 12), 32768), large, "f64")


def one_row(large: bool) -> Tensors:
    """Likewise in one row."""
    return _codes((1, _CODES_A_CHUNK * (20 if large else 12)), large)


def one_column(large: bool) -> Tensors:
    """Likewise in one column."""
    return _codes((_CODES_A_CHUNK * (20 if large else 12), 1), large)


def constant_floats(large: bool) -> Tensors:
    """Floats of two planes, each of one byte."""
    chunks = [_constant("bf16", 1 << 23)] * (18 if large else 12)
    return [*_noise(large), _tensor("w", (2048 * len(chunks), 4096), {"values": ("bf16", chunks)}, "dense")]


def constant_scales(large: bool) -> Tensors:
    """A scale for each row, and one for each column of another tensor."""
    n, times = 1 << 22, 5 if large else 3
    codes, scales = ("i8", [_constant("i8", n)] * times), ("f32", [_constant("f32", n)] * times)
    return [
        *_noise(large),
        _tensor("by row", (n * times, 1), {"codes": codes, "row_scales": scales}),
        _tensor("by column", (1, n * times), {"codes": codes, "column_scales": scales}),
    ]


def zstd_zeros(large: bool) -> Tensors:
    """Frames of zeros."""
    n = 1 << 22 if large else 1 << 19
    chunks = [encode_chunk(np.zeros(n, np.int8), "i8", "zstd")]
    return [_tensor("w", (n // 64, 64), {"codes": ("i8", chunks)})]


def asset_of_zeros(large: bool) -> Tensors:
    """One element; `write` adds the asset."""
    return [_tensor("w", (1, 1), {"codes": ("i8", [_constant("i8", 1, "raw")])})]


FILES: dict[str, Callable[[bool], Tensors]] = {
    make.__name__: make
    for make in (
        plain, bands, no_elements, many_chunks, constant_codes, one_row, one_column, constant_floats, constant_scales,
        zstd_zeros, asset_of_zeros,
    )
}  # fmt: skip


def write(path: Path, name: str, *, large: bool) -> None:
    """Write the file of a name of FILES, with an index that is stored as small as it may be."""
    tensors = FILES[name](large)
    asset_bytes = (64 << 20 if large else 8 << 20) if name == "asset_of_zeros" else 0
    with Writer(path, 64, force=True) as writer:
        writer.begin_segment("all")
        for record, chunks in tensors:
            writer.add_tensor(record, chunks)
        if asset_bytes:
            writer.add_asset("notes.txt", bytes(asset_bytes))
        writer.seal({})
        writer.publish()
    data = path.read_bytes()
    offset, stored_bytes, raw_bytes = struct.unpack_from("<3Q", data, len(data) - 64)
    text, trailer = data[offset : offset + stored_bytes], data[-96:]
    if stored_bytes != raw_bytes:
        text = zstandard.ZstdDecompressor().decompress(text)
    packed = zstandard.ZstdCompressor(level=6).compress(text)
    missing = (raw_bytes - wire.INDEX_SLACK_BYTES) // wire.INDEX_RATIO - len(packed)
    if missing > 0:
        # What does not shrink, until the index has earned its size.
        noise = base64.b64encode(random.Random(0).randbytes(missing * 21 // 20 + 512))
        text = text.replace(b'"metadata":{}', b'"metadata":{"x":"' + noise + b'"}')
        packed = zstandard.ZstdCompressor(level=6).compress(text)
    rest = _TRAILER.pack(offset, len(packed), len(text), offset + len(packed) + 96) + trailer[64:]
    path.write_bytes(data[:offset] + packed + hashlib.sha256(rest + packed).digest() + rest)
