"""The valid vectors of 1.1: dtypes and order of dense tensors, named schemes, content, alignment, text and windows."""

import random
import struct
from collections.abc import Sequence

import numpy as np

from spq_vectors import encode, expected
from spq_vectors.build import Record, Stream, Tensor
from spq_vectors.encode import BITS, DTYPES_1_0, Rans, constant, raw, zstd_by_hand
from spq_vectors.valid import Vector, dense, file_1_1, matrix, numbers, whole
from spq_vectors.valid_uniform import outlier_streams, step, uniform


def dense_small_floats() -> Vector:
    """Every dtype that 1.1 adds, with every pattern of bits that it has."""
    tensors, contents = [], {}
    for dtype in BITS:
        if dtype in DTYPES_1_0:
            continue
        bits = BITS[dtype]
        elements = list(range(1 << min(bits, 8)))
        if dtype == "c64":
            elements = [0, 1 << 63, 0x7F80000100000001, 0x3F800000C0000000, 0xFFFFFFFF7FC00001]
        tensors.append(dense(dtype, [len(elements)], dtype, elements))
        contents[dtype] = whole(dtype, elements)
        odd = numbers(3, 203, 0, (1 << min(bits, 8)) - 1)
        sizes = [40, 80, 83] if bits == 6 else [2, 110, 91]
        name = f"{dtype}.chunks"
        tensors.append(dense(name, [7, 29], dtype, odd, encoders=[raw, Rans(), zstd_by_hand], sizes=sizes))
        contents[name] = whole(dtype, odd)
    tensors.append(dense("scalar", [], "f4_e2m1", [9]))
    tensors.append(Tensor("tied", [16], "f4_e2m1", scheme="tied", extra={"tied_to": "f4_e2m1"}))
    contents |= {"scalar": b"\x09", "tied": contents["f4_e2m1"]}
    shows = (
        "dense f8_e8m0, f8_e4m3fnuz, f8_e5m2fnuz, f6_e2m3, f6_e3m2, f4_e2m1 and c64, chunks that end in "
        "the middle of no byte, and tensors that do"
    )
    return Vector(shows, file_1_1(*tensors), contents)


def dense_order() -> Vector:
    """Rows and columns of dense tensors in another order, in table classes."""
    generator = random.Random(11)
    rows, columns = 6, 10
    values = [generator.gauss(0, 0.02 * (1 + 9 * (k // columns % 2))) for k in range(rows * columns)]
    elements = expected.bits_of(values, "bf16")
    order = [0, 2, 4, 5, 3, 1]
    stored = [element for row in order for element in elements[row * columns : (row + 1) * columns]]
    by_rows = dense("rows", [2, 3, columns], "bf16", stored, encoders=[raw, Rans()], sizes=[30, 20, 10])
    by_rows.streams = [*by_rows.streams, Stream("channel_order", "u16", order)]
    by_rows.parameters = {"class_sizes": [3, 3]}
    blocks = [(k * k + k // 5) % 256 for k in range(8 * 5)]
    turned = [blocks[i * 5 + j] for j in (0, 3, 1, 2, 4) for i in range(8)]
    by_columns = dense("columns", [8, 5], "u8", turned, sizes=[16, 24])
    by_columns.streams = [*by_columns.streams, Stream("channel_order", "u32", [0, 3, 1, 2, 4])]
    by_columns.parameters = {"orientation": "columns", "class_sizes": [2, 3]}
    plain = dense("plain", [3, 4], "i16", [i * 4 + j for j in range(4) for i in range(3)])
    plain.parameters = {"orientation": "columns"}
    classes = dense("classes", [4], "u8", [1, 2, 3, 4])
    classes.parameters = {"class_sizes": [1]}
    contents = {"rows": whole("bf16", elements), "columns": bytes(blocks), "plain": whole("i16", range(12))}
    shows = "dense tensors with channel_order, table classes, by columns; classes alone, which set no bit"
    file = file_1_1(by_rows, by_columns, plain, classes)
    return Vector(shows, file, contents | {"classes": bytes([1, 2, 3, 4])})


def named_scheme() -> Vector:
    """Schemes that only their makers know."""
    book = Stream("codebook", "f16", [0x3C00, 0x4000], [zstd_by_hand])
    indices = Stream("outlier_gaps", "u4", numbers(1, 33, 0, 15), [Rans(), raw], [8, 25])
    odd: Record = {"group_size": "any", "supergroup": None, "levels": [1, {"a": -3}]}
    tensors = [
        Tensor(
            "lattice", [3, 11], "bf16", [book, indices], "example.e8-lattice/2", odd, {"transposed": False}
        ),
        Tensor("again", [2], "f8_e8m0", [Stream("codebook", "f8_e4m3", [1])], "a.b_c.d/9999"),
        Tensor("none", [5], "u8", [], "0._/1"),
        Tensor("tied", [3, 11], "bf16", scheme="tied", extra={"tied_to": "lattice"}),
        dense("known", [3], "u8", [1, 2, 3]),
    ]
    shows = "three named schemes, with streams and parameters of their own, that a reader passes over"
    refused = ("lattice", "again", "none", "tied")
    return Vector(shows, file_1_1(*tensors, content=True), {"known": bytes([1, 2, 3])}, refused=refused)


def content_tensors(
    encoders: Sequence[encode.Encoder], sizes: Sequence[int] | None, classes: Sequence[int]
) -> list[Tensor]:
    """Return the tensors of the two vectors with the same content."""
    codes = matrix(40, 6, 12, -8, 7)
    parameters: Record = {"step": step(0.02), "outliers": {"rows_per_band": 3}}
    parameters |= {"class_sizes": list(classes)} if classes else {}
    scales = Stream("column_scales", "f16", [0x3C00 + k for k in range(12)], encoders)
    rest = [scales, *outlier_streams([[3, 20], []], [[0x3C00, 0xBC00], []], "f16")]
    clamp: Record = {"kind": "range", "low": 0xBF800000, "high": 0x3F800000}
    first = uniform(
        "b", codes, "f16", {"dtype": "i4", "encoders": encoders, "sizes": sizes}, parameters, rest,
        activation_clamp=clamp, activation_quantization={"bits": 8, "scope": "token"},
    )  # fmt: skip
    second = uniform(
        "\u00e4", codes, "f32", {"dtype": "i8", "encoders": encoders}, {"step": step(1.0)},
        [Stream("column_scales", "f16", n=12, same_as=0)], transposed=True, view=[2, 12, 3],
    )  # fmt: skip
    second.shape = [12, 6]
    wide = dense("a", [9], "f32", expected.bits_of([1.5 * k for k in range(9)], "f32"), encoders=encoders)
    tied = Tensor("Z", [9], "f32", scheme="tied", extra={"tied_to": "a"})
    return [first, second, wide, tied, dense("none", [0], "u8", [])]


def content_contents() -> dict[str, bytes]:
    """Return what both vectors hold."""
    codes = matrix(40, 6, 12, -8, 7)
    scales = expected.f32([0x3C00 + k for k in range(12)], "f16")
    first = expected.uniform(codes, 0.02, None, scales)
    first[0, 3], first[1, 8] = 1.0, -1.0
    second = expected.uniform(codes, 1.0, None, scales).reshape(2, 3, 12).swapaxes(1, 2)
    wide = whole("f32", expected.bits_of([1.5 * k for k in range(9)], "f32"))
    return {
        "b": expected.restored(first, "f16"),
        "\u00e4": expected.restored(np.ascontiguousarray(second), "f32"),
        "a": wide, "Z": wide, "none": b"",
    }  # fmt: skip


def content() -> Vector:
    """Digests of tensors and model."""
    file = file_1_1(*content_tensors([raw], None, []), content=True)
    return Vector("content of every tensor and of the model", file, content_contents())


def content_in_other_chunks() -> Vector:
    """The same digests of the same tensors in other chunks."""
    tensors = content_tensors([zstd_by_hand, Rans()], [24, 48], [2, 4])
    file = file_1_1(*tensors, content=True, alignment=4096)
    return Vector("the same content with other codecs, chunks and table classes", file, content_contents())


def alignment_4096() -> Vector:
    """Every plane at a multiple of 4096."""
    elements = expected.bits_of([0.1 * k for k in range(200)], "bf16")
    first = dense("first", [200], "bf16", elements, encoders=[constant_or_raw], sizes=[100, 100])
    second = dense("second", [3], "u8", [7, 7, 7], encoders=[constant])
    held = [("a.txt", Stream("asset", "u8", b"a" * 10, sizes=[4, 6])), ("b.txt", Stream("asset", "u8", b""))]
    file = file_1_1(first, second, alignment=4096, chunk_alignment=4096, assets=held)
    contents = {"first": whole("bf16", elements), "second": bytes([7, 7, 7])}
    shows = "chunk_alignment 4096, in two tensors and two assets"
    return Vector(shows, file, contents, {"a.txt": b"a" * 10, "b.txt": b""})


def constant_or_raw(data: bytes) -> tuple[int, bytes]:
    """Code a plane that has one symbol."""
    return constant(data) if len(set(data)) == 1 else raw(data)


def alignment_64_said() -> Vector:
    """The default alignment, which the file says."""
    file = file_1_1(dense("weight", [3], "u8", [1, 2, 3]), chunk_alignment=64)
    return Vector(
        "chunk_alignment 64, which is what it is where it is left out", file, {"weight": bytes([1, 2, 3])}
    )


def minus_zero() -> Vector:
    """A number that two parsers could read as two."""
    plan: Record = {"rule": "speed", "target_bytes": 0, "rates": "no reader looks at them"}

    def text(whole: str) -> bytes:
        changed = whole.replace('"target_bytes":0', '"target_bytes":-0').replace("[3,3,0,", "[3,3,-0,")
        assert changed.count("-0") == 2
        return changed.encode()

    file = file_1_1(dense("weight", [3], "u8", [1, 2, 3]), text=text, extra={"partial_plan": plan})
    return Vector("-0 in the index, a file of 1.0; rates are not checked", file, {"weight": bytes([1, 2, 3])})


def windowed_frame(data: bytes, log2: int) -> bytes:
    """Return a zstd frame of one raw block whose header asks for a window of 2^log2 bytes."""
    head = bytes.fromhex("28b52ffd") + bytes([0x80, (log2 - 10) << 3]) + struct.pack("<I", len(data))
    return head + struct.pack("<I", 1 | len(data) << 3)[:3] + data


def window_8_mib() -> Vector:
    """The largest window that any frame may ask for."""

    def chunk(data: bytes) -> tuple[int, bytes]:
        return 1, encode.zstd_chunk([windowed_frame(data, 23)])

    tensor = dense("weight", [9], "u8", range(9), encoders=[chunk])
    file = file_1_1(tensor, compress=lambda text: windowed_frame(text, 23))
    return Vector("zstd frames of chunk and index with a window of 8 MiB", file, {"weight": bytes(range(9))})


MAKERS = (
    dense_small_floats,
    dense_order,
    named_scheme,
    content,
    content_in_other_chunks,
    alignment_4096,
    alignment_64_said,
    minus_zero,
    window_8_mib,
)
