"""The residency plan of a page: an inventory from the index alone, and the numbers its slider recomputes from.

`spqfmt plan` asks the model's class which modules compute from packed weights; here names and shapes say it, so that
no torch is needed. For plain decoder models both are the same (tests/pages/test_residency.py).
"""

from collections.abc import Sequence

from spqfmt import wire
from spqfmt.container.reader import Reader
from spqfmt.importers._layout import role_of
from spqfmt.pages.compact import Numbered
from spqfmt.reading.report.names import layer_of
from spqfmt.records import FLOATS, TensorRecord, main_dtype
from spqfmt.residency.cpu import decode_seconds, share_of_passes
from spqfmt.residency.inventory import Inventory, Item
from spqfmt.residency.parts import cut
from spqfmt.residency.rates import Rates
from spqfmt.residency.sides import side_bytes
from spqfmt.residency.workspace import workspace_bytes
from spqfmt.schemes.registry import is_packable


def inventory_from_index(readers: Sequence[Reader]) -> Inventory:
    """What a plain decoder model with these weights would hold: matrices packed, the rest as parameters."""
    numbers = {record.name: i for i, reader in enumerate(readers) for record in reader.index.tensors}
    records = {record.name: record for reader in readers for record in reader.index.tensors}
    matrices = {name: record for name, record in records.items() if _is_matrix(record)}
    lookups = {name for name, record in matrices.items() if _role(record) == "embedding"}
    products = (matrices.keys() - lookups) | {r.tied_to for r in records.values() if r.tied_to in lookups}
    both = products & lookups
    itemsize = wire.DTYPES[main_dtype(records.values())].bits // 8
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


def residency_data(inventory: Inventory, rates: Rates) -> dict[str, object]:
    """What the page's planner needs to give the same answer as `plan_residency` for every ceiling.

    `parts` holds a list for each column, in the order of use: number of the layer, stored and decoded bytes, number of
    its seconds of decoding and of its share of passes among `seconds` and `shares` (few are different), and weights
    that are computed with. `rates` are in a second.
    """
    items = inventory.items
    layers, seconds, shares = Numbered[str](), Numbered[float](), Numbered[float]()
    return {
        "parts": {
            "layer": [layers.of(layer_of(item.part.record.name)) for item in items],
            "stored": [item.part.stored_bytes for item in items],
            "decoded": [item.part.decoded_bytes for item in items],
            "seconds": [seconds.of(decode_seconds(item.part, rates)) for item in items],
            "share": [shares.of(share_of_passes(item, items)) for item in items],
            "weights": [item.part.n_weights if item.products else 0 for item in items],
        },
        "layers": layers.all,
        "seconds": seconds.all,
        "shares": shares.all,
        "rates": {"read": rates.read, "compute": rates.compute},
        "whole": vars(inventory.totals.fixed(streamed=False)),
        "streamed": vars(inventory.totals.fixed(streamed=True)),
    }
