"""The residency plan of a page: an inventory from the index alone, and the numbers its slider recomputes from.

`spqfmt plan` asks the class of a model that is no plain decoder which modules compute from packed weights; here names
and shapes say it, so that no torch is needed. For plain decoders both are the same (tests/packed/test_plain.py).
"""

from spqfmt.pages.compact import Numbered
from spqfmt.reading.report.names import layer_of
from spqfmt.residency.cpu import decode_seconds, is_narrow, share_of_passes
from spqfmt.residency.inventory import Inventory
from spqfmt.residency.rates import Rates


def residency_data(inventory: Inventory, rates: Rates) -> dict[str, object]:
    """What the page's planner needs to give the same answer as `plan_residency` for every ceiling.

    `parts` holds a list for each column, in the order of use: number of the layer, stored and decoded bytes, those of
    the narrow form (0 where it is not to be held so), number of its seconds of decoding and of its share of passes
    among `seconds` and `shares` (few are different), and weights that are computed with. `rates` are in a second.
    """
    items = inventory.items
    layers, seconds, shares = Numbered[str](), Numbered[float](), Numbered[float]()
    return {
        "parts": {
            "layer": [layers.of(layer_of(item.part.record.name)) for item in items],
            "stored": [item.part.stored_bytes for item in items],
            "decoded": [item.part.decoded_bytes for item in items],
            "narrow": [item.part.narrow_bytes if is_narrow(item) else 0 for item in items],
            "seconds": [seconds.of(decode_seconds(item.part, rates)) for item in items],
            "share": [shares.of(share_of_passes(item, items)) for item in items],
            "weights": [item.part.n_weights * (item.share or 1) if item.products else 0 for item in items],
        },
        "layers": layers.all,
        "seconds": seconds.all,
        "shares": shares.all,
        "rates": {"read": rates.read, "compute": rates.compute},
        "whole": vars(inventory.totals.fixed(streamed=False)),
        "streamed": vars(inventory.totals.fixed(streamed=True)),
    }
