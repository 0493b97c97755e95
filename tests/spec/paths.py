"""Every path of the package on which stored chunks become something: each must refuse what a reader must refuse."""

from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

import spqfmt
from spqfmt.codecs.registry import CODECS
from spqfmt.container.model import open_model
from spqfmt.container.reader import Reader
from spqfmt.kernels.choose import kernels_for
from spqfmt.loaders.device.decoder import Decoder
from spqfmt.loaders.device.group_shipping import GroupShipment
from spqfmt.loaders.device.seam import Memory
from spqfmt.loaders.packed.store import Store
from spqfmt.reading.diff import diff_files
from spqfmt.reading.measure import measure_file
from spqfmt.reading.report import inspect_file
from spqfmt.records import TensorRecord
from spqfmt.residency.cpu import plan_residency
from spqfmt.residency.inventory import Inventory, Item
from spqfmt.residency.parts import cut
from spqfmt.residency.rates import Rates
from spqfmt.residency.sides import read_sides
from spqfmt.schemes.registry import is_packable
from spqfmt.wire import DTYPES

_CPU = torch.device("cpu")
_RATES = Rates(1.0, 1.0, dict.fromkeys(CODECS, 1.0))


def read(path: Path) -> None:
    """Values, as a user asks for them, and assets."""
    with spqfmt.open(path) as file:
        for handle in file.values():
            handle.read(dtype=torch.float32 if DTYPES[handle.dtype].bits < 8 else None)
        dict(file.assets)


def rows(path: Path) -> None:
    """Values a row at a time."""
    with open_model(path) as model:
        for reader in model.readers:
            for record in _records(reader):
                for row in range(record.matrix_shape[0] if record.n_weights else 0):
                    reader.read_rows(record, row, row + 1, "f32")


def _records(reader: Reader) -> list[TensorRecord]:
    return [record for record in reader.index.tensors if record.tied_to is None]


def _packable(reader: Reader) -> list[TensorRecord]:
    """What loaders keep packed."""
    return [record for record in _records(reader) if is_packable(record)]


def packable_names(path: Path) -> set[str]:
    """Names of the tensors that loaders may keep packed."""
    names: set[str] = set()
    _each_reader(path, lambda _, records: names.update(record.name for record in records))
    return names


def _each_reader(path: Path, work: Callable[[Reader, list[TensorRecord]], None]) -> None:
    with open_model(path) as model:
        for reader in model.readers:
            work(reader, _packable(reader))


def decoded(path: Path) -> None:
    """Packed weights that the loader decodes into memory, and their sides."""

    def work(reader: Reader, records: list[TensorRecord]) -> None:
        for record in records:
            read_sides(reader, record)
        items = tuple(Item(part, products=True, lookups=False) for r in records for part in cut(r))
        if items:
            Store(plan_residency(Inventory(items, 0, 0, 0), _RATES, None), [reader]).load()

    _each_reader(path, work)


def compressed(path: Path) -> None:
    """Packed weights that are checked as they come into memory, and decoded just before their product."""

    def work(reader: Reader, records: list[TensorRecord]) -> None:
        parts = [part for record in records for part in cut(record)]
        items = tuple(Item(part, products=True, lookups=False) for part in parts)
        if not items:
            return
        smallest = plan_residency(Inventory(items, 0, 0, 0), _RATES, None).smallest_bytes
        store = Store(plan_residency(Inventory(items, 0, 0, 0), _RATES, smallest), [reader])
        for record in records:
            read_sides(reader, record)
        for number, part in enumerate(parts):
            stored = np.empty(part.stored_bytes, np.uint8)
            store.read(number, stored)
            if not part.is_stored_as_decoded:
                store.decode(number, stored, np.empty(part.decoded_bytes, np.uint8))

    _each_reader(path, work)


def device(path: Path) -> None:
    """Packed weights that a device decodes."""
    decoder = Decoder(kernels_for(_CPU, "torch"))

    def memory(n_bytes: int) -> Memory:
        return Memory(next(_numbers), n_bytes, torch.zeros(n_bytes, dtype=torch.uint8))

    def work(reader: Reader, records: list[TensorRecord]) -> None:
        for record in records:
            read_sides(reader, record)
            for part in cut(record):
                shipment = GroupShipment.of([part], zstd_on_device=False)
                sent, out, word = memory(shipment.n_bytes), memory(shipment.decoded_bytes), memory(4)
                room = sent if shipment.as_stored else memory(part.stored_bytes)
                decoder.read(shipment, reader, room, sent)
                tables, scratch = memory(shipment.table_bytes), memory(shipment.scratch_bytes)
                decoder.decode(shipment, reader, sent, out, word, tables, scratch)
                decoder.judge(shipment, int(word.tensor.view(torch.int32)), reader)

    _each_reader(path, work)


_numbers = count()


def repack(path: Path) -> None:
    """Another file of the same chunks, copied."""
    with TemporaryDirectory() as folder:
        spqfmt.repack(path, Path(folder) / "out.spq")


def measure(path: Path) -> None:
    """`inspect --measure`."""
    measure_file(path, inspect_file(path))


def unpack(path: Path) -> None:
    """A folder of safetensors."""
    with TemporaryDirectory() as folder:
        spqfmt.unpack(path, Path(folder) / "out")


PATHS: dict[str, Callable[[Path], None]] = {
    "verify": spqfmt.verify,
    "content": partial(spqfmt.verify, content=True),
    "read": read,
    "rows": rows,
    "decoded": decoded,
    "compressed": compressed,
    "device": device,
    "repack": repack,
    "diff": lambda path: diff_files(path, path),
    "measure": measure,
    "unpack": unpack,
}
