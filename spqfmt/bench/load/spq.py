""".spq: what the loaders do with packed weights that stay decoded, into new memory as safetensors does."""

from pathlib import Path

import numpy as np

from spqfmt.bench.load.base import Array, Loader, Payload
from spqfmt.codecs.base import Bytes
from spqfmt.codecs.elements import CARRIERS
from spqfmt.codecs.threads import jobs
from spqfmt.container.reader import Reader
from spqfmt.records import TensorRecord
from spqfmt.residency.cpu import plan_residency
from spqfmt.residency.inventory import Inventory, Item
from spqfmt.residency.parts import cut
from spqfmt.residency.rates import UNMEASURED
from spqfmt.schemes.registry import SCHEMES


def payload_of(path: Path, name: str) -> Payload:
    """The decoded streams of a file, each once; codes narrower than a byte stay packed, as kernels take them."""
    with Reader(path) as reader:
        arrays = _load(reader)
        weights = sum(record.n_weights for record in reader.index.tensors if record.tied_to is None)
    return Payload(name, weights, arrays)


class Spq(Loader):
    """All weights by the loaders' own store, then each tensor's other streams by its reader."""

    def __init__(self, path: Path, payload: Payload, threads: int) -> None:
        super().__init__("spq", path, payload, threads)

    def load(self) -> None:
        """Open the file, and decode every packed tensor into new memory."""
        with jobs(self.threads), Reader(self.path) as reader:
            self.out = [array.raw for array in _load(reader)]


def _load(reader: Reader) -> list[Array]:
    # torch takes seconds to import.
    from spqfmt.loaders.packed.store import Store

    records = [
        record
        for record in reader.index.tensors
        if record.n_weights and record.tied_to is None and not record.is_named
    ]
    parts = [cut(record) for record in records]
    items = tuple(Item(part, products=True, lookups=False) for own in parts for part in own)
    store = Store(plan_residency(Inventory(items, 0, 0, 0), UNMEASURED, None), [reader])
    store.load()
    arrays, at = [], 0
    for record, own in zip(records, parts, strict=True):
        weights = store.decoded_run(range(at, at + len(own)))
        assert weights is not None
        at += len(own)
        role = SCHEMES[record.scheme].weights
        arrays.append(Array(f"{record.name}/{role}", weights, CARRIERS[record.by_role[role].dtype].itemsize))
        arrays += [
            _side(reader, record, s.role) for s in record.streams if s.role != role and s.same_as is None
        ]
    return arrays


def _side(reader: Reader, record: TensorRecord, role: str) -> Array:
    elements = reader.read_elements(record, role)
    raw: Bytes = elements.view(np.uint8)
    return Array(f"{record.name}/{role}", raw, elements.itemsize)
