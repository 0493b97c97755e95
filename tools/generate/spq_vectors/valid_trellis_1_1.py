"""The valid vectors of trellises: tiles of every cut.

Codes are made by a table of states, which FORMAT.md does not have.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from spq_vectors import encode, expected
from spq_vectors.build import Record, Stream, Tensor
from spq_vectors.encode import Rans, raw, zstd_by_hand
from spq_vectors.valid import Vector, file_1_1, flat, matrix, numbers
from spq_vectors.valid_uniform import outlier_streams, set_outliers, step

# The state after one of lowest bit s & 1, by the lowest bit of the path code.
NEXT = ((0, 1), (2, 3), (5, 4), (7, 6), (1, 0), (3, 2), (4, 5), (6, 7))


def codes_of(paths: NDArray[np.int64], begins: set[int]) -> NDArray[np.int64]:
    """Return the codes of path codes as they are stored, whose tiles begin at these rows."""
    codes = np.empty_like(paths)
    states = [0] * paths.shape[1]
    for i, row in enumerate(paths):
        for j, k in enumerate(row):
            state = 0 if i in begins else states[j]
            codes[i, j] = 2 * k + state % 2
            states[j] = NEXT[state][k % 2]
    return codes


def tiles(height: int, *parts: int) -> set[int]:
    """Return where tiles of so many rows begin in parts of so many rows each."""
    ends = np.cumsum(parts)
    return {row for end, n in zip(ends, parts, strict=True) for row in range(end - n, end, height)}


def tensor(
    name: str, shape: Sequence[int], paths: NDArray[np.int64], height: int, dtype: str, parameters: Record,
    rest: Sequence[Stream] = (), encoders: Sequence[encode.Encoder] = (raw,), sizes: Sequence[int] | None = None,
    **extra: object,
) -> Tensor:  # fmt: skip
    """Return a uniform tensor of path codes."""
    stream = Stream("codes", "i8", flat(paths), encoders, sizes)
    parameters = {"orientation": "rows", "step": step(0.25), "trellis": {"rows": height}, **parameters}
    return Tensor(name, shape, dtype, [stream, *rest], "uniform", parameters, dict(extra))


def trellis() -> Vector:
    """Path codes of tiles, classes, stacks, orders and views."""
    tensors, contents = [], {}

    def add(made: Tensor, codes: NDArray[np.int64], row_scales: expected.F32 | None = None) -> expected.F32:
        tensors.append(made)
        weights = expected.uniform(codes, 0.25, row_scales, None)
        contents[made.name] = expected.restored(weights, made.dtype)
        return weights

    for number, (height, dtype) in enumerate(
        ((16, "bf16"), (1, "f32"), (40, "f16"), (2**40, "f64"), (39, "f32"))
    ):
        paths = matrix(50 + number, 40, 7, -20, 20)
        scales = expected.bits_of([1 + 0.125 * i for i in range(40)], "f32")
        made = tensor(f"rows.{height}", [40, 7], paths, height, dtype, {}, [Stream("row_scales", "f32", scales)],
                      [Rans(), zstd_by_hand], [100, 180])  # fmt: skip
        add(made, codes_of(paths, tiles(height, 40)), expected.f32(scales))
    ends = np.array([[-64, 63, 0, -1], [63, -64, -1, 1]] * 6, np.int64)
    add(tensor("ends", [12, 4], ends, 5, "f32", {}), codes_of(ends, tiles(5, 12)))
    same = np.full((70, 33), 5, np.int64)
    add(
        tensor("constant", [70, 33], same, 32, "bf16", {}, (), [encode.constant]),
        codes_of(same, tiles(32, 70)),
    )
    line = matrix(57, 1, 30, -3, 3)
    add(tensor("line", [30], line, 4, "f32", {}), codes_of(line, {0}))

    # Rows in another order, in classes that end inside of tiles; the same path codes in other classes.
    order = [row for row in range(30) if row % 3] + [row for row in range(30) if not row % 3]
    paths = matrix(58, 30, 6, -6, 6)
    for name, sizes in (("classes", [5, 13, 12]), ("other_classes", [18, 12])):
        stored = codes_of(paths, tiles(4, *sizes))
        codes = np.empty_like(stored)
        codes[order] = stored
        chunks = [6 * size for size in sizes]
        positions, values = [[0, 7, 40], [], [59]], [[0x4280, 0xC280, 0x4000], [], [0x3F80]]
        rest = [Stream("channel_order", "u16", order), *outlier_streams(positions, values, "bf16")]
        made = tensor(name, [30, 6], paths, 4, "bf16", {"class_sizes": sizes, "outliers": {"rows_per_band": 10}},
                      rest, [Rans(), raw], [chunks[0] - 8, 8, *chunks[1:]])  # fmt: skip
        weights = add(made, codes)
        set_outliers(weights, 10, positions, [expected.f32(band, "bf16") for band in values])
        contents[name] = expected.restored(weights, "bf16")

    paths = matrix(59, 30, 6, -9, 9)
    codes = codes_of(paths, tiles(4, 10, 10, 10))
    add(tensor("stack", [3, 10, 6], paths, 4, "bf16", {}), codes)
    add(tensor("stack.classes", [3, 10, 6], paths, 4, "f32", {"class_sizes": [15, 15]}, sizes=[90, 90]),
        codes_of(paths, tiles(4, 10, 5, 5, 10)))  # fmt: skip
    add(tensor("view", [9, 20], paths, 4, "f32", {}, view=[3, 10, 6]), codes)
    add(tensor("low", [3, 10, 6], paths, 11, "f32", {}), codes_of(paths, tiles(11, 10, 10, 10)))
    mixed = numbers(60, 30, 0, 1000)
    order = sorted(range(30), key=lambda row: (mixed[row], row))
    stored, turned = codes_of(paths, tiles(5, 10, 10, 10)), np.empty_like(codes)
    turned[order] = stored
    rest = [Stream("channel_order", "u32", order)]
    add(tensor("stack.order", [3, 10, 6], paths, 5, "f32", {}, rest), turned)
    made = tensor("stack.turned", [3, 6, 10], paths, 4, "f16", {}, transposed=True)
    tensors.append(made)
    weights = expected.uniform(codes, 0.25, None, None).reshape(3, 10, 6).swapaxes(1, 2).reshape(-1, 10)
    contents["stack.turned"] = expected.restored(np.ascontiguousarray(weights), "f16")
    shows = (
        "path codes in tiles of one row, of some, of more than there are; in table classes and another order of rows, "
        "in stacks, views and transposed; the smallest and largest, constant chunks, outliers; classes in the content"
    )
    return Vector(shows, file_1_1(*tensors, content=True), contents)


MAKERS: tuple[Callable[[], Vector], ...] = (trellis,)
