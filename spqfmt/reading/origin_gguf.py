"""Parts of tensors that were taken apart from the blocks of GGUF, which mix codes and numbers of groups.

spec/origins/gguf.md says how.
"""

from collections.abc import Callable, Iterator, Mapping
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
_BYTES_AT_ONCE = 1 << 18
"""So many bytes of blocks are made while they, and what they are made of, lie in a core's cache."""
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
    runs = made_blocks(lambda role: elements_of(reader, record, role, where)[0], origin, shape, where)
    return b"".join(run.data for run in runs)


def made_blocks(
    elements_of: Callable[[str], NDArray[Any]], origin: Mapping[str, Any], shape: tuple[int, int], where: str
) -> Iterator[NDArray[np.uint8]]:
    """Yield the blocks of a matrix of this shape, of its streams as integers in row-major order, some rows at a time.

    Raises CorruptError.
    """
    kind, (n_rows, n_columns) = _type_of(origin, where), shape
    found = {role: elements_of(role) for role in kind.dtypes}
    rows = reordered(np.arange(n_rows), origin, "row_dims", axes_key="row_axes", where=where).reshape(-1)
    columns = reordered(np.arange(n_columns), origin, "column_dims", axes_key="column_axes", where=where)
    in_row = n_columns // kind.n_elements
    step = max(1, _BYTES_AT_ONCE // max(1, in_row * kind.n_bytes))
    try:
        lines = {role: part.reshape(n_rows, -1) for role, part in found.items()} if n_rows else {}
        for first in range(0, n_rows, step):
            # A slice is no copy.
            some = rows[first : first + step] if "row_dims" in origin else slice(first, first + step)
            parts = {role: part[some] for role, part in lines.items()}
            n_blocks = len(parts["codes"]) * in_row
            if "column_dims" in origin:
                parts["codes"] = parts["codes"][:, columns.reshape(-1)]
            blocks = put_together(kind, {role: part.reshape(n_blocks, -1) for role, part in parts.items()})
            yield blocks.reshape(-1)
    except ValueError as error:
        raise CorruptError(f"{where}: {error}") from None


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
