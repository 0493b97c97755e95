"""FORMAT.md 5: from the streams of a tensor to its elements."""

from math import ldexp

from spq_reference.errors import require
from spq_reference.numbers import bits_from_float, element_bytes, fl, float_from_bits
from spq_reference.records import Tensor
from spq_reference.schemes import FLOATS, ceil_div, matrix_shape
from spq_reference.text import array, integer, mapping

# T of 5.7: 2^(k/16) rounded to binary32.
T = (
    0x3F800000, 0x3F85AAC3, 0x3F8B95C2, 0x3F91C3D3, 0x3F9837F0, 0x3F9EF532, 0x3FA5FED7, 0x3FAD583F,
    0x3FB504F3, 0x3FBD08A4, 0x3FC5672A, 0x3FCE248C, 0x3FD744FD, 0x3FE0CCDF, 0x3FEAC0C7, 0x3FF5257D,
)  # fmt: skip

Streams = dict[str, list[list[int]]]  # for each role, for each chunk, the elements: floats as their bits


def flat(streams: Streams, role: str) -> list[int]:
    """Return the elements of a stream."""
    return [element for chunk in streams[role] for element in chunk]


def restore(tensor: Tensor, streams: Streams) -> bytes:
    """Return the elements of a tensor that is not tied, in row-major order, little-endian."""
    if tensor.scheme == "dense":
        # > | `values` | the tensor's dtype | the elements in row-major order |
        return element_bytes(tensor.dtype, flat(streams, "values"))
    rows, columns = matrix_shape(tensor)
    codes = ordered_codes(tensor, streams, rows, columns)
    if tensor.scheme == "uniform":
        weights = uniform_weights(tensor, streams, codes, columns)
    else:
        weights = grouped_weights(tensor, streams, codes, rows, columns)
    if "outliers" in tensor.parameters:
        place_outliers(tensor, streams, weights, rows, columns)
    if "permutation" in streams:
        # > With `permutation` p, stored column `k` is column `p[k]` of the matrix; p MUST be a permutation of the
        # > columns.
        p = flat(streams, "permutation")
        require(sorted(p) == list(range(columns)), f"{tensor.name}: permutation")
        stored, weights = weights, [[0.0] * columns for _ in range(rows)]
        for i in range(rows):
            for k in range(columns):
                weights[i][p[k]] = stored[i][k]
    if tensor.transposed:
        weights = [[weights[i][j] for i in range(rows)] for j in range(columns)]
    bits = [bits_from_float(weight, tensor.dtype) for row in weights for weight in row]
    return element_bytes(tensor.dtype, bits)


def ordered_codes(tensor: Tensor, streams: Streams, rows: int, columns: int) -> list[list[int]]:
    """Return the codes as a matrix, with orientation and channel order undone."""
    codes = flat(streams, "codes")
    by_rows = tensor.parameters["orientation"] == "rows"
    # > The channels of a `codes` stream are rows (orientation `rows`) or columns (orientation `columns`; stored columns
    # > where there is a `permutation`). With `channel_order` o, channel `k` of the stream is channel `o[k]`; o MUST be
    # > a permutation.
    channels, length = (rows, columns) if by_rows else (columns, rows)
    o = flat(streams, "channel_order") if "channel_order" in streams else list(range(channels))
    require(sorted(o) == list(range(channels)), f"{tensor.name}: channel_order")
    matrix = [[0] * columns for _ in range(rows)]
    for k in range(channels):
        for i in range(length):
            row, column = (o[k], i) if by_rows else (i, o[k])
            matrix[row][column] = codes[k * length + i]
    return matrix


def floats(tensor: Tensor, streams: Streams, role: str) -> list[float]:
    """Return the numbers that the elements of a stream stand for."""
    # > Integers, and stored floats of less than 32 bits, are converted to binary32 first, which is exact;
    dtype = tensor.streams[role].dtype
    elements = flat(streams, role)
    if dtype in FLOATS:
        return [float_from_bits(element, dtype) for element in elements]
    if dtype == "log8":
        octave_steps, bias = (
            integer(value, -1024) for value in array(tensor.parameters[f"{role[:-1]}_log8"])
        )
        return [log8(q, octave_steps, bias) for q in elements]
    return [float(element) for element in elements]


def log8(q: int, octave_steps: int, bias: int) -> float:
    """Return the number that an element of dtype log8 stands for."""
    # > An element `q` of dtype log8 is an unsigned byte; it stands for `T[(v mod octave_steps) * (16 / octave_steps)] *
    # > 2^floor(v / octave_steps)` with `v = q + bias`, where `octave_steps` is 8 or 16,
    v = q + bias
    exponent = v // octave_steps
    # > The result MUST be a normal binary32 number for every `q` of the stream.
    require(-126 <= exponent <= 127, "log8: a scale out of range")
    return ldexp(float_from_bits(T[v % octave_steps * (16 // octave_steps)]), exponent)


def uniform_weights(
    tensor: Tensor, streams: Streams, codes: list[list[int]], columns: int
) -> list[list[float]]:
    """Return the matrix of 5.3."""
    # > `weight[i, j] = fl(fl(code[i, j] * fl(step * row_scale[i])) * column_scale[j])`; the multiplication by a scale
    # > that is absent is left out.
    step = float_from_bits(integer(tensor.parameters["step"]))
    row_steps = [step] * len(codes)
    if "row_scales" in streams:
        row_steps = [fl(step * row_scale) for row_scale in floats(tensor, streams, "row_scales")]
    weights = [[fl(code * row_steps[i]) for code in row] for i, row in enumerate(codes)]
    if "column_scales" in streams:
        scales = floats(tensor, streams, "column_scales")
        weights = [[fl(row[j] * scales[j]) for j in range(columns)] for row in weights]
    return weights


def place_outliers(
    tensor: Tensor, streams: Streams, weights: list[list[float]], rows: int, columns: int
) -> None:
    """Replace weights by outliers (5.4)."""
    rows_per_band = integer(mapping(tensor.parameters["outliers"])["rows_per_band"])
    dtype = tensor.streams["outlier_values"].dtype
    for band, (gaps, bits) in enumerate(zip(streams["outlier_gaps"], streams["outlier_values"], strict=True)):
        # > An outlier replaces the weight at (row, column) of the matrix, in stored column order where there is a
        # > permutation. In a band with first row `r`, the position of (row, column) is `(row - r) * columns + column`.
        # > Start with position -1. A gap of 255 adds 255 to the position. Any other gap `g` adds `g + 1`, and an
        # > outlier lies at the position then reached; it takes the next value of the band. The last gap of a band MUST
        # > NOT be 255, every position that is reached MUST be less than the band's rows times `columns`, and the number
        # > of gaps other than 255 MUST equal the number of the band's values.
        r = band * rows_per_band
        end = min(rows_per_band, rows - r) * columns
        require(not gaps or gaps[-1] != 255, f"{tensor.name}: the last gap of a band is 255")
        require(len(gaps) - gaps.count(255) == len(bits), f"{tensor.name}: number of a band's outliers")
        values = iter(bits)
        position = -1
        for gap in gaps:
            position += 255 if gap == 255 else gap + 1
            require(position < end, f"{tensor.name}: an outlier past its band")
            if gap != 255:
                weights[r + position // columns][position % columns] = float_from_bits(next(values), dtype)


def second_level(tensor: Tensor, streams: Streams, name: str, rows: int, groups: int) -> list[float]:
    """Return scales, zero points or minimums, rows * groups of them, from either level (5.5)."""
    if f"{name}s" in streams:
        return floats(tensor, streams, f"{name}s")
    # > A supergroup is a tile of `supergroup.rows` rows by `supergroup.groups` groups, cut short at the edges;
    # > `superrows = ceil(rows / R)`, `supercolumns = ceil(groups / G)`.
    supergroup = mapping(tensor.parameters["supergroup"])
    R, G = integer(supergroup["rows"]), integer(supergroup["groups"])
    supercolumns = ceil_div(groups, G)
    codes = floats(tensor, streams, f"{name}_codes")
    steps = floats(tensor, streams, f"{name}_steps")
    zeros = floats(tensor, streams, f"{name}_zeros") if f"{name}_zeros" in streams else None
    found = []
    for i in range(rows):
        for g in range(groups):
            # > With `t` the tile of group (i, g):
            t = i // R * supercolumns + g // G
            # > `scale[i, g] = fl(scale_steps[t] * fl(scale_codes[i, g] - scale_zeros[t]))`; without `scale_zeros` the
            # > subtraction is left out. Zero points and minimums likewise.
            code = codes[i * groups + g]
            found.append(fl(steps[t] * (code if zeros is None else fl(code - zeros[t]))))
    return found


def grouped_weights(
    tensor: Tensor, streams: Streams, codes: list[list[int]], rows: int, columns: int
) -> list[list[float]]:
    """Return the matrix of 5.5, its columns in stored order."""
    # > A group is `group_size` consecutive stored columns of one row, the last one holding the rest; `groups =
    # > ceil(columns / group_size)`.
    group_size = integer(tensor.parameters["group_size"])
    groups = ceil_div(columns, group_size)
    scale = second_level(tensor, streams, "scale", rows, groups)
    has = {name: bool({f"{name}s", f"{name}_codes"} & set(streams)) for name in ("zero_point", "minimum")}
    zero_point = second_level(tensor, streams, "zero_point", rows, groups) if has["zero_point"] else []
    minimum = second_level(tensor, streams, "minimum", rows, groups) if has["minimum"] else []
    weights = [[0.0] * columns for _ in range(rows)]
    for i in range(rows):
        for k in range(columns):
            # > With `g` the group of stored column `k`:
            g = i * groups + k // group_size
            code = codes[i][k]
            if has["zero_point"]:
                # > - zero points: `weight[i, k] = fl(scale[i, g] * fl(code[i, k] - zero_point[i, g]))`
                weights[i][k] = fl(scale[g] * fl(code - zero_point[g]))
            elif has["minimum"]:
                # > - minimums: `weight[i, k] = fl(fl(scale[i, g] * code[i, k]) - minimum[i, g])`
                weights[i][k] = fl(fl(scale[g] * code) - minimum[g])
            else:
                # > - neither: `weight[i, k] = fl(scale[i, g] * code[i, k])`
                weights[i][k] = fl(scale[g] * code)
    # > Then outliers replace weights.
    return weights
