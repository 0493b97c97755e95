"""The invalid vectors of section 5: parameters, streams and what they hold."""

from collections.abc import Sequence
from typing import Any

from spq_vectors import encode
from spq_vectors.build import File, Record, Stream, Tensor
from spq_vectors.invalid import bad, small
from spq_vectors.valid_uniform import outlier_streams, step

FEATURE = "a reader MUST refuse a file that uses a feature without its bit."
ALLOWED = "one of those that the tables of section 5 allow for the role"
N = "it MUST equal the number that section 5 gives"
ONE = 0x3F800000


def uniform_file(
    *, rows: int = 4, columns: int = 6, dtype: str = "f32", codes_dtype: str = "i4", parameters: Record | None = None,
    rest: Sequence[Stream] = (), shape: Sequence[int] | None = None, encoders: Sequence[encode.Encoder] = (encode.raw,),
    sizes: Sequence[int] | None = None, required: int | None = None, **extra: Any,
) -> File:  # fmt: skip
    """Return a file with one uniform tensor; `parameters` replace or, where None, leave out the defaults."""
    codes = [k % 5 - 2 for k in range(rows * columns)]
    merged = {"orientation": "rows", "step": step(0.5), **(parameters or {})}
    merged = {key: value for key, value in merged.items() if value is not None}
    streams = [Stream("codes", codes_dtype, codes, encoders, sizes), *rest]
    shape = [rows, columns] if shape is None else shape
    return small(Tensor("weight", shape, dtype, streams, "uniform", merged, extra), required=required)


def grouped_file(
    streams: Sequence[Stream] | None = None, *, rows: int = 4, columns: int = 6, parameters: Record | None = None,
    required: int | None = None,
) -> File:  # fmt: skip
    """Return a file with one grouped tensor of groups of 4; `streams` are those behind the codes."""
    codes = Stream("codes", "u4", [k % 16 for k in range(rows * columns)])
    rest = [Stream("scales", "f32", [ONE] * (2 * rows))] if streams is None else streams
    merged = {"group_size": 4, "bits": 4, "orientation": "rows", **(parameters or {})}
    merged = {key: value for key, value in merged.items() if value is not None}
    return small(
        Tensor("weight", [rows, columns], "f32", [codes, *rest], "grouped", merged), required=required
    )


def matrix() -> None:
    """Break rules of section 5.1."""
    dense = "A scalar, and a tensor without elements, MUST be dense."
    bad("uniform_scalar", "corrupt", dense, uniform_file(rows=1, columns=1, shape=[]))
    bad("uniform_nothing", "corrupt", dense, uniform_file(rows=0, columns=6, sizes=[]))
    bad("uniform_nothing_wide", "corrupt", dense, uniform_file(rows=0, columns=6, sizes=[], shape=[2**50, 0]))
    dtype = "The `dtype` of such a tensor is f64, f32, f16 or bf16."
    bad("uniform_restores_i8", "corrupt", dtype, uniform_file(dtype="i8"))
    bad("uniform_restores_f8", "corrupt", dtype, uniform_file(dtype="f8_e4m3"))
    stacked = uniform_file(shape=[2, 2, 6], transposed=True, required=0b100)
    bad("transposed_3", "corrupt", FEATURE, stacked)
    bad("transposed_integer", "corrupt", "optional boolean (5.1)", uniform_file(transposed=1))


def uniform() -> None:
    """Break rules of sections 5.3 and 5.7."""
    clause = "binary32 bits, finite, greater than 0"
    steps = {"zero": 0, "negative": 0xBF800000, "infinite": 0x7F800000, "nan": 0x7FC00000, "minus_zero": 1 << 31,
             "33_bits": 2**32 + ONE, "missing": None}  # fmt: skip
    for name, value in steps.items():
        bad(f"step_{name}", "corrupt", clause, uniform_file(parameters={"step": value}))
    orientation = "`rows`: codes in row-major order; `columns`: in column-major order"
    bad("orientation", "corrupt", orientation, uniform_file(parameters={"orientation": "row"}))
    bad("orientation_list", "corrupt", orientation, uniform_file(parameters={"orientation": ["rows"]}))
    bad("orientation_missing", "corrupt", orientation, uniform_file(parameters={"orientation": None}))
    bad("codes_u8", "corrupt", ALLOWED, uniform_file(codes_dtype="u8"))
    bad("codes_n", "corrupt", N, uniform_file(shape=[4, 7]))
    bad("row_scales_n", "corrupt", N, uniform_file(rest=[Stream("row_scales", "f32", [ONE] * 6)]))
    bad("row_scales_dtype", "corrupt", ALLOWED, uniform_file(rest=[Stream("row_scales", "i8", [1] * 4)]))
    wrong_order = [Stream("column_scales", "f32", [ONE] * 6), Stream("row_scales", "f32", [ONE] * 4)]
    bad("streams_order", "corrupt", "in the order of the tables of section 5", uniform_file(rest=wrong_order))
    bad("uniform_permutation", "corrupt", "string, one of the scheme's (section 5)",
        uniform_file(rest=[Stream("permutation", "u16", range(6))]))  # fmt: skip
    bad("feature_uniform", "corrupt", FEATURE, uniform_file(required=0))
    log8 = "`[octave_steps, bias]`; there when the scale stream's dtype is log8 (5.7), and only then"
    scales = [Stream("row_scales", "log8", [0, 1, 2, 255])]
    bad("log8_missing", "corrupt", log8, uniform_file(rest=scales))
    bad("log8_without_stream", "corrupt", log8, uniform_file(parameters={"row_scale_log8": [8, 0]}))
    bad("log8_object", "corrupt", log8, uniform_file(rest=scales, parameters={"row_scale_log8": [{}, 0]}))
    bad("log8_length", "corrupt", log8, uniform_file(rest=scales, parameters={"row_scale_log8": [8, 0, 0]}))
    values = "where `octave_steps` is 8 or 16, `bias` is an integer from -1024 to 1024,"
    for name, pair in (("steps", [12, 0]), ("bias_low", [8, -1025]), ("bias_high", [8, 1025])):
        bad(f"log8_{name}", "corrupt", values, uniform_file(rest=scales, parameters={"row_scale_log8": pair}))
    normal = "The result MUST be a normal binary32 number for every `q` of the stream."
    bad(
        "log8_subnormal",
        "corrupt",
        normal,
        uniform_file(rest=scales, parameters={"row_scale_log8": [8, -1009]}),
    )
    bad(
        "log8_overflow",
        "corrupt",
        normal,
        uniform_file(rest=scales, parameters={"row_scale_log8": [8, 1024 - 255]}),
    )


def channels() -> None:
    """Break rules of section 5.6."""
    order = "With `channel_order` o, channel `k` of the stream is channel `o[k]`; o MUST be a permutation."
    for name, elements in (("twice", [0, 1, 1, 3]), ("past", [0, 1, 2, 4])):
        bad(
            f"channel_order_{name}",
            "corrupt",
            order,
            uniform_file(rest=[Stream("channel_order", "u16", elements)]),
        )
    bad("channel_order_n", "corrupt", N, uniform_file(rest=[Stream("channel_order", "u16", range(6))]))
    bad(
        "channel_order_dtype",
        "corrupt",
        ALLOWED,
        uniform_file(rest=[Stream("channel_order", "u8", range(4))]),
    )
    rest = [Stream("channel_order", "u32", [3, 2, 1, 0])]
    bad("feature_channel_order", "corrupt", FEATURE, uniform_file(rest=rest, required=0b100))
    classes = "it MUST add up to the number of channels, and no chunk holds channels of two classes."
    bad(
        "class_sizes_sum",
        "corrupt",
        classes,
        uniform_file(parameters={"class_sizes": [2, 3]}, sizes=[12, 12]),
    )
    bad("class_sizes_integer", "corrupt", "optional list of integers, at least 1 each (5.6)",
        uniform_file(parameters={"class_sizes": 4}, sizes=[12, 12]))  # fmt: skip
    bad("class_sizes_zero", "corrupt", "optional list of integers, at least 1 each (5.6)",
        uniform_file(parameters={"class_sizes": [2, 0, 2]}, sizes=[12, 12]))  # fmt: skip
    bad("class_sizes_one_chunk", "corrupt", classes, uniform_file(parameters={"class_sizes": [2, 2]}))
    bad(
        "class_sizes_boundary",
        "corrupt",
        classes,
        uniform_file(parameters={"class_sizes": [2, 2]}, sizes=[10, 14]),
    )


def outliers() -> None:
    """Break rules of section 5.4."""
    one = [[0x3C00]]
    there = {"outliers": {"rows_per_band": 2}}
    good = outlier_streams([[3], []], [*one, []], "f16")
    only = (
        "The parameter is there when the streams `outlier_gaps` (u8) and `outlier_values` (f32, "
        "f16 or bf16) are, and only then."
    )
    bad("outliers_no_parameter", "corrupt", only, uniform_file(rest=good))
    bad("outliers_no_streams", "corrupt", only, uniform_file(parameters=there))
    bad("outliers_no_values", "corrupt", only, uniform_file(parameters=there, rest=good[:1]))
    bad("outliers_no_gaps", "corrupt", only, uniform_file(parameters=there, rest=good[1:]))
    bad("feature_outliers", "corrupt", FEATURE, uniform_file(parameters=there, rest=good, required=0b100))
    bands = "Both have exactly one chunk for each band, empty where the band has no outliers."
    bad(
        "outliers_one_band",
        "corrupt",
        bands,
        uniform_file(parameters=there, rest=outlier_streams([[3]], one, "f16")),
    )
    three = outlier_streams([[3], [], []], [*one, [], []], "f16")
    bad("outliers_three_bands", "corrupt", bands, uniform_file(parameters=there, rest=three))
    bad("rows_per_band_0", "corrupt", "`{\"rows_per_band\": R}`, R at least 1",
        uniform_file(parameters={"outliers": {"rows_per_band": 0}}, rest=good))  # fmt: skip
    bad("outlier_values_f64", "corrupt", ALLOWED,
        uniform_file(parameters=there, rest=outlier_streams([[3], []], [[0], []], "f64")))  # fmt: skip

    def gaps(name: str, clause: str, held: Sequence[int], n_values: int, columns: int = 6) -> None:
        sizes = [[len(held), 0], [n_values, 0]]
        streams = [Stream("outlier_gaps", "u8", held, sizes=sizes[0])]
        streams.append(Stream("outlier_values", "f16", [0x3C00] * n_values, sizes=sizes[1]))
        bad(name, "corrupt", clause, uniform_file(columns=columns, parameters=there, rest=streams))

    last = "The last gap of a band MUST NOT be 255"
    gaps("gap_last_255", last, [1, 255], 1, 200)
    gaps("gap_only_255", last, [255], 0, 200)
    past = "every position that is reached MUST be less than the band's rows times `columns`"
    gaps("gap_past_band", past, [3, 8], 2)
    gaps("gap_first_past_band", past, [12], 1)
    gaps("gap_escape_past_band", past, [255, 255, 0], 1, 200)
    number = "the number of gaps other than 255 MUST equal the number of the band's values"
    gaps("gap_more", number, [1, 2, 3], 2)
    gaps("gap_less", number, [1, 2], 3)
    gaps("gap_none", number, [], 1)
    shifted = [Stream("outlier_gaps", "u8", [1, 1], sizes=[1, 1])]
    shifted.append(Stream("outlier_values", "f16", [0x3C00] * 2, sizes=[2, 0]))
    bad("gap_other_band", "corrupt", number, uniform_file(parameters=there, rest=shifted))


def grouped() -> None:
    """Break rules of section 5.5."""
    scales = Stream("scales", "f16", [0x3C00] * 8)
    codes = [Stream("scale_codes", "u4", [1] * 8), Stream("scale_steps", "f16", [0x3C00] * 2)]
    tile: Record = {"supergroup": {"rows": 4, "groups": 1}}
    bad("feature_grouped", "corrupt", FEATURE, grouped_file(required=0))
    bad("feature_supergroups", "corrupt", FEATURE, grouped_file(codes, parameters=tile, required=0b1000))
    either = "The scale is given either by `scales`, or by `scale_codes` and `scale_steps`"
    bad("scales_none", "corrupt", either, grouped_file([]))
    bad("scales_both", "corrupt", either, grouped_file([scales, *codes], parameters=tile))
    bad("scale_codes_alone", "corrupt", either, grouped_file(codes[:1], parameters=tile))
    bad("scale_steps_alone", "corrupt", either, grouped_file([scales, *codes[1:]]))
    zeros = Stream("scale_zeros", "f16", [0x3C00] * 2)
    bad("scale_zeros_alone", "corrupt", either, grouped_file([scales, zeros]))
    point, minimum = (Stream(role, "f16", [0x3C00] * 8) for role in ("zero_points", "minimums"))
    both = "A tensor MUST NOT have both zero points and minimums."
    bad("zero_points_and_minimums", "corrupt", both, grouped_file([scales, point, minimum]))
    second = [Stream("minimum_codes", "u4", [1] * 8), Stream("minimum_steps", "f16", [0x3C00] * 2)]
    bad(
        "zero_points_and_minimum_codes",
        "corrupt",
        both,
        grouped_file([scales, point, *second], parameters=tile),
    )
    there = "`supergroup` MUST be there when a `_codes` stream of the second level is, and only then."
    bad("supergroup_missing", "corrupt", there, grouped_file(codes))
    bad("supergroup_alone", "corrupt", there, grouped_file([scales], parameters=tile))
    for key in ("rows", "groups"):
        zero: Record = {"supergroup": {"rows": 4, "groups": 1, key: 0}}
        bad(f"supergroup_{key}_0", "corrupt", 'optional `{"rows": R, "groups": G}`, at least 1 each',
            grouped_file(codes, parameters=zero))  # fmt: skip
    bad(
        "supergroup_tiles",
        "corrupt",
        N,
        grouped_file(codes, parameters={"supergroup": {"rows": 3, "groups": 1}}),
    )
    bad(
        "group_size_0",
        "corrupt",
        "| `group_size` | integer, at least 1 |",
        grouped_file(parameters={"group_size": 0}),
    )
    bad(
        "group_size_missing",
        "corrupt",
        "| `group_size` | integer, at least 1 |",
        grouped_file(parameters={"group_size": None}),
    )
    bits = "| `bits` | number of bits that the codes were quantized to; informative |"
    bad("bits_missing", "corrupt", bits, grouped_file(parameters={"bits": None}))
    bad("scales_n", "corrupt", N, grouped_file(parameters={"group_size": 5}, columns=4))
    bad("scales_u8", "corrupt", ALLOWED, grouped_file([Stream("scales", "u8", [1] * 8)]))
    bad("zero_points_i8", "corrupt", ALLOWED, grouped_file([scales, Stream("zero_points", "i8", [1] * 8)]))
    bad("grouped_row_scales", "corrupt", "string, one of the scheme's (section 5)",
        grouped_file([scales, Stream("row_scales", "f16", [0x3C00] * 4)]))  # fmt: skip
    p = (
        "With `permutation` p, stored column `k` is column `p[k]` of the matrix; p MUST be a "
        "permutation of the columns."
    )
    for name, elements in (("twice", [0, 1, 2, 3, 4, 4]), ("past", [0, 1, 2, 3, 4, 6])):
        bad(
            f"permutation_{name}",
            "corrupt",
            p,
            grouped_file([Stream("permutation", "u16", elements), scales]),
        )
    bad("permutation_n", "corrupt", N, grouped_file([Stream("permutation", "u16", range(5)), scales]))
    bad("feature_permutation", "corrupt", FEATURE,
        grouped_file([Stream("permutation", "u16", range(6)), scales], required=0b1000))  # fmt: skip


def shared() -> None:
    """Break the rules of `same_as`."""
    clause = (
        "the number (from 0, in `tensors`) of an earlier tensor that holds a stream of the same "
        "role, dtype and `n` itself, not by `same_as`"
    )
    own = Stream("column_scales", "f16", [0x3C00] * 6)

    def tensors(*scales: Stream) -> list[Tensor]:
        parameters: Record = {"orientation": "rows", "step": ONE}
        return [
            Tensor(f"t{k}", [1, 6], "f32", [Stream("codes", "i8", range(6)), stream], "uniform", parameters)
            for k, stream in enumerate(scales)
        ]

    first = Stream("column_scales", "f16", n=6, same_as=0)
    for name, streams in {
        "later": [own, Stream("column_scales", "f16", n=6, same_as=2), own],
        "itself": [Stream("column_scales", "f16", n=6, same_as=0), own],
        "shared": [own, first, Stream("column_scales", "f16", n=6, same_as=1)],
        "dtype": [own, Stream("column_scales", "bf16", n=6, same_as=0)],
        "role": [Stream("row_scales", "f16", [0x3C00]), Stream("column_scales", "f16", n=6, same_as=0)],
        "past": [own, Stream("column_scales", "f16", n=6, same_as=2**50)],
    }.items():
        bad(f"same_as_{name}", "corrupt", clause, small(*tensors(*streams)))
    both = Stream("column_scales", "f16", n=6, same_as=0, extra={"chunks": [[6, 6, 0, 0, 6, 0, 0]]})
    bad("same_as_and_chunks", "corrupt", "instead of `chunks` and `entropy_bits`", small(*tensors(own, both)))
    bad("feature_shared_streams", "corrupt", FEATURE, small(*tensors(own, first), required=0b100))
    codes = tensors(own, own)
    codes[1].streams = [Stream("codes", "i8", n=6, same_as=0)]
    roles = "not for the roles `values`, `codes`, `outlier_gaps`, `outlier_values` and `asset`"
    bad("same_as_codes", "corrupt", roles, small(*codes))
