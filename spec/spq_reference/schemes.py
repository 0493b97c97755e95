"""FORMAT.md 5: what the tables of each scheme require of a tensor record, before any chunk is decoded."""

import re
from math import prod

from spq_reference.errors import require, within
from spq_reference.numbers import BITS, SMALL_FLOATS
from spq_reference.records import OUTLIER_ROLES, Tensor
from spq_reference.text import array, integer, mapping, word

FLOATS = ("f32", "f16", "bf16")
UNSIGNED = ("u2", "u4", "u8")
SECOND_LEVEL = ("u2", "u4", "u8", "i8")
ORDERS = ("u16", "u32")
SMALL_SCALES = ("f8_e4m3", "f8_e8m0")
SMALL_CODES = ("f4_e2m1", "f8_e4m3", "f8_e5m2", "f8_e4m3fnuz", "f8_e5m2fnuz")
# > `dtype` of the tensor is any dtype of 8 bits or more but log8. It may also be a float of less than 8.
DENSE = tuple(dtype for dtype in BITS if dtype in SMALL_FLOATS or (BITS[dtype] >= 8 and dtype != "log8"))

# A role's allowed dtypes and its number of elements, in the order of a table of section 5.
Table = dict[str, tuple[tuple[str, ...], int]]


def ceil_div(a: int, b: int) -> int:
    """Return the quotient rounded up."""
    # > `ceil(a / b)` is the quotient rounded up.
    return -(-a // b)


def turned_shape(tensor: Tensor) -> list[int]:
    """Return the dimensions of the matrix, or of the matrices that are stacked (5.1)."""
    # > With `view`, all this holds for a tensor of that shape with the same elements in row-major order; the product of
    # > the view MUST equal that of the shape.
    shape = tensor.shape
    if tensor.view is not None:
        require(prod(tensor.view) == prod(shape), f"{tensor.name}: a view of other elements")
        shape = tensor.view
    # > With `transposed`, the last two dimensions change places first: the tensor MUST have at least two, and one of
    # > shape `[..., a, b]` is the matrix of a tensor of shape `[..., b, a]`.
    if tensor.transposed:
        require(len(shape) >= 2, f"{tensor.name}: transposed, but of one dimension")
        return [*shape[:-2], shape[-1], shape[-2]]
    return shape


def matrix_shape(tensor: Tensor) -> tuple[int, int]:
    """Return rows and columns of the matrix (5.1)."""
    # > The schemes uniform and grouped describe a matrix of `rows` by `columns`: a tensor of shape `[..., c]` is the
    # > matrix with `columns = c` and `rows` the product of the other dimensions (1 for a tensor of one dimension).
    shape = turned_shape(tensor)
    return prod(shape[:-1]), shape[-1]


def check_tensor(tensor: Tensor, used: set[str]) -> None:
    """Check parameters and streams of a tensor against its scheme's tables."""
    if tensor.scheme == "tied":
        return
    # > `stacked_transposed` for `transposed` over more than two dimensions, those of the view where there is one;
    if tensor.transposed and len(turned_shape(tensor)) > 2:
        used.add("stacked_transposed")
    if tensor.is_named:
        check_named(tensor)
        return
    if tensor.scheme == "dense":
        check_dense(tensor, used)
    else:
        # > A scalar, and a tensor without elements, MUST be dense.
        require(len(tensor.shape) > 0, f"{tensor.name}: a scalar, not dense")
        require(prod(tensor.shape) > 0, f"{tensor.name}: nothing, not dense")
        # > The `dtype` of such a tensor is f64, f32, f16 or bf16.
        word(tensor.dtype, ("f64", *FLOATS))
        rows, columns = matrix_shape(tensor)
        # > | `orientation` | `rows`: codes in row-major order; `columns`: in column-major order |
        orientation = word(tensor.parameters.get("orientation"), ("rows", "columns"))
        channels = rows if orientation == "rows" else columns
        if tensor.scheme == "uniform":
            check_uniform(tensor, rows, columns, channels)
            check_trellis(tensor, used)
        else:
            check_grouped(tensor, rows, columns, channels)
        check_classes(tensor, "codes", rows, columns, orientation)
        check_outliers(tensor, rows, columns)
    used.update(features(tensor))


def features(tensor: Tensor) -> set[str]:
    """Return the features of the parameters and roles that a tensor uses."""
    # > `supergroups` and `outliers` for a tensor with the parameter `supergroup` or `outliers`,
    of_parameter = {"outliers": "outliers", "supergroup": "supergroups", "group_rows": "group_rows"}
    used = {feature for key, feature in of_parameter.items() if key in tensor.parameters}
    for role in tensor.streams:
        # > `permutation` and `channel_order` for a stream with that role,
        used.update({role} & {"permutation", "channel_order"})
        # > `levels` and `supergroup_minimums` for a stream with the role `levels` or one of the roles `_levels` and
        # > `_minimums` of 5.5;
        used.update({"levels"} if role.endswith("levels") else set())
        used.update({"supergroup_minimums"} if role.endswith("_minimums") else set())
    return used


def check_named(tensor: Tensor) -> None:
    """Check what this format says of another maker's scheme (5.8)."""
    # > its `dtype` is one that a dense tensor may have; a role is 1 to 64 characters of `a-z 0-9 _`, but not `asset`; a
    # > stream has any dtype of 3.2, any `n`, chunks of its own, and no empty chunk.
    word(tensor.dtype, DENSE)
    for role, stream in tensor.streams.items():
        require(re.fullmatch(r"[a-z0-9_]{1,64}", role) is not None, f"{tensor.name}: the role {role!r:.80}")
        require(role != "asset", f"{tensor.name}: a stream asset")
        require(stream.same_as is None, f"{tensor.name}: a shared stream")
        require(all(n > 0 for n, _ in stream.chunks), f"{tensor.name}: an empty chunk")


def check_dense(tensor: Tensor, used: set[str]) -> None:
    """Check a record against the tables of 5.2."""
    word(tensor.dtype, DENSE)
    # > The number of elements is the product of the shape, 1 for a scalar.
    n = prod(tensor.shape)
    ordered = {"orientation", "class_sizes"} & set(tensor.parameters) | {"channel_order"} & set(
        tensor.streams
    )
    if ordered - {"class_sizes"}:
        # > `dense_order` for a dense tensor with the parameter `orientation` or a stream `channel_order`;
        used.add("dense_order")
    if len(tensor.shape) == 0 or n == 0:
        # > A scalar, or a tensor without elements, MUST NOT have `orientation`, `class_sizes` or `channel_order`.
        require(not ordered, f"{tensor.name}: {', '.join(ordered)} of a scalar or of nothing")
        rows, columns = 1, n
    else:
        rows, columns = matrix_shape(tensor)
    # > | `orientation` | optional: as in 5.3, with the matrix of 5.1; `rows` where it is left out |
    orientation = word(tensor.parameters.get("orientation", "rows"), ("rows", "columns"))
    channels = rows if orientation == "rows" else columns
    table: Table = {"values": ((tensor.dtype,), n), "channel_order": (ORDERS, channels)}
    check_streams(tensor, table, ("values",))
    check_classes(tensor, "values", rows, columns, orientation)


def check_streams(tensor: Tensor, table: Table, due: tuple[str, ...]) -> None:
    """Check roles, their order, dtypes and numbers of elements; the roles in `due` must be there."""
    for role, stream in tensor.streams.items():
        # > | `role` | string, one of the scheme's (section 5) |
        require(role in table, f"{tensor.name}: {tensor.scheme} has no stream {role}")
        dtypes, n = table[role]
        # > | `dtype` | element type, one of those that the tables of section 5 allow for the role |
        require(stream.dtype in dtypes, f"{tensor.name}: {role} of dtype {stream.dtype}")
        # > | `n` | number of elements; it MUST equal the number that section 5 gives |
        require(n in (stream.n, -1), f"{tensor.name}: {role} has {stream.n} elements, {n} are due")
    in_order = [role for role in table if role in tensor.streams]
    require(list(tensor.streams) == in_order, f"{tensor.name}: order of the streams")
    for role in due:
        require(role in tensor.streams, f"{tensor.name}: no stream {role}")


# Sections 5.3 and 5.5 leave the number of an outlier stream's elements to its bands: -1.
OUTLIERS: Table = {"outlier_gaps": (("u8",), -1), "outlier_values": (FLOATS, -1)}


def check_uniform(tensor: Tensor, rows: int, columns: int, channels: int) -> None:
    """Check a record against the tables of 5.3."""
    # > | `step` | binary32 bits, finite, greater than 0 |
    integer(tensor.parameters.get("step"), 1, 0x7F7FFFFF)
    table: Table = {
        "codes": (("i2", "i4", "i8"), rows * columns),
        "channel_order": (ORDERS, channels),
        "row_scales": ((*FLOATS, "log8"), rows),
        "column_scales": ((*FLOATS, "log8"), columns),
        **OUTLIERS,
    }
    check_streams(tensor, table, ("codes",))
    for role in ("row_scales", "column_scales"):
        # > | `row_scale_log8`, `column_scale_log8` | `[octave_steps, bias]`; there when the scale stream's dtype is
        # > log8 (5.7), and only then |
        key = f"{role[:-1]}_log8"
        is_log8 = role in tensor.streams and tensor.streams[role].dtype == "log8"
        require((key in tensor.parameters) == is_log8, f"{tensor.name}: {key}")
        if is_log8:
            # > where `octave_steps` is 8 or 16, `bias` is an integer from -1024 to 1024,
            pair = array(tensor.parameters[key])
            require(len(pair) == 2 and integer(pair[0]) in (8, 16), f"{tensor.name}: {key}")
            integer(pair[1], -1024, 1024)


def check_trellis(tensor: Tensor, used: set[str]) -> None:
    """Check that a tensor with a trellis may have one (5.3)."""
    if "trellis" not in tensor.parameters:
        return
    # > `trellis` for a uniform tensor with that parameter;
    used.add("trellis")
    # > | `trellis` | optional `{"rows": T}`, T at least 1 |
    integer(mapping(tensor.parameters["trellis"]).get("rows"), 1)
    # > With `trellis` the orientation MUST be `rows`, and the stream `codes` is of i8 and holds *path codes* instead.
    require(tensor.parameters["orientation"] == "rows", f"{tensor.name}: a trellis by columns")
    require(tensor.streams["codes"].dtype == "i8", f"{tensor.name}: a trellis of other codes than i8")


def lines_of(tensor: Tensor) -> tuple[int, list[int]]:
    """Return the number of lines of groups, and the line of each row."""
    # > Tiles begin anew in each of the matrices that a tensor of more than two dimensions stacks: with `h` the last
    # > dimension but one (1 where there is none), after view and transposition, row `i` lies in the *line* `floor(i /
    # > h) * ceil(h / group_rows) + floor((i mod h) / group_rows)` of groups, and there are `lines = rows / h * ceil(h /
    # > group_rows)`.
    group_rows = integer(tensor.parameters.get("group_rows", 1), 1)
    shape = turned_shape(tensor)
    rows, h = prod(shape[:-1]), 1 if len(shape) < 2 else shape[-2]
    tall = ceil_div(h, group_rows)
    return rows // (h or 1) * tall, [i // h * tall + i % h // group_rows for i in range(rows)]


def check_grouped(tensor: Tensor, rows: int, columns: int, channels: int) -> None:
    """Check a record against the tables of 5.5."""
    parameters, streams = tensor.parameters, tensor.streams
    # > `groups = ceil(columns / group_size)`.
    groups = ceil_div(columns, integer(parameters.get("group_size"), 1))
    # > | `group_rows` | optional integer, at least 1; 1 where it is left out |
    lines, _ = lines_of(tensor)
    integer(parameters.get("bits"))
    # > `supergroup` MUST be there when a `_codes` stream of the second level is, and only then.
    coded = any(role.endswith("_codes") for role in streams)
    require(("supergroup" in parameters) == coded, f"{tensor.name}: supergroup")
    tiles = 0
    if coded:
        # > | `supergroup` | optional `{"rows": R, "groups": G}`, at least 1 each |
        supergroup = mapping(parameters["supergroup"])
        # > `superrows = ceil(lines / R)`, `supercolumns = ceil(groups / G)`.
        superrows = ceil_div(lines, integer(supergroup.get("rows"), 1))
        tiles = superrows * ceil_div(groups, integer(supergroup.get("groups"), 1))
    table: Table = {
        "codes": (("u2", "u4", "u8", "i2", "i4", "i8", *SMALL_CODES), rows * columns),
        "channel_order": (ORDERS, channels),
        "permutation": (ORDERS, columns),
        "levels": (FLOATS, n_levels(tensor, "codes")),
    }
    for name in ("scale", "zero_point", "minimum"):
        plural = f"{name}s"
        own = {"scale": SMALL_SCALES, "zero_point": UNSIGNED, "minimum": ()}[name]
        table[plural] = ((*FLOATS, *own), lines * groups)
        own = SMALL_SCALES if name == "scale" else ()
        table[f"{name}_codes"] = ((*SECOND_LEVEL, *own), lines * groups)
        table[f"{name}_levels"] = (FLOATS, n_levels(tensor, f"{name}_codes"))
        table[f"{name}_steps"] = (FLOATS, tiles)
        table[f"{name}_zeros"] = (FLOATS, tiles)
        table[f"{name}_minimums"] = (FLOATS, tiles)
        check_level_two(tensor, name)
    check_streams(tensor, {**table, **OUTLIERS}, ("codes",))
    present = [
        name for name in ("scale", "zero_point", "minimum") if {f"{name}s", f"{name}_codes"} & set(streams)
    ]
    require("scale" in present, f"{tensor.name}: no scales")
    # > A tensor MUST NOT have both zero points and minimums.
    require(len(present) < 3, f"{tensor.name}: zero points and minimums")


def check_level_two(tensor: Tensor, name: str) -> None:
    """Check which streams of scale, zero point or minimum go with each other."""
    has = {
        part
        for part in ("s", "_codes", "_levels", "_steps", "_zeros", "_minimums")
        if name + part in tensor.streams
    }
    # > The scale is given either by `scales`, or by `scale_codes` and `scale_steps`; the zero point or the minimum
    # > likewise, or neither is there.
    require(has <= {"s"} or {"_codes", "_steps"} <= has - {"s"} == has, f"{tensor.name}: streams of {name}")
    # > A tensor MUST NOT have both `scale_zeros` and `scale_minimums`. All this holds for zero
    # > points and minimums likewise.
    require(not {"_zeros", "_minimums"} <= has, f"{tensor.name}: {name}_zeros and {name}_minimums")


def n_levels(tensor: Tensor, codes: str) -> int:
    """Return how many levels some codes have: 0 where there is no such table."""
    levels = "levels" if codes == "codes" else codes.replace("codes", "levels")
    if codes not in tensor.streams or levels not in tensor.streams:
        return 0
    # > Where there are levels, codes MUST be u2, u4 or u8, and the value of a code `c` is level `c`; `scale_codes` with
    # > `scale_levels` likewise, and so on.
    dtype = tensor.streams[codes].dtype
    require(dtype in UNSIGNED, f"{tensor.name}: levels of {codes} of dtype {dtype}")
    # > | `levels` | f32, f16, bf16; optional | 2^(bits of a code) |
    return 1 << BITS[dtype]


def check_classes(tensor: Tensor, role: str, rows: int, columns: int, orientation: str) -> None:
    """Check table classes against the chunks of the codes or values (5.6)."""
    if "class_sizes" not in tensor.parameters:
        return
    # > | `class_sizes` | optional list of integers, at least 1 each (5.6) |
    sizes = [integer(value, 1) for value in array(tensor.parameters["class_sizes"])]
    channels, length = (rows, columns) if orientation == "rows" else (columns, rows)
    # > it MUST add up to the number of channels, and no chunk holds channels of two classes.
    require(sum(sizes) == channels, f"{tensor.name}: class_sizes")
    ends, end = set(), 0
    for n, _ in tensor.streams[role].chunks:
        end += n
        ends.add(end)
    boundary = 0
    for size in sizes:
        boundary += size * length
        require(boundary in ends, f"{tensor.name}: a chunk holds channels of two classes")


def check_outliers(tensor: Tensor, rows: int, columns: int) -> None:
    """Check the bands of the outlier streams (5.4)."""
    # > The parameter is there when the streams `outlier_gaps` (u8) and `outlier_values` (f32, f16 or bf16) are, and
    # > only then.
    for role in OUTLIER_ROLES:
        require((role in tensor.streams) == ("outliers" in tensor.parameters), f"{tensor.name}: outliers")
    if "outliers" not in tensor.parameters:
        return
    # > `parameters.outliers` is `{"rows_per_band": R}`, R at least 1; the rows are cut into bands of R rows, the last
    # > one holding the rest.
    bands = ceil_div(rows, integer(mapping(tensor.parameters["outliers"]).get("rows_per_band"), 1))
    within(bands, 1048576, "outlier bands")
    for role in OUTLIER_ROLES:
        # > Both have exactly one chunk for each band, empty where the band has no outliers.
        require(
            len(tensor.streams[role].chunks) == bands, f"{tensor.name}: one chunk of {role} for each band"
        )
