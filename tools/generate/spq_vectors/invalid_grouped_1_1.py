"""The invalid vectors of 1.1's grouped tensors: views, stacks, tiles, levels, small floats."""

from collections.abc import Callable, Sequence

from spq_vectors.build import Record, Stream
from spq_vectors.invalid import bad
from spq_vectors.invalid_1_1 import small, uniform
from spq_vectors.invalid_schemes import ALLOWED, ONE, N
from spq_vectors.valid import dense
from spq_vectors.valid_floats_1_1 import grouped

CODES = Stream("codes", "u4", [k % 16 for k in range(24)])
ONES = [ONE] * 24
EITHER = "The scale is given either by `scales`, or by `scale_codes` and `scale_steps`"


def broken(
    name: str, clause: str, streams: Sequence[Stream], kind: str = "corrupt", **parameters: object
) -> None:
    """Put in a grouped tensor of 4 rows by 6 columns in groups of 3."""
    tensor = grouped("weight", [4, 6], "f32", streams, {"group_size": 3, **parameters})
    bad(name, kind, clause, small(tensor))


def views() -> None:
    """Break rules of section 5.1."""
    least = (
        "With `transposed`, the last two dimensions change places first: the tensor MUST have at least two"
    )
    bad("transposed_1", "corrupt", least, small(uniform([24], transposed=True)))
    bad("transposed_view_1", "corrupt", least, small(uniform([4, 6], view=[24], transposed=True)))
    product = "the product of the view MUST equal that of the shape."
    bad("view_other", "corrupt", product, small(uniform([4, 6], view=[4, 5])))
    bad("view_larger", "corrupt", product, small(uniform([4, 6], view=[2**52, 2**52])))
    integers = (
        "optional list of 1 to 8 integers, at least 1 each (5.1); only for the schemes uniform and grouped"
    )
    bad("view_empty", "corrupt", integers, small(uniform([4, 6], view=[])))
    bad("view_zero", "corrupt", integers, small(uniform([4, 6], view=[24, 0])))
    bad("view_number", "corrupt", integers, small(uniform([4, 6], view="8")))
    bad("view_9", "limit", integers, small(uniform([4, 6], view=[24] + [1] * 8)))
    viewed = dense("weight", [8], "u8", range(8))
    viewed.extra = {"view": [8]}
    bad("view_dense", "corrupt", integers, small(viewed))
    short = uniform([4, 6], view=[8, 3])
    short.streams = [*short.streams, Stream("row_scales", "f32", [ONE] * 4)]
    bad("view_row_scales", "corrupt", N, small(short))


def tiles() -> None:
    """Break the rules of group_rows."""
    optional = "optional integer, at least 1; 1 where it is left out"
    scales = Stream("scales", "f32", [ONE] * 4)
    for name, value in (("0", 0), ("null", None), ("true", True), ("negative", -1)):
        broken(f"group_rows_{name}", optional, [CODES, scales], group_rows=value)
    broken("group_rows_scales", N, [CODES, Stream("scales", "f32", [ONE] * 8)], group_rows=2)
    broken("group_rows_edge", N, [CODES, scales], group_rows=3, group_size=2)
    stack = grouped(
        "weight",
        [2, 3, 4],
        "f32",
        [CODES, Stream("scales", "f32", [ONE] * 3)],
        {"group_size": 4, "group_rows": 2},
    )
    bad("group_rows_stack", "corrupt", N, small(stack))
    second = [CODES, Stream("scale_codes", "u4", [1] * 4), Stream("scale_steps", "f32", [ONE] * 4)]
    broken("group_rows_supergroups", N, second, group_rows=2, supergroup={"rows": 2, "groups": 1})
    minimums = [CODES, scales, Stream("minimums", "f32", [ONE] * 8)]
    broken("group_rows_minimums", N, minimums, group_rows=2)


def levels() -> None:
    """Break the rules of levels."""
    scales = Stream("scales", "f32", [ONE] * 8)
    clause = "Where there are levels, codes MUST be u2, u4 or u8, and the value of a code `c` is level `c`"
    for dtype, n in (("i4", 16), ("i2", 4), ("i8", 256), ("f8_e4m3", 256), ("f4_e2m1", 16)):
        codes = Stream("codes", dtype, [k % 2 for k in range(24)])
        broken(f"levels_of_{dtype}", clause, [codes, Stream("levels", "f32", [ONE] * n), scales])
    for number, n in enumerate((15, 17, 256)):
        broken(f"levels_n_{number}", N, [CODES, Stream("levels", "f32", [ONE] * n), scales])
    broken("levels_f64", ALLOWED, [CODES, Stream("levels", "f64", [ONE] * 16), scales])
    broken("levels_i8", ALLOWED, [CODES, Stream("levels", "i8", [1] * 16), scales])
    broken(
        "levels_late",
        "in the order of the tables of section 5",
        [CODES, scales, Stream("levels", "f32", [ONE] * 16)],
    )
    tile: Record = {"supergroup": {"rows": 4, "groups": 2}}
    steps = Stream("scale_steps", "f32", [ONE])
    second = Stream("scale_codes", "u4", [1] * 8)
    table = Stream("scale_levels", "f32", [ONE] * 16)
    broken("scale_levels_alone", EITHER, [CODES, table, steps])
    broken("scale_levels_and_scales", EITHER, [CODES, scales, table])
    likewise = "`scale_codes` with `scale_levels` likewise, and so on."
    for dtype in ("i8", "f8_e4m3"):
        broken(f"scale_levels_of_{dtype}", likewise, [CODES, Stream("scale_codes", dtype, [1] * 8),
               Stream("scale_levels", "f32", [ONE] * 256), steps], **tile)  # fmt: skip
    broken("scale_levels_n", N, [CODES, second, Stream("scale_levels", "f32", [ONE] * 8), steps], **tile)
    missing = Stream("levels", "f32", n=16, same_as=0)
    broken(
        "levels_same_as", "an earlier tensor that holds a stream of the same role", [CODES, missing, scales]
    )


def second_level() -> None:
    """Break minimums of the second level."""
    tile: Record = {"supergroup": {"rows": 4, "groups": 2}}
    second = [Stream("scale_codes", "u4", [1] * 8), Stream("scale_steps", "f32", [ONE])]
    zeros, minimums = (Stream(f"scale_{kind}", "f32", [ONE]) for kind in ("zeros", "minimums"))
    both = "A tensor MUST NOT have both `scale_zeros` and `scale_minimums`."
    broken("scale_zeros_and_minimums", both, [CODES, *second, zeros, minimums], **tile)
    points = [Stream("zero_point_codes", "u4", [1] * 8), Stream("zero_point_steps", "f32", [ONE])]
    points += [Stream(f"zero_point_{kind}", "f32", [ONE]) for kind in ("zeros", "minimums")]
    broken("zero_point_zeros_and_minimums", both, [CODES, *second, *points], **tile)
    scales = Stream("scales", "f32", [ONE] * 8)
    broken("scale_minimums_alone", EITHER, [CODES, scales, minimums])
    broken("scale_minimums_n", N, [CODES, *second, Stream("scale_minimums", "f32", [ONE] * 8)], **tile)
    broken(
        "scale_minimums_dtype", ALLOWED, [CODES, *second, Stream("scale_minimums", "f8_e4m3", [56])], **tile
    )


def small_floats() -> None:
    """Put small floats where none may be."""
    scales = Stream("scales", "f32", [ONE] * 8)
    for dtype in ("f6_e2m3", "f6_e3m2", "f8_e8m0", "log8", "f16", "c64", "bool"):
        broken(f"codes_{dtype}", ALLOWED, [Stream("codes", dtype, [1] * 24), scales])
    for dtype in ("f8_e5m2", "f8_e4m3fnuz", "f4_e2m1", "u8"):
        broken(f"scales_{dtype}", ALLOWED, [CODES, Stream("scales", dtype, [1] * 8)])
    broken("zero_points_f8", ALLOWED, [CODES, scales, Stream("zero_points", "f8_e4m3", [1] * 8)])
    broken("minimums_f8", ALLOWED, [CODES, scales, Stream("minimums", "f8_e8m0", [1] * 8)])
    tile: Record = {"supergroup": {"rows": 4, "groups": 2}}
    steps = Stream("scale_steps", "f32", [ONE])
    broken("scale_codes_f4", ALLOWED, [CODES, Stream("scale_codes", "f4_e2m1", [1] * 8), steps], **tile)
    eight = [CODES, Stream("scale_codes", "u4", [1] * 8), Stream("scale_steps", "f8_e4m3", [1])]
    broken("scale_steps_f8", ALLOWED, eight, **tile)
    dtype = "The `dtype` of such a tensor is f64, f32, f16 or bf16."
    restored = grouped("weight", [4, 6], "f4_e2m1", [CODES, scales], {"group_size": 3})
    bad("grouped_restores_f4", "corrupt", dtype, small(restored))
    fitting = uniform([4, 6])
    fitting.streams = [Stream("codes", "f4_e2m1", [1] * 24)]
    bad("uniform_codes_f4", "corrupt", ALLOWED, small(fitting))


PARTS: tuple[Callable[[], None], ...] = (views, tiles, levels, second_level, small_floats)
