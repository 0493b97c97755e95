"""Parts of tensors that were taken apart from the blocks of GGUF, which mix codes and numbers of groups.

spec/origins/gguf.md says how.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spqfmt.container.reader import Reader
from spqfmt.container.strict_json import member
from spqfmt.errors import CorruptError
from spqfmt.kernels.ggml_blocks import put_together
from spqfmt.kernels.ggml_types import BLOCK_TYPES, BlockType
from spqfmt.reading.origin_arrays import elements_of, reordered
from spqfmt.records import TensorRecord
from spqfmt.schemes.group_numbers import supergroup_of

LAYOUT = ("gguf", 1)
_ORDERS = ("channel_order", "permutation")


def block_part(reader: Reader, record: TensorRecord, origin: Mapping[str, object], number: int) -> bytes:
    """Return the blocks of a tensor whose record has this `origin`. Raises CorruptError."""
    where = f"tensor {record.name!r}: origin"
    if number:
        raise CorruptError(f"{where}: no part {number}")
    kind = _type_of(origin, where)
    _check_record(record, kind, where)
    if record.matrix_shape[1] % kind.n_elements:
        raise CorruptError(f"{where}: rows of no whole number of blocks of {kind.name}")
    shape = record.matrix_shape
    return made_blocks(lambda role: elements_of(reader, record, role, where), origin, shape, where).tobytes()


def made_blocks(
    elements_of: Callable[[str], tuple[NDArray[Any], int]],
    origin: Mapping[str, Any],
    shape: tuple[int, int],
    where: str,
) -> NDArray[np.uint8]:
    """Return the blocks of a matrix of this shape, of its streams as unsigned integers in row-major order.

    Raises CorruptError.
    """
    kind, (n_rows, n_columns) = _type_of(origin, where), shape
    found = {role: elements_of(role)[0] for role in kind.dtypes}
    columns = reordered(np.arange(n_columns), origin, "column_dims", axes_key="column_axes", where=where)
    if "column_dims" in origin:
        found["codes"] = found["codes"].reshape(shape)[:, columns.reshape(-1)].reshape(-1)
    n_blocks = found["codes"].size // kind.n_elements
    try:
        blocks = put_together(kind, {role: part.reshape(n_blocks, -1) for role, part in found.items()})
    except ValueError as error:
        raise CorruptError(f"{where}: {error}") from None
    if "row_dims" in origin or "row_axes" in origin:
        order = reordered(np.arange(n_rows), origin, "row_dims", axes_key="row_axes", where=where)
        blocks = blocks.reshape(n_rows, -1)[order.reshape(-1)]
    return blocks.reshape(-1)


def _type_of(origin: Mapping[str, object], where: str) -> BlockType:
    name = member(dict(origin), "type", str, where)
    if name not in BLOCK_TYPES:
        raise CorruptError(f"{where}: no type {name[:80]!r}")
    return BLOCK_TYPES[name]


def _check_record(record: TensorRecord, kind: BlockType, where: str) -> None:
    """Raise CorruptError for a tensor that has not what the table gives for its type."""
    if record.scheme != "grouped" or record.parameters.get("group_size") != kind.group_size:
        raise CorruptError(f"{where}: no groups of {kind.group_size}, as {kind.name} has")
    if "group_rows" in record.parameters or "outliers" in record.parameters:
        raise CorruptError(f"{where}: tiles or outliers in {kind.name}")
    if supergroup_of(record) != ((1, kind.tile) if kind.tile else None):
        raise CorruptError(f"{where}: a supergroup that is not one of {kind.name}")
    found = {role: stream.dtype for role, stream in record.by_role.items() if role not in _ORDERS}
    has_levels = found.pop("levels", None) is not None
    due = dict(kind.dtypes)
    if kind.name == "MXFP4" and not has_levels:
        due["codes"] = "f4_e2m1"
    if found != due or has_levels != (kind.levels is not None and due["codes"] == kind.dtypes["codes"]):
        raise CorruptError(f"{where}: streams that are not those of {kind.name}")
