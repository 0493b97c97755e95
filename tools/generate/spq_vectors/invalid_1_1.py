"""The invalid vectors of 1.1 but for source files: text, layout, features, content, dense order, named schemes."""

import copy
from collections.abc import Callable
from typing import Any

from spq_vectors import encode
from spq_vectors.build import FEATURES, File, Record, Stream, Tensor
from spq_vectors.encode import zstd_by_hand
from spq_vectors.invalid import bad, change, drop
from spq_vectors.invalid_schemes import FEATURE, ONE, N
from spq_vectors.valid import dense, file_1_1
from spq_vectors.valid_dense_1_1 import windowed_frame
from spq_vectors.valid_floats_1_1 import grouped
from spq_vectors.valid_uniform import step

WEIGHT = dense("weight", [8], "u8", range(8))


def small(*tensors: Tensor, **options: Any) -> File:
    """Return a file of one segment; a dense tensor of 8 bytes where none is given."""
    return file_1_1(*(tensors or [WEIGHT]), **options)


def edited(path: str, value: object, **options: Any) -> File:
    """Return the small file with a changed index."""
    return small(edit=change(path, value), **options)


def with_key(**keys: object) -> File:
    """Return the small file with more keys in its tensor's record."""
    tensor = copy.copy(WEIGHT)
    tensor.extra = dict(keys)
    return small(tensor)


def maker(dtype: str, stream_dtype: str) -> Tensor:
    """Return a tensor of another maker's scheme."""
    return Tensor("weight", [1], dtype, [Stream("a", stream_dtype, [1])], "a.b/1")


def uniform(shape: list[int], **extra: object) -> Tensor:
    """Return a uniform tensor of 24 elements."""
    streams = [Stream("codes", "i4", [k % 5 - 2 for k in range(24)])]
    return Tensor(
        "weight", shape, "f32", streams, "uniform", {"orientation": "rows", "step": step(0.5)}, dict(extra)
    )


def features() -> None:
    """Leave out each required bit that a file needs."""
    codes = Stream("codes", "u4", [k % 4 for k in range(24)])
    scales = Stream("scales", "f32", [ONE] * 6)
    second = [codes, Stream("scale_codes", "u4", [1] * 6), Stream("scale_steps", "f32", [ONE] * 2)]
    table = Stream("scale_levels", "f16", [0x3C00] * 16)
    minimums = Stream("scale_minimums", "f32", [ONE] * 2)
    tile: Record = {"supergroup": {"rows": 3, "groups": 1}}

    def rows(*streams: Stream, **parameters: object) -> Tensor:
        return grouped("weight", [6, 4], "f32", streams, {"group_size": 4, **parameters})

    ordered = dense("weight", [8], "u8", range(8))
    ordered.parameters = {"orientation": "columns"}
    cases: dict[str, tuple[Tensor, str]] = {
        "small_floats_tensor": (dense("weight", [8], "f8_e8m0", range(8)), "small_floats"),
        "small_floats_f4": (dense("weight", [8], "f4_e2m1", range(8)), "small_floats"),
        "small_floats_dtype": (maker("f6_e2m3", "u8"), "small_floats"),
        "small_floats_scales": (rows(codes, Stream("scales", "f8_e4m3", [56] * 6)), "small_floats"),
        "small_floats_codes": (rows(Stream("codes", "f8_e5m2", [60] * 24), scales), "small_floats"),
        "small_floats_named": (maker("u8", "f8_e4m3"), "small_floats"),
        "complex": (dense("weight", [1], "c64", [1]), "complex"),
        "levels": (rows(codes, Stream("levels", "f32", [ONE] * 16), scales), "levels"),
        "scale_levels": (rows(*second[:2], table, second[2], **tile), "levels"),
        "supergroup_minimums": (rows(*second, minimums, **tile), "supergroup_minimums"),
        "group_rows": (rows(codes, scales, group_rows=1), "group_rows"),
        "stacked_transposed": (uniform([2, 3, 4], transposed=True), "stacked_transposed"),
        "stacked_transposed_view": (uniform([6, 4], transposed=True, view=[2, 3, 4]), "stacked_transposed"),
        "view": (uniform([24], view=[4, 6]), "view"),
        "dense_orientation": (ordered, "dense_order"),
        "named_schemes": (maker("u8", "u8"), "named_schemes"),
    }
    for name, (tensor, feature) in cases.items():
        right = small(tensor)
        number = int.from_bytes(right.build()[-32:-24], "little")
        assert number >> FEATURES[feature] & 1, name
        bad(f"feature_{name}", "corrupt", FEATURE, small(tensor, required=number & ~(1 << FEATURES[feature])))
    channel = dense("weight", [2, 4], "u8", range(8))
    channel.streams = [*channel.streams, Stream("channel_order", "u16", [1, 0])]
    bad(
        "feature_dense_channel_order",
        "corrupt",
        FEATURE,
        small(channel, required=1 << FEATURES["channel_order"]),
    )
    bad("feature_chunk_alignment", "corrupt", FEATURE, small(chunk_alignment=64, required=0))


def text_and_layout() -> None:
    """Break rules of sections 2.3, 3 and 8 and the limits of 9 where 1.1 says more."""
    values = "optional: 64 or 4096; 64 where it is left out"
    bad("chunk_alignment_128", "corrupt", values, small(alignment=4096, chunk_alignment=128))
    bad("chunk_alignment_null", "corrupt", values, edited("chunk_alignment", None, chunk_alignment=64))
    more = "`chunk_alignment` MUST NOT be more than `segment_alignment`."
    bad("chunk_alignment_more", "corrupt", more, small(chunk_alignment=4096, alignment=64))
    two = dense("weight", [8], "u8", range(8), sizes=[4, 4])
    gap = small(two, alignment=4096, chunk_alignment=4096, edit=change("chunk_alignment", 64))
    bad(
        "chunk_alignment_gap", "corrupt", "`index_offset` MUST equal `align(e, 64)` after the last chunk", gap
    )
    nul = "A name of a tensor or of a segment MUST NOT hold U+0000."
    bad("name_nul", "corrupt", nul, edited("tensors.0.name", "wei\0ght"))
    bad("segment_name_nul", "corrupt", nul, edited("segments.0.name", "\0"))
    window = (
        "The window of a zstd frame (RFC 8878, 3.1.1.1.2) MUST NOT pass `max_zstd_window_bytes` and the frame's "
        "content size both."
    )
    for log2 in (24, 31):

        def chunk(data: bytes, log2: int = log2) -> tuple[int, bytes]:
            return 1, encode.zstd_chunk([windowed_frame(data, log2)])

        bad(f"window_{log2}", "limit", window, small(dense("weight", [8], "u8", range(8), encoders=[chunk])))

    def compress(text: bytes) -> bytes:
        return windowed_frame(text, 24)

    bad("window_of_index", "limit", window, small(compress=compress))
    shards: Record = {"number": 1, "count": 100_000}
    bad("shards_100000", "limit", "n MUST NOT pass `max_shards`.", small(extra={"shard": shards}))
    packed = "Unused bits of the last byte of a chunk MUST be zero."
    bad(
        "unused_bits_f4",
        "corrupt",
        packed,
        small(dense("weight", [1], "f4_e2m1", [1], encoders=[lambda _: (0, b"\x11")])),
    )
    six = small(dense("weight", [2], "f6_e3m2", [1, 2], encoders=[lambda _: (0, b"\x81\x10")]))
    bad("unused_bits_f6", "corrupt", packed, six)
    whole = "the number of elements times the element's bits MUST be a multiple of 8"
    bad("f6_ends_in_byte", "corrupt", whole, small(dense("weight", [6], "f6_e3m2", range(6), sizes=[3, 3])))


def content() -> None:
    """Break rules of section 3.5."""
    clause = "another digest reports *checksum*"
    sizes = small(content=True)
    bad(
        "content_of_tensor",
        "checksum",
        clause,
        small(content=True, edit=change("tensors.0.content", "0" * 64)),
    )
    bad("content_of_model", "checksum", clause, small(content=True, edit=change("content", "0" * 64)))
    # The digest is over names, dtypes and parameters, too: each of these files was another model's.
    bad(
        "content_of_other_name",
        "checksum",
        clause,
        small(content=True, edit=change("tensors.0.name", "other")),
    )
    dtypes = small(content=True, edit=lambda index: (
        change("tensors.0.dtype", "i8")(index), change("tensors.0.streams.0.dtype", "i8")(index)))  # fmt: skip
    bad("content_of_other_dtype", "checksum", clause, dtypes)
    bad(
        "content_of_other_shape",
        "checksum",
        clause,
        small(content=True, edit=change("tensors.0.shape", [2, 4])),
    )
    half = small(uniform([4, 6]), content=True, edit=change("tensors.0.parameters.step", step(0.25)))
    bad("content_of_other_step", "checksum", clause, half)
    there = "Where the index has `content`, each tensor that is not tied MUST have it."
    bad("content_of_no_tensor", "corrupt", there, small(content=True, edit=drop("content", "tensor")))
    digest = "A *hex digest* is a string of 64 digits `0-9 a-f`, a SHA-256."
    good = sizes.build()
    text = good[good.index(b'{"segment') : -96].decode()
    known = text[text.index('"content":"') + 11 :][:64]
    cases = {
        "upper": known.upper(),
        "short": known[:63],
        "long": known + "0",
        "spaced": f" {known[1:]}",
        "number": 1,
    }
    for name, value in cases.items():
        bad(
            f"content_{name}", "corrupt", digest, small(content=True, edit=change("tensors.0.content", value))
        )
    bad("content_of_index_upper", "corrupt", digest, small(content=True, edit=change("content", "F" * 64)))
    tied = Tensor("tied", [8], "u8", scheme="tied", extra={"tied_to": "weight", "content": "0" * 64})
    bad("content_of_tied", "corrupt", "not for the scheme `tied`", small(WEIGHT, tied))


def dense_order() -> None:
    """Break rules of section 5.2."""

    def ordered(
        shape: list[int], order: list[int] | None = None, sizes: list[int] | None = None, **parameters: object
    ) -> File:
        n = 1
        for dimension in shape:
            n *= dimension
        tensor = dense("weight", shape, "u8", range(n), sizes=sizes)
        if order is not None:
            tensor.streams = [*tensor.streams, Stream("channel_order", "u16", order)]
        tensor.parameters = dict(parameters)
        return small(tensor)

    nothing = "A scalar, or a tensor without elements, MUST NOT have `orientation`, `class_sizes` or `channel_order`."
    bad("dense_scalar_orientation", "corrupt", nothing, ordered([], orientation="rows"))
    bad("dense_scalar_classes", "corrupt", nothing, ordered([], class_sizes=[1]))
    bad("dense_nothing_order", "corrupt", nothing, ordered([0, 3], []))
    orientation = "optional: as in 5.3, with the matrix of 5.1; `rows` where it is left out"
    bad("dense_orientation_word", "corrupt", orientation, ordered([2, 4], orientation="column"))
    bad("dense_orientation_null", "corrupt", orientation, ordered([2, 4], orientation=None))
    order = "With `channel_order` o, channel `k` of the stream is channel `o[k]`; o MUST be a permutation."
    bad("dense_order_twice", "corrupt", order, ordered([2, 4], [1, 1]))
    bad("dense_order_past", "corrupt", order, ordered([2, 4], [0, 1, 2, 4], orientation="columns"))
    bad("dense_order_of_rows", "corrupt", N, ordered([2, 4], [0, 1, 2, 3]))
    classes = "it MUST add up to the number of channels, and no chunk holds channels of two classes."
    bad("dense_classes_sum", "corrupt", classes, ordered([2, 4], class_sizes=[1]))
    bad("dense_classes_one_chunk", "corrupt", classes, ordered([2, 4], class_sizes=[1, 1]))
    bad(
        "dense_classes_of_rows",
        "corrupt",
        classes,
        ordered([2, 4], sizes=[4, 4], class_sizes=[1, 3], orientation="columns"),
    )
    first = dense("weight", [2, 4], "u8", range(8))
    first.streams = [Stream("channel_order", "u16", [1, 0]), *first.streams]
    bad("dense_order_first", "corrupt", "in the order of the tables of section 5", small(first))


def named() -> None:
    """Break rules of section 5.8."""
    name = "at least two parts of the characters `a-z 0-9 _ -`, separated by `.`, then `/` and a version"
    for number, scheme in enumerate((
        "a.b/0", "a.b/01", "a.b/10000", "a/1", "A.b/1", "a.b/", "a.b", "a..b/1", ".b/1", "a.b/1/2", "a.b/1 ",
        "a.\u00df/1", f"{'a' * 40}.{'b' * 22}/1",
    )):  # fmt: skip
        tensor = Tensor("weight", [1], "u8", [Stream("a", "u8", [1])], scheme)
        bad(f"named_{number:02}", "corrupt", name, small(tensor, required=1 << FEATURES["named_schemes"]))

    def with_stream(case: str, clause: str, stream: Stream, dtype: str = "u8") -> None:
        bad(f"named_{case}", "corrupt", clause, small(Tensor("weight", [1], dtype, [stream], "a.b/1")))

    roles = "a role is 1 to 64 characters of `a-z 0-9 _`, but not `asset`"
    for case, role in (
        ("role_upper", "Codes"),
        ("role_empty", ""),
        ("role_long", "a" * 65),
        ("role_asset", "asset"),
    ):
        with_stream(case, roles, Stream(role, "u8", [1]))
    with_stream("dtype", "its `dtype` is one that a dense tensor may have", Stream("a", "u8", [1]), "log8")
    empty = Stream("outlier_gaps", "u8", [1], sizes=[1, 0])
    chunks = "a stream has any dtype of 3.2, any `n`, chunks of its own, and no empty chunk"
    with_stream("empty_chunk", chunks, empty)
    holder = Tensor("first", [1], "u8", [Stream("a", "u8", [1])], "a.b/1")
    sharing = Tensor("weight", [1], "u8", [Stream("a", "u8", n=1, same_as=0)], "a.b/1")
    bad("named_same_as", "corrupt", chunks, small(holder, sharing))
    twice = Tensor("weight", [1], "u8", [Stream("a", "u8", [1])] * 2, "a.b/1")
    bad("named_role_twice", "corrupt", "list of stream records, each role at most once", small(twice))
    crc = "A reader MUST check it before it hands out anything decoded from the chunk."
    stream = Stream("a", "u8", range(8), [zstd_by_hand])
    tensor = Tensor("weight", [1], "u8", [stream], "a.b/1")

    def flip(out: bytearray) -> None:
        out[64 + 20] ^= 1

    bad("named_crc", "checksum", crc, small(tensor, payload=flip))
    view = "only for the schemes uniform and grouped"
    bad("named_view", "corrupt", view, small(Tensor("weight", [1], "u8", [], "a.b/1", {}, {"view": [1]})))
    turned = Tensor("weight", [1], "u8", [], "a.b/1", {}, {"transposed": True})
    bad("named_transposed", "corrupt", "true only for the schemes uniform and grouped", small(turned))


PARTS: tuple[Callable[[], None], ...] = (features, text_and_layout, content, dense_order, named)
