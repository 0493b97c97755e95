"""One model's packed weights: where each part is, and what is computed from it."""

import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch

from spqfmt.container.reader import Reader
from spqfmt.errors import SpqError
from spqfmt.kernels import backend
from spqfmt.loaders.packed.buffers import View, allocate
from spqfmt.loaders.packed.lookup import RowCache, look_up
from spqfmt.loaders.packed.multiply import PackedMatrix
from spqfmt.loaders.packed.ring import Ring
from spqfmt.loaders.packed.store import Store
from spqfmt.pipeline.residency.parts import Part
from spqfmt.pipeline.residency.plan import N_ROW_SLOTS, N_SLOTS, N_WORKERS, Plan
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
            self._workspace = allocate(workspace_bytes)
            self._lock = threading.Lock()
            self._store = Store(plan, readers)
            self._store.load()
            self._ring, self._rows = _streams(plan, self._store)
            self._matrices = {
                name: PackedMatrix(
                    parts, self._sides[name], self._store.decoded_run([self._numbers[part] for part in parts])
                )
                for name, parts in self._parts.items()
            }
            # Also when the last module that refers to the engine is gone: nothing here refers to the engine itself.
            self._finalizer = weakref.finalize(self, _close, self._ring, stack.pop_all())

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
        buffers = self._ring.n_bytes if self._ring is not None else 0
        rows = self._rows.n_bytes if self._rows is not None else 0
        sides = sum(side.n_bytes for side in self._sides.values())
        return self._store.n_bytes + buffers + rows + sides + self._workspace.size

    def sides(self, tensor: str) -> Sides:
        """Scales and all else that is not codes of a tensor."""
        return self._sides[tensor]

    def matrix(self, tensor: str) -> PackedMatrix:
        """What `multiply` takes, by the tensor's name."""
        return self._matrices[tensor]

    def multiply(
        self,
        matrix: PackedMatrix,
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
        with self._lock:
            rows = look_up(
                ids.reshape(-1),
                self._parts[tensor],
                self._sides[tensor],
                self._lend_rows,
                self._workspace,
                self.dtype,
            )
        return rows.reshape(*ids.shape, rows.shape[-1])

    @contextmanager
    def _lend(self, part: Part) -> Iterator[View]:
        number = self._numbers[part]
        decoded = self._store.decoded(number)
        if decoded is not None:
            yield View(part.name, decoded)
            return
        assert self._ring is not None
        with self._ring.lend(number, part.name) as view:
            yield view

    @contextmanager
    def _lend_rows(self, part: Part) -> Iterator[View]:
        number = self._numbers[part]
        decoded = self._store.decoded(number)
        if decoded is None:
            assert self._rows is not None
            if self._ring is None or self._ring.closed:
                raise SpqError("the model was closed")
            decoded = self._rows.obtain(number)
        yield View(part.name, decoded)


def _close(ring: Ring | None, files: ExitStack) -> None:
    if ring is not None:
        ring.close()
    files.close()


def _read_all_sides(parts: Mapping[str, tuple[Part, ...]], readers: Sequence[Reader]) -> dict[str, Sides]:
    return {name: read_sides(readers[own[0].reader_number], own[0].record) for name, own in parts.items()}


def _streams(plan: Plan, store: Store) -> tuple[Ring | None, RowCache | None]:
    if not store.is_streamed:
        return None, None
    sizes = [part.decoded_bytes for part in store.parts]
    products = [n for n, planned in enumerate(plan.parts) if planned.item.products]
    order = [n for n in products if plan.parts[n].residency != "decoded"]
    slot_bytes = max((sizes[n] for n in products), default=0)
    row_bytes = max((sizes[n] for n, planned in enumerate(plan.parts) if planned.item.lookups), default=0)
    ring = Ring(sizes, order, slot_bytes, N_SLOTS, N_WORKERS, store.fill)
    return ring, RowCache(sizes, row_bytes, N_ROW_SLOTS, store.fill)
