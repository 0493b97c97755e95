"""FORMAT.md 5: from the streams of a tensor to its elements."""

from math import ldexp

from spq_reference.errors import Unsupported, require
from spq_reference.numbers import (
    SMALL_FLOATS,
    bits_from_float,
    element_bytes,
    fl,
    float_from_bits,
    small_float,
)
from spq_reference.records import Tensor
from spq_reference.schemes import FLOATS, ceil_div, lines_of, matrix_shape, turned_shape
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
    if tensor.is_named:
        # > it MUST report *unsupported* when it is asked for the tensor's elements, or for those of a tensor that is
        # > tied to it.
        raise Unsupported(f"{tensor.name}: scheme {tensor.scheme}")
    if tensor.scheme == "dense":
        # > | `values` | the tensor's dtype | the elements, by orientation |
        if tensor.shape == [] or 0 in tensor.shape:
            return element_bytes(tensor.dtype, flat(streams, "values"))
        values = ordered(tensor, streams, "values", *matrix_shape(tensor))
        return element_bytes(tensor.dtype, [value for row in values for value in row])
    rows, columns = matrix_shape(tensor)
    codes = ordered(tensor, streams, "codes", rows, columns)
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
    bits = [bits_from_float(weight, tensor.dtype) for row in turned_back(tensor, weights) for weight in row]
    return element_bytes(tensor.dtype, bits)


def turned_back(tensor: Tensor, weights: list[list[float]]) -> list[list[float]]:
    """Return rows of weights in the tensor's own order."""
    if not tensor.transposed:
        return weights
    # > one of shape `[..., a, b]` is the matrix of a tensor of shape `[..., b, a]`.
    b, a = turned_shape(tensor)[-2:]
    stacked = range(0, len(weights), b or 1)
    return [[weights[first + i][j] for i in range(b)] for first in stacked for j in range(a)]


def ordered(tensor: Tensor, streams: Streams, role: str, rows: int, columns: int) -> list[list[int]]:
    """Return codes or values as a matrix, with orientation and channel order undone."""
    codes = flat(streams, role)
    if tensor.scheme == "uniform" and "trellis" in tensor.parameters:
        codes = codes_of_paths(tensor, codes, rows, columns)
    by_rows = tensor.parameters.get("orientation", "rows") == "rows"
    # > The channels of a `codes` or `values` stream are rows (orientation `rows`) or columns (orientation `columns`;
    # > stored columns where there is a `permutation`). With `channel_order` o, channel `k` of the stream is channel
    # > `o[k]`; o MUST be a permutation.
    channels, length = (rows, columns) if by_rows else (columns, rows)
    o = flat(streams, "channel_order") if "channel_order" in streams else list(range(channels))
    require(sorted(o) == list(range(channels)), f"{tensor.name}: channel_order")
    matrix = [[0] * columns for _ in range(rows)]
    for k in range(channels):
        for i in range(length):
            row, column = (o[k], i) if by_rows else (i, o[k])
            matrix[row][column] = codes[k * length + i]
    return matrix


def codes_of_paths(tensor: Tensor, paths: list[int], rows: int, columns: int) -> list[int]:
    """Return the codes, row by row as they are stored, of path codes (5.3)."""
    # > A path code MUST be from -64 to 63.
    require(all(-64 <= k <= 63 for k in paths), f"{tensor.name}: a path code passes 63")
    # > The rows, as they are stored, are cut into tiles of T rows. Tiles begin anew at each table class (5.6), and at
    # > each stored row whose number is a multiple of `h` (5.5); the last one of each holds the rest.
    tall = integer(mapping(tensor.parameters["trellis"]).get("rows"), 1)
    shape = turned_shape(tensor)
    h = 1 if len(shape) < 2 else shape[-2]
    begins, row = set(range(0, rows, h or 1)), 0
    for size in array(tensor.parameters.get("class_sizes", [])):
        begins.add(row)
        row += integer(size, 1)
    codes: list[int] = []
    passed = 0
    for row in range(rows):
        passed = 0 if row in begins or passed == tall else passed
        # > where a code before the tile's first row is 0.
        one, two, three = (
            codes[-back * columns :][:columns] if passed >= back else [0] * columns for back in (1, 2, 3)
        )
        # > `code[r] = 2 * k[r] + (floor(code[r - 1] / 2) + code[r - 2] + code[r - 3]) mod 2`
        codes += [
            2 * paths[row * columns + j] + (one[j] // 2 + two[j] + three[j]) % 2 for j in range(columns)
        ]
        passed += 1
    return codes


def floats(tensor: Tensor, streams: Streams, role: str) -> list[float]:
    """Return the numbers that the elements of a stream stand for."""
    dtype = tensor.streams[role].dtype
    elements = flat(streams, role)
    # > the value of a code `c` is level `c`; `scale_codes` with `scale_levels` likewise, and so on.
    levels = {"codes": "levels", "scale_codes": "scale_levels"}.get(role, role.replace("_codes", "_levels"))
    if levels != role and levels in streams:
        values = floats(tensor, streams, levels)
        return [values[element] for element in elements]
    # > Integers, and stored floats of less than 32 bits, are converted to binary32 first, which is exact; subnormal
    # > numbers and negative zero are kept.
    # > The value of a code is the number that its dtype says.
    if dtype in FLOATS:
        return [float_from_bits(element, dtype) for element in elements]
    if dtype in SMALL_FLOATS:
        return [small_float(element, dtype) for element in elements]
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


def group_numbers(tensor: Tensor, streams: Streams, name: str, lines: int, groups: int) -> list[float]:
    """Return scales, zero points or minimums, lines * groups of them, from either level (5.5)."""
    if f"{name}s" in streams:
        return floats(tensor, streams, f"{name}s")
    # > A supergroup is a tile of `supergroup.rows` lines by `supergroup.groups` groups, cut short at the edges;
    # > `superrows = ceil(lines / R)`, `supercolumns = ceil(groups / G)`.
    supergroup = mapping(tensor.parameters["supergroup"])
    R, G = integer(supergroup["rows"]), integer(supergroup["groups"])
    supercolumns = ceil_div(groups, G)
    codes = floats(tensor, streams, f"{name}_codes")
    steps = floats(tensor, streams, f"{name}_steps")
    zeros = floats(tensor, streams, f"{name}_zeros") if f"{name}_zeros" in streams else None
    minimums = floats(tensor, streams, f"{name}_minimums") if f"{name}_minimums" in streams else None
    found = []
    for line in range(lines):
        for g in range(groups):
            # > With `t` the tile of group (l, g):
            t = line // R * supercolumns + g // G
            code = codes[line * groups + g]
            if zeros is not None:
                # > - zeros: `scale[l, g] = fl(scale_steps[t] * fl(scale_code[l, g] - scale_zeros[t]))`
                found.append(fl(steps[t] * fl(code - zeros[t])))
            elif minimums is not None:
                # > - minimums: `scale[l, g] = fl(fl(scale_steps[t] * scale_code[l, g]) - scale_minimums[t])`
                found.append(fl(fl(steps[t] * code) - minimums[t]))
            else:
                # > - neither: `scale[l, g] = fl(scale_steps[t] * scale_code[l, g])`
                found.append(fl(steps[t] * code))
    return found


def grouped_weights(
    tensor: Tensor, streams: Streams, codes: list[list[int]], rows: int, columns: int
) -> list[list[float]]:
    """Return the matrix of 5.5, its columns in stored order."""
    # > A group is `group_size` consecutive stored columns of one row, the last one holding the rest; `groups =
    # > ceil(columns / group_size)`. With `group_rows` it is a tile of `group_rows` rows by `group_size` stored columns,
    # > cut short at the edges.
    group_size = integer(tensor.parameters["group_size"])
    groups = ceil_div(columns, group_size)
    lines, line_of_row = lines_of(tensor)
    values = floats(tensor, {**streams, "codes": codes}, "codes")
    scale = group_numbers(tensor, streams, "scale", lines, groups)
    has = {name: bool({f"{name}s", f"{name}_codes"} & set(streams)) for name in ("zero_point", "minimum")}
    zero_point = group_numbers(tensor, streams, "zero_point", lines, groups) if has["zero_point"] else []
    minimum = group_numbers(tensor, streams, "minimum", lines, groups) if has["minimum"] else []
    weights = [[0.0] * columns for _ in range(rows)]
    for i in range(rows):
        for k in range(columns):
            # > With `l` the line of row `i` and `g` the group of stored column `k`:
            g = line_of_row[i] * groups + k // group_size
            code = values[i * columns + k]
            if has["zero_point"]:
                # > - zero points: `weight[i, k] = fl(scale[l, g] * fl(code[i, k] - zero_point[l, g]))`
                weights[i][k] = fl(scale[g] * fl(code - zero_point[g]))
            elif has["minimum"]:
                # > - minimums: `weight[i, k] = fl(fl(scale[l, g] * code[i, k]) - minimum[l, g])`
                weights[i][k] = fl(fl(scale[g] * code) - minimum[g])
            else:
                # > - neither: `weight[i, k] = fl(scale[l, g] * code[i, k])`
                weights[i][k] = fl(scale[g] * code)
    # > Then outliers replace weights.
    return weights
