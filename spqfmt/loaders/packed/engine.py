"""One model's packed weights: where each part is, and what is computed from it."""

import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch

from spqfmt.codecs.base import Bytes
from spqfmt.container.reader import Reader
from spqfmt.errors import SpqError
from spqfmt.kernels import backend
from spqfmt.loaders.packed.buffers import Buffers, View, allocate
from spqfmt.loaders.packed.lookup import RowCache, look_up
from spqfmt.loaders.packed.multiply import PackedMatrix
from spqfmt.loaders.packed.ring import Ring
from spqfmt.loaders.packed.store import Store
from spqfmt.loaders.packed.turned import TurnedMatrix, look_up_pieces, n_bytes_of, pieces_of
from spqfmt.pipeline.residency.parts import Part
from spqfmt.pipeline.residency.plan import N_BUFFERS, N_READERS, N_ROW_SLOTS, Plan
from spqfmt.pipeline.residency.sides import Sides, read_sides

_CPU = torch.device("cpu")


class Engine:
    """Serves any number of modules and threads, one computation at a time.

    Takes over the readers and closes them with itself: by `close`, or when the last module that refers to it is gone.
    """

    def __init__(
        self, plan: Plan, readers: Sequence[Reader], dtype: torch.dtype, workspace_bytes: int
    ) -> None:
        """Read what the plan keeps in memory. Raises FormatError, OSError; the readers are closed then."""
        self.plan = plan
        self.dtype = dtype
        with ExitStack() as stack:
            for reader in readers:
                stack.callback(reader.close)
            backend.current()  # the kernels that SPQFMT_BACKEND names decode here too
            self._numbers: dict[Part, int] = {p.item.part: number for number, p in enumerate(plan.parts)}
            self._parts: dict[str, tuple[Part, ...]] = {}
            for part in self._numbers:
                self._parts[part.record.name] = (*self._parts.get(part.record.name, ()), part)
            self._sides = _read_all_sides(self._parts, readers)
            self._pieces = {
                name: pieces_of(parts, self._sides.pop(name))
                for name, parts in self._parts.items()
                if parts[0].is_turned
            }
            self._workspace = allocate(workspace_bytes)
            self._lock = threading.Lock()
            self._store = Store(plan, readers)
            self._store.load()
            self._streams = _Streams(plan, self._store) if self._store.is_streamed else None
            self._matrices = {name: self._matrix(name, parts) for name, parts in self._parts.items()}
            # Also when the last module that refers to the engine is gone: nothing here refers to the engine itself.
            self._finalizer = weakref.finalize(self, _close, self._streams, stack.pop_all())

    @property
    def torch_device(self) -> torch.device:
        """The CPU."""
        return _CPU

    def close(self) -> None:
        """Stop the threads and close the file; what is not decoded can be computed no more."""
        self._finalizer()

    @property
    def held_bytes(self) -> int:
        """What the engine holds now: the plan's bytes but for the ordinary parameters."""
        streams = self._streams.n_bytes if self._streams is not None else 0
        sides = sum(side.n_bytes for side in self._sides.values())
        sides += sum(n_bytes_of(pieces) for pieces in self._pieces.values())
        return self._store.n_bytes + streams + sides + self._workspace.size

    def matrix(self, tensor: str) -> PackedMatrix | TurnedMatrix:
        """What `multiply` takes, by the tensor's name."""
        return self._matrices[tensor]

    def multiply(
        self,
        matrix: PackedMatrix | TurnedMatrix,
        x: torch.Tensor,
        bias: torch.nn.Parameter | None,
        *,
        int8_activations: bool,
    ) -> torch.Tensor:
        """`x` [..., columns] times a tensor's matrix: [..., rows] in x's dtype. Raises what reading raises."""
        y = matrix.multiply_whole(x, bias, int8_activations=int8_activations)
        if y is not None:
            return y
        with self._lock:
            return matrix.multiply(x, bias, self._lend, self._workspace, int8_activations=int8_activations)

    def look_up(self, tensor: str, ids: torch.Tensor) -> torch.Tensor:
        """Rows `ids` [...] of a tensor's matrix: [..., columns] in the model's dtype."""
        wanted = ids.reshape(-1)
        with self._lock:
            if tensor in self._pieces:
                pieces = self._pieces[tensor]
                rows = look_up_pieces(wanted, pieces, self._lend_rows, self._workspace, self.dtype)
            else:
                parts, sides = self._parts[tensor], self._sides[tensor]
                rows = look_up(wanted, parts, sides, self._lend_rows, self._workspace, self.dtype)
        return rows.reshape(*ids.shape, rows.shape[-1])

    def _matrix(self, name: str, parts: tuple[Part, ...]) -> PackedMatrix | TurnedMatrix:
        whole = self._store.decoded_run([self._numbers[part] for part in parts])
        if name in self._pieces:
            return TurnedMatrix(self._pieces[name], whole)
        return PackedMatrix(parts, self._sides[name], whole)

    @contextmanager
    def _lend(self, part: Part) -> Iterator[View]:
        number = self._numbers[part]
        decoded = self._store.decoded(number)
        if decoded is not None:
            yield View(part.name, decoded)
            return
        with self._open_streams().lend(number, part.name) as view:
            yield view

    @contextmanager
    def _lend_rows(self, part: Part) -> Iterator[View]:
        number = self._numbers[part]
        decoded = self._store.decoded(number)
        yield View(part.name, self._open_streams().rows.obtain(number) if decoded is None else decoded)

    def _open_streams(self) -> "_Streams":
        if self._streams is None or not self._finalizer.alive:
            raise SpqError("the model was closed")
        return self._streams


class _Streams:
    """What is not decoded in memory, part by part through the decompression buffers; for one thread at a time.

    All threads decode a part just before its product: where they compute next, that is faster than leaving it to others
    beside the computation (spec/decisions/0020). What lives on disk is read ahead by threads that do nothing else.
    """

    def __init__(self, plan: Plan, store: Store) -> None:
        self._store = store
        products = [n for n, planned in enumerate(plan.parts) if planned.item.products]
        looked_up = [planned.item.part for planned in plan.parts if planned.item.lookups]
        on_disk = [n for n in products if plan.parts[n].residency == "disk"]
        stored = [part.stored_bytes for part in store.parts]
        self._ring = Ring(stored, on_disk, store.reads, N_READERS, store.read) if on_disk else None
        largest = max((store.parts[n].decoded_bytes for n in products), default=0)
        self._buffers = Buffers([allocate(largest) for _ in range(N_BUFFERS)])
        self.rows = RowCache(
            store,
            max((part.decoded_bytes for part in looked_up), default=0),
            max((part.stored_bytes for part in looked_up), default=0),
            N_ROW_SLOTS,
        )

    @property
    def n_bytes(self) -> int:
        """Memory of the buffers but for the store's."""
        return self._buffers.n_bytes + self.rows.n_bytes

    def close(self) -> None:
        """Stop the threads."""
        if self._ring is not None:
            self._ring.close()

    @contextmanager
    def lend(self, number: int, name: str) -> Iterator[View]:
        """The decoded bytes of a part while the context lasts. Raises what reading or decoding it raises."""
        part = self._store.parts[number]
        if part.is_stored_as_decoded:
            with self._stored(number, name) as stored:
                yield stored
            return

        def decode(out: Bytes) -> None:
            with self._stored(number, name) as stored:
                self._store.decode(number, stored.bytes, out)

        with self._buffers.lend(name, part.decoded_bytes, decode) as view:
            yield view

    @contextmanager
    def _stored(self, number: int, name: str) -> Iterator[View]:
        in_memory = self._store.compressed(number)
        if in_memory is not None:
            yield View(name, in_memory)
            return
        assert self._ring is not None
        with self._ring.lend(number, name) as view:
            yield view


def _close(streams: _Streams | None, files: ExitStack) -> None:
    if streams is not None:
        streams.close()
    files.close()


def _read_all_sides(parts: Mapping[str, tuple[Part, ...]], readers: Sequence[Reader]) -> dict[str, Sides]:
    return {name: read_sides(readers[own[0].reader_number], own[0].record) for name, own in parts.items()}
