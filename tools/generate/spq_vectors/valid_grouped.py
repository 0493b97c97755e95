"""The valid vectors of the scheme grouped, and the shard set."""

import hashlib
import json

import numpy as np

from spq_vectors import expected
from spq_vectors.build import File, Record, Stream, Tensor, zstd_index
from spq_vectors.encode import BITS, Rans, raw
from spq_vectors.valid import (
    Vector,
    dense,
    flat,
    matrix,
    vector,
)
from spq_vectors.valid_uniform import outlier_streams, set_outliers


def scales(seed: int, rows: int, groups: int, dtype: str) -> tuple[list[int], expected.F32]:
    """Return rows * groups positive floats as bits and as numbers."""
    values = np.random.default_rng(seed).uniform(0.01, 0.2, rows * groups)
    bits = expected.bits_of([float(value) for value in values], dtype)
    return bits, expected.f32(bits, dtype).reshape(rows, groups)


@vector
def grouped_dtypes() -> Vector:
    """Every dtype of codes and zero points, the last group short."""
    rows, columns, size = 6, 22, 8
    groups = 3
    tensors, contents = [], {}
    cases = [("u2", "f32", "u2"), ("u4", "f16", "u4"), ("u8", "bf16", "u8"), ("i2", "f16", None), ("i4", "f32", "f16"),
             ("i8", "bf16", "bf16"), ("u4", "f16", "f32")]  # fmt: skip
    for number, (code_dtype, scale_dtype, zero_dtype) in enumerate(cases):
        bits = BITS[code_dtype]
        low = 0 if code_dtype[0] == "u" else -(1 << (bits - 1))
        codes = matrix(60 + number, rows, columns, low, low + (1 << bits) - 1)
        stored, scale = scales(number, rows, groups, scale_dtype)
        streams = [Stream("codes", code_dtype, flat(codes), [Rans(), raw], [44, 88])]
        streams.append(Stream("scales", scale_dtype, stored))
        zero_point = None
        if zero_dtype in ("u2", "u4", "u8"):
            zeros = matrix(80, rows, groups, 0, (1 << BITS[zero_dtype]) - 1)
            streams.append(Stream("zero_points", zero_dtype, flat(zeros)))
            zero_point = zeros.astype(np.float32)
        elif zero_dtype is not None:
            kept, zero_point = scales(90 + number, rows, groups, zero_dtype)
            streams.append(Stream("zero_points", zero_dtype, kept))
        name = f"tensor.{number}"
        dtype = ("bf16", "f16", "f32")[number % 3]
        parameters: Record = {"group_size": size, "bits": bits, "orientation": "rows"}
        tensors.append(Tensor(name, [2, 3, columns], dtype, streams, "grouped", parameters))
        contents[name] = expected.restored(expected.grouped(codes, size, scale, zero_point), dtype)
    one_group: Record = {"group_size": 1000, "bits": 8, "orientation": "columns"}
    codes = matrix(99, 1, 7, -128, 127)
    stored, scale = scales(98, 1, 1, "f32")
    streams = [Stream("codes", "i8", flat(codes)), Stream("scales", "f32", stored)]
    tensors.append(Tensor("vector", [7], "f32", streams, "grouped", one_group))
    contents["vector"] = expected.restored(expected.grouped(codes, 1000, scale), "f32")
    shows = (
        "codes u2, u4, u8, i2, i4, i8; zero points integer, float or none; a short last group; "
        "tensors of 1 and 3 dimensions"
    )
    return Vector(shows, File([("all", tensors)]), contents)


@vector
def grouped_permutation() -> Vector:
    """Permutation together with channel order, orientation, transposition."""
    rows, columns, size = 5, 12, 4
    codes = matrix(101, rows, columns, 0, 15)
    stored, scale = scales(102, rows, 3, "f16")
    permutation = [7, 0, 11, 3, 1, 9, 2, 10, 4, 8, 6, 5]
    weights = np.empty((rows, columns), np.float32)
    weights[:, permutation] = expected.grouped(codes, size, scale)
    order = [2, 0, 1, *range(11, 2, -1)]
    tensors = []
    for name, orientation in (("rows", "rows"), ("columns", "columns")):
        channels = codes if orientation == "rows" else codes.T[np.array(order)]
        streams = [Stream("codes", "u4", flat(channels))]
        if orientation == "columns":
            streams.append(Stream("channel_order", "u16", order))
        streams += [Stream("permutation", "u16" if orientation == "rows" else "u32", permutation)]
        streams += [Stream("scales", "f16", stored)]
        parameters: Record = {"group_size": size, "bits": 4, "orientation": orientation}
        shape = [rows, columns] if orientation == "rows" else [columns, rows]
        extra: Record = {"transposed": orientation == "columns"}
        tensors.append(Tensor(name, shape, "f32", streams, "grouped", parameters, extra))
    contents = {
        "rows": expected.restored(weights, "f32"),
        "columns": expected.restored(np.ascontiguousarray(weights.T), "f32"),
    }
    shows = "permutation u16 and u32; with channel_order over stored columns, and transposed"
    return Vector(shows, File([("all", tensors)]), contents)


@vector
def grouped_spqr() -> Vector:
    """SpQR: supergroups of 16 rows by 1 group, permutation, outliers."""
    rows, columns, size = 20, 24, 8
    groups = 3
    codes = matrix(110, rows, columns, 0, 7)
    levels = {}
    streams = [Stream("codes", "u4", flat(codes), [Rans()])]
    permutation = [(5 * k) % columns for k in range(columns)]
    streams.append(Stream("permutation", "u16", permutation))
    for number, name in enumerate(("scale", "zero_point")):
        second = matrix(111 + number, rows, groups, 0, 7)
        steps, step_numbers = scales(120 + number, 2, groups, "f16")
        zeros, zero_numbers = scales(130 + number, 2, groups, "bf16")
        streams += [Stream(f"{name}_codes", "u4", flat(second)), Stream(f"{name}_steps", "f16", steps)]
        streams += [Stream(f"{name}_zeros", "bf16", zeros)]
        levels[name] = expected.second_level(second, step_numbers, zero_numbers, 16, 1)
    weights = expected.grouped(codes, size, levels["scale"], levels["zero_point"])
    positions = [[3, 77], [95], [], [0], []]
    values = [[0x4248, 0xC500], [0x3C00], [], [0x0001], []]
    streams += outlier_streams(positions, values, "f16")
    set_outliers(weights, 4, positions, [expected.f32(band, "f16") for band in values])
    restored = np.empty_like(weights)
    restored[:, permutation] = weights
    parameters: Record = {"group_size": size, "bits": 3, "orientation": "rows"}
    parameters |= {"supergroup": {"rows": 16, "groups": 1}, "outliers": {"rows_per_band": 4}}
    tensor = Tensor("weight", [rows, columns], "bf16", streams, "grouped", parameters)
    shows = (
        "like SpQR: scales and zero points in supergroups of 16 rows by 1 group, permutation, "
        "outliers in stored columns"
    )
    return Vector(shows, File([("all", [tensor])]), {"weight": expected.restored(restored, "bf16")})


@vector
def grouped_gguf() -> Vector:
    """GGUF's K types: minimums, supergroups of 1 row by 8 groups."""
    rows, columns, size = 3, 40, 4
    tensors, contents = [], {}
    for code_dtype, second_dtype in (("u4", "u8"), ("u2", "u4"), ("i8", "i8")):
        bits = BITS[code_dtype]
        low = 0 if code_dtype[0] == "u" else -(1 << (bits - 1))
        codes = matrix(140, rows, columns, low, low + (1 << bits) - 1)
        groups = 10
        streams = [Stream("codes", code_dtype, flat(codes))]
        levels: dict[str, expected.F32] = {}
        for number, name in enumerate(("scale", "minimum")[: 1 if code_dtype == "i8" else 2]):
            high = (1 << (BITS[second_dtype] - 1)) - 1
            second = matrix(150 + number, rows, groups, -high if second_dtype == "i8" else 0, high)
            steps, step_numbers = scales(160 + number, rows, 2, "f16")
            streams += [
                Stream(f"{name}_codes", second_dtype, flat(second)),
                Stream(f"{name}_steps", "f16", steps),
            ]
            levels[name] = expected.second_level(second, step_numbers, None, 1, 8)
        parameters: Record = {"group_size": size, "bits": bits, "orientation": "rows"}
        parameters["supergroup"] = {"rows": 1, "groups": 8}
        tensors.append(Tensor(code_dtype, [rows, columns], "f32", streams, "grouped", parameters))
        weights = expected.grouped(codes, size, levels["scale"], minimum=levels.get("minimum"))
        contents[code_dtype] = expected.restored(weights, "f32")
    codes = matrix(170, rows, columns, 0, 15)
    stored, scale = scales(171, rows, 10, "f16")
    kept, minimum = scales(172, rows, 10, "f16")
    streams = [
        Stream("codes", "u4", flat(codes)),
        Stream("scales", "f16", stored),
        Stream("minimums", "f16", kept),
    ]
    tensors.append(
        Tensor(
            "q4_1",
            [rows, columns],
            "f16",
            streams,
            "grouped",
            {"group_size": size, "bits": 4, "orientation": "rows"},
        )
    )
    contents["q4_1"] = expected.restored(expected.grouped(codes, size, scale, minimum=minimum), "f16")
    shows = "like GGUF: minimums, scales and minimums in supergroups of 1 row by 8 groups, the last one short"
    return Vector(shows, File([("all", tensors)]), contents)


def shard_set() -> dict[str, Vector]:
    """Return the two files of a shard set."""
    vectors = {}
    for number in (1, 2):
        tensor = dense(f"part.{number}", [2, 2], "u8", [number] * 4)
        held = [("config.json", Stream("asset", "u8", b"{}"))] if number == 1 else []
        extra: Record = {"shard": {"number": number, "count": 2}}
        file = File([("part", [tensor])], held, extra=extra, compress=zstd_index)
        contents = {"config.json": b"{}"} if number == 1 else {}
        name = f"shards-{number:05}-of-00002"
        vectors[name] = Vector(
            f"shard {number} of 2", file, {f"part.{number}": bytes([number] * 4)}, contents
        )
    return vectors


def shard_index(vectors: dict[str, Vector]) -> bytes:
    """Return the file beside the shards."""
    entries = []
    for name, made in vectors.items():
        data = made.file.build()
        entries.append({"file": f"{name}.spq", "file_bytes": len(data), "digest": data[-96:-64].hex()})
    index = {"format": "spq-shards", "version": 1, "shards": entries}
    return (json.dumps(index, indent=1) + "\n").encode()


def digest(data: bytes) -> str:
    """Return the SHA-256 in hex."""
    return hashlib.sha256(data).hexdigest()
