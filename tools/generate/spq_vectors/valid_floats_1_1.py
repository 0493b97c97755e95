"""The valid vectors of 1.1 with codes and scales that are small floats, tiles, stacked matrices and views."""

from collections.abc import Sequence

import numpy as np

from spq_vectors import expected
from spq_vectors.build import Record, Stream, Tensor
from spq_vectors.encode import BITS, Rans, raw
from spq_vectors.valid import Vector, file_1_1, flat, matrix, numbers
from spq_vectors.valid_grouped import scales
from spq_vectors.valid_uniform import step, uniform


def grouped(
    name: str,
    shape: Sequence[int],
    dtype: str,
    streams: Sequence[Stream],
    parameters: Record,
    **extra: object,
) -> Tensor:
    """Return a grouped tensor by rows, its codes being numbered with 4 bits."""
    merged = {"bits": 4, "orientation": "rows", **parameters}
    return Tensor(name, shape, dtype, streams, "grouped", merged, dict(extra))


def finite(seed: int, n: int, dtype: str) -> list[int]:
    """Return n elements of a small float that are no NaN and no infinity, zeros of both signs among them."""
    numbers = expected.f32(range(1 << BITS[dtype]), dtype)
    usable = [k for k, number in enumerate(numbers) if np.isfinite(number)]
    chosen = np.random.default_rng(seed).choice(usable, n)
    negative_zero = 1 << (BITS[dtype] - 1)
    return [0, negative_zero if negative_zero in usable else 0, *(int(k) for k in chosen[2:])]


def restored_stack(weights: expected.F32, shape: Sequence[int], dtype: str) -> bytes:
    """Return the bytes of a tensor of shape [..., a, b] from the matrix of its transposed stack."""
    *stack, a, b = shape
    return expected.restored(np.ascontiguousarray(weights.reshape(*stack, b, a).swapaxes(-1, -2)), dtype)


def mxfp4() -> Vector:
    """Experts of gpt-oss: codes f4_e2m1, scales f8_e8m0, stored [experts, in, out]."""
    experts, n_in, n_out, size = 3, 40, 6, 16
    rows, groups = experts * n_out, 3
    codes = finite(1, rows * n_in, "f4_e2m1")
    stored = [0, 254, 1, *numbers(2, rows * groups - 3, 118, 132)]
    values = expected.f32(codes, "f4_e2m1").reshape(rows, n_in)
    scale = expected.f32(stored, "f8_e8m0").reshape(rows, groups)
    weights = expected.grouped(values, size, scale)
    tensors, contents = [], {}
    shape = [experts, n_in, n_out]
    for dtype in ("bf16", "f32", "f16"):
        streams = [
            Stream("codes", "f4_e2m1", codes, [Rans(), raw], [400, 320]),
            Stream("scales", "f8_e8m0", stored),
        ]
        tensors.append(grouped(dtype, shape, dtype, streams, {"group_size": size}, transposed=True))
        contents[dtype] = restored_stack(weights, shape, dtype)
    shows = "like MXFP4: codes f4_e2m1 with -0, scales f8_e8m0 with both ends, [experts, in, out] transposed"
    return Vector(shows, file_1_1(*tensors), contents)


def nvfp4() -> Vector:
    """NVFP4: scales f8_e4m3 times one number, or through a table where that number divides."""
    rows, columns, size, groups = 5, 64, 16, 4
    codes = finite(3, rows * columns, "f4_e2m1")
    second = finite(4, rows * groups, "f8_e4m3")
    values = expected.f32(codes, "f4_e2m1").reshape(rows, columns)
    known = expected.f32(second, "f8_e4m3").reshape(rows, groups)
    parameters: Record = {"group_size": size, "supergroup": {"rows": rows, "groups": groups}}
    global_scale = expected.bits_of([0.00037], "f32")
    scale = expected.f32(global_scale) * known
    streams = [Stream("codes", "f4_e2m1", codes), Stream("scale_codes", "f8_e4m3", second)]
    times = grouped(
        "times", [rows, columns], "bf16", [*streams, Stream("scale_steps", "f32", global_scale)], parameters
    )
    contents = {"times": expected.restored(expected.grouped(values, size, scale), "bf16")}
    with np.errstate(invalid="ignore"):
        levels = expected.f32(range(256), "f8_e4m3") / np.float32(2688.5)
    table = [int(bits) for bits in np.where(np.isnan(levels), 0, levels).astype(np.float32).view(np.uint32)]
    one = Stream("scale_steps", "f32", [0x3F800000])
    streams = [streams[0], Stream("scale_codes", "u8", second), Stream("scale_levels", "f32", table), one]
    divided = grouped("divided", [rows, columns], "f32", streams, parameters)
    scale = expected.f32(table)[np.array(second)].reshape(rows, groups)
    contents["divided"] = expected.restored(expected.grouped(values, size, scale), "f32")
    per_expert: Record = {"group_size": size, "supergroup": {"rows": 2, "groups": groups}}
    steps = expected.bits_of([0.5, 0.25, 3.0], "f32")
    streams = [Stream("codes", "f4_e2m1", codes[: 6 * 48]), Stream("scale_codes", "f8_e4m3", second[:18])]
    streams.append(Stream("scale_steps", "f32", steps))
    tensors = [times, divided, grouped("experts", [3, 2, 48], "f16", streams, per_expert)]
    scale = np.repeat(expected.f32(steps), 2)[:, None] * expected.f32(second[:18], "f8_e4m3").reshape(6, 3)
    small = expected.f32(codes[: 6 * 48], "f4_e2m1").reshape(6, 48)
    contents["experts"] = expected.restored(expected.grouped(small, size, scale), "f16")
    shows = (
        "like NVFP4: scale codes f8_e4m3 in one supergroup, in one for each expert, and as numbers of levels"
    )
    return Vector(shows, file_1_1(*tensors), contents)


def fp8_tiles() -> Vector:
    """FP8 with a scale for each tile, row, or tensor."""
    tensors, contents = [], {}
    cases = [
        ("blocks", [10, 14], 4, 6, "f8_e4m3", "f32", "bf16"), ("tensor", [5, 7], 5, 7, "f8_e5m2", "f32", "f16"),
        ("larger", [5, 7], 128, 128, "f8_e4m3", "bf16", "f32"), ("rows", [5, 7], 1, 7, "f8_e4m3fnuz", "f16", "f32"),
        ("stack", [3, 5, 9], 2, 4, "f8_e4m3", "f32", "f32"), ("vector", [9], 3, 4, "f8_e5m2fnuz", "f32", "f32"),
        ("integers", [6, 6], 3, 3, "i8", "f8_e4m3", "f32"), ("zero_points", [6, 6], 4, 4, "u4", "f8_e8m0", "f64"),
    ]  # fmt: skip
    for number, (name, shape, group_rows, size, code_dtype, scale_dtype, dtype) in enumerate(cases):
        *stack, height, columns = [1, *shape] if len(shape) == 1 else shape
        rows = height * int(np.prod(stack, dtype=int))
        tall = -(-height // group_rows)
        line = np.array([i // height * tall + i % height // group_rows for i in range(rows)])
        lines, groups = rows // height * tall, -(-columns // size)
        if code_dtype in BITS and code_dtype[0] in "iu":
            codes = flat(
                matrix(
                    number,
                    rows,
                    columns,
                    0 if code_dtype == "u4" else -128,
                    15 if code_dtype == "u4" else 127,
                )
            )
            values = np.array(codes).reshape(rows, columns)
        else:
            codes = finite(number, rows * columns, code_dtype)
            values = expected.f32(codes, code_dtype).reshape(rows, columns)
        stored = numbers(number + 50, lines * groups, 110, 130)
        if scale_dtype != "f8_e8m0":
            stored = (
                expected.bits_of([0.01 * k for k in stored], scale_dtype) if BITS[scale_dtype] > 8 else stored
            )
        scale = expected.f32(stored, scale_dtype).reshape(lines, groups)
        streams = [Stream("codes", code_dtype, codes), Stream("scales", scale_dtype, stored)]
        zero_point = None
        if name == "zero_points":
            zeros = matrix(7, lines, groups, 0, 15)
            streams.append(Stream("zero_points", "u4", flat(zeros)))
            zero_point = zeros.astype(np.float32)
        tensors.append(grouped(name, shape, dtype, streams, {"group_rows": group_rows, "group_size": size}))
        contents[name] = expected.restored(
            expected.grouped(values, size, scale, zero_point, line=line), dtype
        )
    shows = (
        "group_rows: tiles cut short at edges, one for a tensor, beginning anew in each matrix of a stack; codes "
        "f8_e4m3, f8_e5m2, f8_e4m3fnuz, f8_e5m2fnuz, i8, u4; scales f32, f16, bf16, f8_e4m3, f8_e8m0"
    )
    return Vector(shows, file_1_1(*tensors), contents)


def tiles_and_supergroups() -> Vector:
    """Everything of grouped at once, over tiles."""
    rows, columns, height, size = 7, 12, 3, 5
    lines, groups = 3, 3
    line = np.arange(rows) // height
    codes = matrix(20, rows, columns, 0, 15)
    order = [6, 0, 5, 1, 4, 2, 3]
    permutation = [(5 * k) % columns for k in range(columns)]
    levels = expected.bits_of([0.5 * k - 3 for k in range(16)], "f16")
    second = matrix(21, lines, groups, -128, 127)
    steps, step_numbers = scales(22, 2, 1, "f16")
    zeros, zero_numbers = scales(23, 2, 1, "bf16")
    point = matrix(24, lines, groups, 0, 15)
    streams = [
        Stream("codes", "u4", flat(codes[np.array(order)])), Stream("channel_order", "u16", order),
        Stream("permutation", "u16", permutation), Stream("levels", "f16", levels),
        Stream("scale_codes", "i8", flat(second)), Stream("scale_steps", "f16", steps),
        Stream("scale_zeros", "bf16", zeros), Stream("zero_points", "u4", flat(point)),
    ]  # fmt: skip
    parameters: Record = {"group_size": size, "group_rows": height, "supergroup": {"rows": 2, "groups": 3}}
    tensor = grouped("weight", [rows, columns], "f32", streams, parameters)
    scale = expected.second_level(second, step_numbers, zero_numbers, 2, 3)
    values = expected.f32(levels, "f16")[codes]
    stored = expected.grouped(values, size, scale, point.astype(np.float32), line=line)
    weights = np.empty_like(stored)
    weights[:, permutation] = stored
    shows = "tiles with supergroups of lines, levels, zero points, channel_order and permutation"
    return Vector(shows, file_1_1(tensor), {"weight": expected.restored(weights, "f32")})


def transposed_stacks() -> Vector:
    """The last two dimensions turned, in stacks of any number, by rows and by columns."""
    codes = matrix(30, 12, 5, -8, 7)
    tensors, contents = [], {}
    for name, shape in (("experts", [3, 5, 4]), ("more", [2, 1, 3, 5, 2]), ("plain", [5, 12])):
        for orientation in ("rows", "columns"):
            parameters: Record = {"orientation": orientation, "step": step(0.25)}
            tensor = uniform(
                f"{name}.{orientation}", codes, "f32", {"dtype": "i4"}, parameters, transposed=True
            )
            tensor.shape = shape
            tensors.append(tensor)
            weights = expected.uniform(codes, 0.25, None, None)
            contents[tensor.name] = restored_stack(weights, shape, "f32")
    stored, scale = scales(31, 12, 2, "f16")
    unsigned = codes + 8
    permutation = [4, 2, 0, 1, 3]
    streams = [Stream("codes", "u4", flat(unsigned)), Stream("permutation", "u16", permutation)]
    streams.append(Stream("scales", "f16", stored))
    tensors.append(grouped("permuted", [3, 5, 4], "bf16", streams, {"group_size": 3}, transposed=True))
    weights = np.empty((12, 5), np.float32)
    weights[:, permutation] = expected.grouped(unsigned, 3, scale)
    contents["permuted"] = restored_stack(weights, [3, 5, 4], "bf16")
    return Vector("transposed stacks: uniform and grouped, with a permutation", file_1_1(*tensors), contents)


def views() -> Vector:
    """Groups that do not lie along the inputs: HQQ over either axis, blocks that pass the ends of rows."""
    n_out, n_in, size = 6, 10, 4
    n = n_out * n_in
    codes = matrix(32, n // size, size, 0, 15)
    stored, scale = scales(33, n // size, 1, "f16")
    zeros, zero_point = scales(34, n // size, 1, "bf16")
    weights = expected.grouped(codes, size, scale, zero_point)
    streams = [
        Stream("codes", "u4", flat(codes)),
        Stream("scales", "f16", stored),
        Stream("zero_points", "bf16", zeros),
    ]
    one: Record = {"group_size": size}
    tensors = [
        grouped("axis_1", [n_out, n_in], "f32", streams, one, view=[n // size, size]),
        grouped("axis_0", [n_out, n_in], "f32", streams, one, view=[size, n // size], transposed=True),
    ]
    by_columns = [Stream("codes", "u4", flat(codes.T)), *streams[1:]]
    by: Record = {"group_size": size, "orientation": "columns"}
    tensors.append(
        grouped("axis_0.columns", [n], "f32", by_columns, by, view=[size, n // size], transposed=True)
    )
    turned = expected.restored(np.ascontiguousarray(weights.T), "f32")
    contents = {"axis_1": expected.restored(weights, "f32"), "axis_0": turned, "axis_0.columns": turned}
    small = matrix(35, 6, 10, -8, 7)
    flat_view = uniform("uniform", small, "f16", {"dtype": "i4"}, {"step": step(0.5)}, view=[2, 3, 10])
    flat_view.shape = [60]
    tensors.append(flat_view)
    contents["uniform"] = expected.restored(expected.uniform(small, 0.5, None, None), "f16")
    return Vector("views: groups along other axes than the inputs", file_1_1(*tensors), contents)


def turned_views() -> Vector:
    """Transposed views: a tensor of three dimensions seen as a matrix, and a matrix seen as two that are stacked."""
    flat_codes, stacked_codes = matrix(37, 3, 4, -8, 7), matrix(38, 6, 2, -8, 7)
    by: Record = {"step": step(0.5)}
    seen_flat = uniform("flat", flat_codes, "f16", {"dtype": "i4"}, by, view=[4, 3], transposed=True)
    seen_flat.shape = [2, 2, 3]
    seen_stacked = uniform(
        "stacked", stacked_codes, "f16", {"dtype": "i4"}, by, view=[2, 2, 3], transposed=True
    )
    seen_stacked.shape = [4, 3]
    weights = expected.uniform(flat_codes, 0.5, None, None)
    stack = expected.uniform(stacked_codes, 0.5, None, None).reshape(2, 3, 2)
    contents = {
        "flat": expected.restored(np.ascontiguousarray(weights.T), "f16"),
        "stacked": expected.restored(np.ascontiguousarray(stack.swapaxes(1, 2)).reshape(4, 3), "f16"),
    }
    return Vector(
        "transposed views: bit 19 is of the view's dimensions", file_1_1(seen_flat, seen_stacked), contents
    )


MAKERS = (
    mxfp4,
    nvfp4,
    fp8_tiles,
    tiles_and_supergroups,
    transposed_stacks,
    views,
    turned_views,
)
