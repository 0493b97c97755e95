"""FORMAT.md 5: what the tables of each scheme require of a tensor record, before any chunk is decoded."""

from math import prod

from spq_reference.errors import require, within
from spq_reference.records import OUTLIER_ROLES, Tensor
from spq_reference.text import array, integer, mapping, word

FLOATS = ("f32", "f16", "bf16")
UNSIGNED = ("u2", "u4", "u8")
SECOND_LEVEL = ("u2", "u4", "u8", "i8")
ORDERS = ("u16", "u32")
DENSE = (
    "f64",
    "f32",
    "f16",
    "bf16",
    "f8_e4m3",
    "f8_e5m2",
    "i64",
    "i32",
    "i16",
    "i8",
    "u64",
    "u32",
    "u16",
    "u8",
    "bool",
)

# A role's allowed dtypes and its number of elements, in the order of a table of section 5.
Table = dict[str, tuple[tuple[str, ...], int]]


def ceil_div(a: int, b: int) -> int:
    """Return the quotient rounded up."""
    # > `ceil(a / b)` is the quotient rounded up.
    return -(-a // b)


def matrix_shape(tensor: Tensor) -> tuple[int, int]:
    """Return rows and columns of the matrix that uniform and grouped describe (5.1)."""
    # > A scalar, and a tensor without elements, MUST be dense.
    require(
        len(tensor.shape) > 0 and prod(tensor.shape) > 0, f"{tensor.name}: a scalar or nothing, not dense"
    )
    # > The schemes uniform and grouped describe a matrix of `rows` by `columns`: a tensor of shape `[..., c]` is the
    # > matrix with `columns = c` and `rows` the product of the other dimensions (1 for a tensor of one dimension). With
    # > `transposed`, the tensor MUST have two dimensions, and it is the transpose of the matrix.
    if tensor.transposed:
        require(len(tensor.shape) == 2, f"{tensor.name}: transposed, but not of two dimensions")
        return tensor.shape[1], tensor.shape[0]
    return prod(tensor.shape[:-1]), tensor.shape[-1]


def check_tensor(tensor: Tensor, used: set[str]) -> None:
    """Check parameters and streams of a tensor against its scheme's tables."""
    if tensor.scheme == "tied":
        return
    if tensor.scheme == "dense":
        # > `dtype` of the tensor is any dtype of 8 bits or more but log8. There are no parameters. The number of
        # > elements is the product of the shape, 1 for a scalar.
        word(tensor.dtype, DENSE)
        check_streams(tensor, {"values": ((tensor.dtype,), prod(tensor.shape))}, ("values",))
        return
    # > The `dtype` of such a tensor is f64, f32, f16 or bf16.
    word(tensor.dtype, ("f64", *FLOATS))
    rows, columns = matrix_shape(tensor)
    # > | `orientation` | `rows`: codes in row-major order; `columns`: in column-major order |
    orientation = word(tensor.parameters.get("orientation"), ("rows", "columns"))
    if tensor.scheme == "uniform":
        check_uniform(tensor, rows, columns, rows if orientation == "rows" else columns)
    else:
        check_grouped(tensor, rows, columns, rows if orientation == "rows" else columns)
    check_classes(tensor, rows, columns, orientation)
    check_outliers(tensor, rows, columns)
    used.update(
        feature
        for key, feature in (("outliers", "outliers"), ("supergroup", "supergroups"))
        if key in tensor.parameters
    )
    used.update(role for role in ("permutation", "channel_order") if role in tensor.streams)


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


def check_grouped(tensor: Tensor, rows: int, columns: int, channels: int) -> None:
    """Check a record against the tables of 5.5."""
    parameters, streams = tensor.parameters, tensor.streams
    # > `groups = ceil(columns / group_size)`.
    groups = ceil_div(columns, integer(parameters.get("group_size"), 1))
    integer(parameters.get("bits"))
    # > `supergroup` MUST be there when a `_codes` stream of the second level is, and only then.
    second_level = any(role.endswith("_codes") for role in streams)
    require(("supergroup" in parameters) == second_level, f"{tensor.name}: supergroup")
    tiles = 0
    if second_level:
        # > | `supergroup` | optional `{"rows": R, "groups": G}`, at least 1 each |
        supergroup = mapping(parameters["supergroup"])
        # > `superrows = ceil(rows / R)`, `supercolumns = ceil(groups / G)`.
        superrows = ceil_div(rows, integer(supergroup.get("rows"), 1))
        tiles = superrows * ceil_div(groups, integer(supergroup.get("groups"), 1))
    table: Table = {
        "codes": (("u2", "u4", "u8", "i2", "i4", "i8"), rows * columns),
        "channel_order": (ORDERS, channels),
        "permutation": (ORDERS, columns),
    }
    for name, plural in (("scale", "scales"), ("zero_point", "zero_points"), ("minimum", "minimums")):
        first_level = (*FLOATS, *UNSIGNED) if name == "zero_point" else FLOATS
        table[plural] = (first_level, rows * groups)
        table[f"{name}_codes"] = (SECOND_LEVEL, rows * groups)
        table[f"{name}_steps"] = (FLOATS, tiles)
        table[f"{name}_zeros"] = (FLOATS, tiles)
        # > The scale is given either by `scales`, or by `scale_codes` and `scale_steps`; the zero point or the minimum
        # > likewise, or neither is there.
        coded = f"{name}_codes" in streams
        require(not (coded and plural in streams), f"{tensor.name}: {plural} and {name}_codes")
        require(coded == (f"{name}_steps" in streams), f"{tensor.name}: {name}_codes and {name}_steps")
        require(coded or f"{name}_zeros" not in streams, f"{tensor.name}: {name}_zeros alone")
    check_streams(tensor, {**table, **OUTLIERS}, ("codes",))
    present = [
        name for name in ("scale", "zero_point", "minimum") if {f"{name}s", f"{name}_codes"} & set(streams)
    ]
    require("scale" in present, f"{tensor.name}: no scales")
    # > A tensor MUST NOT have both zero points and minimums.
    require(len(present) < 3, f"{tensor.name}: zero points and minimums")


def check_classes(tensor: Tensor, rows: int, columns: int, orientation: str) -> None:
    """Check table classes against the chunks of the codes (5.6)."""
    if "class_sizes" not in tensor.parameters:
        return
    # > | `class_sizes` | optional list of integers, at least 1 each (5.6) |
    sizes = [integer(value, 1) for value in array(tensor.parameters["class_sizes"])]
    channels, length = (rows, columns) if orientation == "rows" else (columns, rows)
    # > it MUST add up to the number of channels, and no chunk holds channels of two classes.
    require(sum(sizes) == channels, f"{tensor.name}: class_sizes")
    ends, end = set(), 0
    for n, _ in tensor.streams["codes"].chunks:
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
