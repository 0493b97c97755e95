"""The valid vectors of 1.1 with levels, and with minimums of the second level."""

import numpy as np

from spq_vectors import expected
from spq_vectors.build import Record, Stream
from spq_vectors.encode import BITS, Rans, raw
from spq_vectors.valid import Vector, file_1_1, flat, matrix
from spq_vectors.valid_floats_1_1 import grouped
from spq_vectors.valid_grouped import scales

# The 16 levels of NF4 and the values of GGUF's IQ4_NL, as their libraries have them.
NF4 = (-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
       -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
       0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023,
       1.0)  # fmt: skip
IQ4_NL = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


def nf4() -> Vector:
    """NF4, with plain scales, and with double quantization in blocks that no row begins."""
    table = expected.bits_of(NF4, "f32")
    levels = expected.f32(table)
    codes = matrix(1, 6, 16, 0, 15)
    stored, scale = scales(2, 6, 2, "f32")
    streams = [Stream("codes", "u4", flat(codes), [Rans(), raw], [48, 48]), Stream("levels", "f32", table)]
    tensors = [
        grouped("plain", [6, 16], "bf16", [*streams, Stream("scales", "f32", stored)], {"group_size": 8})
    ]
    contents = {"plain": expected.restored(expected.grouped(levels[codes], 8, scale), "bf16")}
    blocks, per_tile = 12, 5
    second = matrix(3, blocks, 1, 0, 255)
    dynamic = [float(k - 128) ** 3 / 128**3 for k in range(256)]
    map_bits = expected.bits_of(dynamic, "f32")
    steps, step_numbers = scales(4, 3, 1, "f32")
    offset = expected.bits_of([-0.0625], "f32") * 3
    parameters: Record = {"group_size": 8, "supergroup": {"rows": per_tile, "groups": 1}}
    streams = [
        Stream("codes", "u4", flat(codes)), Stream("levels", "f32", n=16, same_as=0),
        Stream("scale_codes", "u8", flat(second)), Stream("scale_levels", "f32", map_bits),
        Stream("scale_steps", "f32", steps), Stream("scale_minimums", "f32", offset),
    ]  # fmt: skip
    tensors.append(grouped("double", [4, 24], "f16", streams, parameters, view=[blocks, 8]))
    scale = expected.second_level(
        expected.f32(map_bits)[second], step_numbers, None, per_tile, 1, expected.f32(offset).reshape(3, 1)
    )
    weights = expected.grouped(levels[codes.reshape(blocks, 8)], 8, scale)
    contents["double"] = expected.restored(weights, "f16")
    shows = "like NF4: levels, shared by same_as; double quantization with scale_levels, scale_minimums and a view"
    return Vector(shows, file_1_1(*tensors), contents)


def iq4() -> Vector:
    """The levels of IQ4_NL and IQ4_XS."""
    table = expected.bits_of(IQ4_NL, "f16")
    values = expected.f32(table, "f16")
    codes = matrix(5, 3, 512, 0, 15)
    stored, scale = scales(6, 3, 16, "f16")
    streams = [
        Stream("codes", "u4", flat(codes)),
        Stream("levels", "f16", table),
        Stream("scales", "f16", stored),
    ]
    tensors = [grouped("iq4_nl", [3, 512], "f32", streams, {"group_size": 32})]
    contents = {"iq4_nl": expected.restored(expected.grouped(values[codes], 32, scale), "f32")}
    second = matrix(7, 3, 16, -32, 31)
    steps, step_numbers = scales(8, 3, 2, "f16")
    streams = [*streams[:2], Stream("scale_codes", "i8", flat(second)), Stream("scale_steps", "f16", steps)]
    parameters: Record = {"group_size": 32, "supergroup": {"rows": 1, "groups": 8}}
    tensors.append(grouped("iq4_xs", [3, 512], "f32", streams, parameters))
    scale = expected.second_level(second, step_numbers, None, 1, 8)
    contents["iq4_xs"] = expected.restored(expected.grouped(values[codes], 32, scale), "f32")
    return Vector(
        "like IQ4_NL and IQ4_XS: levels f16, scales plain and in supergroups", file_1_1(*tensors), contents
    )


def levels_of_every_kind() -> Vector:
    """Levels of codes and of second levels, of every width, with every other part."""
    rows, columns, size, groups = 4, 18, 6, 3
    tensors, contents = [], {}
    cases = [("u2", "bf16", "zero_point", "zeros"), ("u8", "f32", "minimum", "minimums"),
             ("u4", "f16", "zero_point", "minimums"), ("i4", "", "minimum", "")]  # fmt: skip
    for number, (code_dtype, level_dtype, other, second_kind) in enumerate(cases):
        low, high = (-8, 7) if code_dtype == "i4" else (0, (1 << BITS[code_dtype]) - 1)
        codes = matrix(10 + number, rows, columns, low, high)
        streams = [Stream("codes", code_dtype, flat(codes))]
        values = codes.astype(np.float32)
        if level_dtype:
            table = expected.bits_of([float(k * k) / 16 - 2 for k in range(high + 1)], level_dtype)
            streams.append(Stream("levels", level_dtype, table))
            values = expected.f32(table, level_dtype)[codes]
        known: dict[str, expected.F32] = {}
        for turn, name in enumerate(("scale", other)):
            second = matrix(20 + turn, rows, groups, 0, 15)
            second_table = expected.bits_of([0.125 * (k + 1 - 20 * turn) for k in range(16)], "bf16")
            steps, step_numbers = scales(30 + turn, 2, 2, "f32")
            parts = [
                Stream(f"{name}_codes", "u4", flat(second)),
                Stream(f"{name}_levels", "bf16", second_table),
            ]
            parts.append(Stream(f"{name}_steps", "f32", steps))
            more = None
            if second_kind:
                stored, more = scales(40 + turn, 2, 2, "f16")
                parts.append(Stream(f"{name}_{second_kind}", "f16", stored))
            streams += parts
            known[name] = expected.second_level(
                expected.f32(second_table, "bf16")[second], step_numbers, more if second_kind == "zeros" else None,
                2, 2, more if second_kind == "minimums" else None,
            )  # fmt: skip
        parameters: Record = {"group_size": size, "supergroup": {"rows": 2, "groups": 2}}
        tensors.append(grouped(code_dtype, [rows, columns], "f32", streams, parameters))
        weights = expected.grouped(
            values, size, known["scale"], known.get("zero_point"), known.get("minimum")
        )
        contents[code_dtype] = expected.restored(weights, "f32")
    shows = (
        "levels of codes u2, u4, u8 and of second levels, these with zeros, with minimums and with neither"
    )
    return Vector(shows, file_1_1(*tensors), contents)


MAKERS = (
    nf4,
    iq4,
    levels_of_every_kind,
)
