"""spec/origins/arrays.md: a part is one stream with its elements in another order and width."""

from math import prod

from spq_reference.errors import require
from spq_reference.numbers import BITS, packed_bytes
from spq_reference.records import Tensor
from spq_reference.restore import Streams, flat, ordered
from spq_reference.schemes import matrix_shape
from spq_reference.text import Object, array, integer, mapping, string


def parts(tensor: Tensor, streams: Streams) -> list[bytes]:
    """Return the parts of the layout `arrays`, version 1."""
    # > `origin` has `parts`, a list with one object for each part, and may have `form`, a string that tells people what
    # > the source calls the codes:
    return [array_part(tensor, streams, mapping(part)) for part in array((tensor.origin or {}).get("parts"))]


def array_part(tensor: Tensor, streams: Streams, part: Object) -> bytes:
    """Return one part."""
    role = string(part.get("stream"))
    elements, width = elements_of(tensor, streams, role)
    bits = integer(part.get("bits", width), 1, 64)
    add = integer(part.get("add", 0), -(1 << 31), 1 << 31)
    # > Each element is an unsigned integer of its bits; `add` is added to it, and what remains is the sum modulo
    # > `2^bits`.
    found = [(element % (1 << width) + add) % (1 << bits) for element in elements]
    # > With `flip` the last dimension (of all elements where there is no `dims`) is reversed.
    found = reordered(found, part, "dims", "axes")
    flip = part.get("flip", False)
    require(type(flip) is bool, "origin: flip")
    if flip:
        shape = [len(found)] if "dims" not in part else turned(part, "dims", "axes")
        last = shape[-1]
        found = [element for row in range(0, len(found), last) for element in found[row : row + last][::-1]]
    # > Each element is written with `bits` bits, the lowest first, one after the other without gaps, into bytes from
    # > the lowest bit up; unused bits of the last byte are zero.
    data = packed_bytes(bits, found)
    if "unit_bits" not in part:
        require("unit_dims" not in part and "unit_axes" not in part, "origin: units without unit_bits")
        return data
    # > With `unit_bits` the bits are a sequence of units of that many; they MUST be a whole number of units and of
    # > bytes.
    unit = integer(part["unit_bits"], 1)
    require("unit_dims" in part, "origin: unit_bits without unit_dims")
    require(len(found) * bits % unit == 0 and len(found) * bits % 8 == 0, "origin: no whole number of units")
    whole = int.from_bytes(data, "little")
    units = [whole >> at & ((1 << unit) - 1) for at in range(0, len(data) * 8, unit)]
    return packed_bytes(unit, reordered(units, part, "unit_dims", "unit_axes"))


def elements_of(tensor: Tensor, streams: Streams, role: str) -> tuple[list[int], int]:
    """Return the elements that a part is made of, and the bits of one."""
    # > Those of `codes` and `values` are taken in row-major order of the matrix (FORMAT.md 5.1), with orientation,
    # > channel order and permutation undone; those of other streams as they are stored. `column_groups` is for grouped
    # > tensors: for each column of the matrix, in its own order, the number of its group.
    if role == "column_groups":
        require(tensor.scheme == "grouped", f"{tensor.name}: groups of the scheme {tensor.scheme}")
        size = integer(tensor.parameters["group_size"])
        group = [0] * matrix_shape(tensor)[1]
        for k in range(len(group)):
            group[flat(streams, "permutation")[k] if "permutation" in streams else k] = k // size
        return group, 32
    require(role in streams, f"{tensor.name}: no stream {role:.80}")
    width = BITS[tensor.streams[role].dtype]
    if role not in ("codes", "values") or tensor.is_named or tensor.shape == [] or 0 in tensor.shape:
        return flat(streams, role), width
    return [element for row in matrix_elements(tensor, streams, role) for element in row], width


def matrix_elements(tensor: Tensor, streams: Streams, role: str) -> list[list[int]]:
    """Return codes or values as the matrix of 5.1, its columns in their own order."""
    matrix = ordered(tensor, streams, role, *matrix_shape(tensor))
    if "permutation" not in streams:
        return matrix
    place = flat(streams, "permutation")
    found = [[0] * len(row) for row in matrix]
    for row, stored in zip(found, matrix, strict=True):
        for k, element in enumerate(stored):
            row[place[k]] = element
    return found


def turned(part: Object, dims_key: str, axes_key: str) -> list[int]:
    """Return the dimensions after their reordering."""
    dims = [integer(value, 1) for value in array(part[dims_key])]
    axes = [integer(value) for value in array(part.get(axes_key))]
    require(1 <= len(dims) <= 8 and sorted(axes) == list(range(len(dims))), f"origin: {axes_key}")
    return [dims[axis] for axis in axes]


def reordered(elements: list[int], part: Object, dims_key: str, axes_key: str) -> list[int]:
    """Return the elements in the order that dimensions and axes give, as they are where there are none."""
    # > With `dims` the elements are an array of these dimensions, in row-major order; `dims` MUST multiply to their
    # > number. `axes` is a permutation of the numbers of the dimensions: dimension `d` of the result is dimension
    # > `axes[d]` of the array.
    if dims_key not in part:
        require(axes_key not in part, f"origin: {axes_key} alone")
        return elements
    shape = turned(part, dims_key, axes_key)
    dims = [integer(value, 1) for value in array(part[dims_key])]
    axes = [integer(value) for value in array(part[axes_key])]
    require(prod(dims) == len(elements), f"origin: {dims_key} of other elements")
    strides = [prod(dims[axis + 1 :]) for axis in axes]
    offsets = [0]
    for n, stride in zip(shape, strides, strict=True):
        offsets = [offset + index * stride for offset in offsets for index in range(n)]
    return [elements[offset] for offset in offsets]
