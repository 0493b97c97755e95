"""What a plain decoder holds, by the names and shapes of its tensors alone."""

from collections.abc import Sequence

from spqfmt import wire
from spqfmt.container.reader import Reader
from spqfmt.importers._layout import role_of
from spqfmt.records import FLOATS, TensorRecord, main_dtype
from spqfmt.residency.inventory import Inventory, Item
from spqfmt.residency.parts import cut
from spqfmt.residency.sides import side_bytes
from spqfmt.residency.workspace import workspace_bytes
from spqfmt.schemes.registry import is_packable


def inventory_from_index(readers: Sequence[Reader], itemsize: int | None = None) -> Inventory:
    """What a plain decoder model with these weights would hold: matrices packed, the rest as parameters.

    `itemsize` is that of the dtype that it computes in, by default the one that most weights have.
    """
    numbers = {record.name: i for i, reader in enumerate(readers) for record in reader.index.tensors}
    records = {record.name: record for reader in readers for record in reader.index.tensors}
    matrices = {name: record for name, record in records.items() if _is_matrix(record)}
    lookups = {name for name, record in matrices.items() if _role(record) == "embedding"}
    products = (matrices.keys() - lookups) | {r.tied_to for r in records.values() if r.tied_to in lookups}
    both = products & lookups
    itemsize = itemsize or wire.DTYPES[main_dtype(records.values())].bits // 8
    rest = [r for r in records.values() if r.name not in matrices and r.tied_to is None and _is_float(r)]
    items = [
        Item(part, name in products, name in lookups)
        for name in sorted(matrices, key=lambda name: name in both)
        for part in cut(matrices[name], numbers[name])
    ]
    return Inventory(
        tuple(items),
        sum(record.n_weights for record in rest) * itemsize,
        side_bytes([item.part for item in items]),
        max((workspace_bytes(*r.matrix_shape, itemsize) for r in matrices.values()), default=0),
    )


def _is_float(record: TensorRecord) -> bool:
    return record.dtype in FLOATS


def _role(record: TensorRecord) -> str:
    return role_of(record.name, record.shape, is_float=_is_float(record))


def _is_matrix(record: TensorRecord) -> bool:
    return record.tied_to is None and record.name.endswith(".weight") and is_packable(record)
