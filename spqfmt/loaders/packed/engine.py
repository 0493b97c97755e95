"""One model's packed weights: where each part is, and what is computed from it."""

import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch

from spqfmt.codecs.threads import lock_held_over_forks
from spqfmt.container.reader import Reader
from spqfmt.errors import SpqError
from spqfmt.kernels import backend
from spqfmt.kernels.context import current, using
from spqfmt.kernels.multiply import CodeMatrices
from spqfmt.kernels.pages import allocate
from spqfmt.loaders.packed.buffers import View, lent
from spqfmt.loaders.packed.direct import direct_product, direct_products
from spqfmt.loaders.packed.room import Room
from spqfmt.loaders.packed.store import Store
from spqfmt.loaders.packed.streams import Streams
from spqfmt.loaders.packed.weights import DirectProduct, DirectProducts, NativeProducts
from spqfmt.loaders.schemes.base import HostMatrix, TakesNarrow, WholeProduct
from spqfmt.loaders.schemes.registry import PRODUCTS
from spqfmt.residency.parts import Part
from spqfmt.residency.plan import Plan
from spqfmt.residency.sides import read_all_sides
from spqfmt.schemes.sides import Sides

_CPU = torch.device("cpu")


class HostWeights:
    """Serves any number of modules and threads, one computation at a time.

    It works in the context that it was made in, whatever is in force where it is called. It takes over the readers and
    closes them with itself: by `close`, or when the last module that refers to it is gone.
    """

    def __init__(self, plan: Plan, readers: Sequence[Reader], dtype: torch.dtype) -> None:
        """Read what the plan keeps in memory. Raises FormatError, OSError; the readers are closed then."""
        self.plan = plan
        self.dtype = dtype
        self.room = Room(plan)
        with ExitStack() as stack:
            for reader in readers:
                stack.callback(reader.close)
            backend.current()  # the kernels that SPQFMT_BACKEND names decode here too
            self._context = current()
            self._numbers, self._parts = plan.numbers, plan.by_tensor
            # Of the other parts rows are looked up, and nothing else: they are no part of a pass.
            self._multiplied = {p.item.part for p in plan.parts if p.item.products}
            # Parts of experts may have to make room for others.
            self._experts_move = any(
                p.item.share is not None and p.residency != "decoded" for p in plan.parts
            )
            sides = _read_all_sides(self._parts, readers)
            self._workspace = allocate(plan.fixed.workspace)
            self._lock = lock_held_over_forks()
            self._store = Store(plan, readers)
            self._store.load()
            self._streams = Streams(plan, self._store) if self._store.is_streamed else None
            self._matrices = {name: self._matrix(self._parts[name], own) for name, own in sides}
            weakref.finalize(self, self._matrices.clear)
            # Also when the last module that refers to the engine is gone: nothing here refers to the engine itself.
            self._finalizer = weakref.finalize(self, _close, self._streams, stack.pop_all())

    @property
    def torch_device(self) -> torch.device:
        """The CPU, which is where inputs of products must be."""
        return _CPU

    def close(self) -> None:
        """Stop the threads and close the file; what is not decoded can be computed no more."""
        self._finalizer()

    @property
    def held_bytes(self) -> int:
        """What the engine holds now: the plan's bytes but for the ordinary parameters."""
        streams = self._streams.n_bytes if self._streams is not None else 0
        sides = sum(matrix.n_bytes for matrix in self._matrices.values())
        return self._store.n_bytes + streams + sides + self._workspace.size

    @property
    def n_read_bytes(self) -> int:
        """Bytes of parts that were read from the file so far, by loading and since."""
        return self._store.n_read_bytes

    @property
    def host_held_bytes(self) -> int:
        """0: all that is held is where inputs are."""
        return 0

    def is_recordable(self, tensor: str) -> bool:
        """Yes: there are no CUDA graphs on the CPU."""
        return True

    def looks_up_here(self, tensor: str) -> bool:
        """Yes: inputs are on the host."""
        return True

    def matrix(self, tensor: str) -> HostMatrix:
        """What `multiply` takes, by the tensor's name."""
        return self._matrices[tensor]

    def multiply(
        self,
        matrix: HostMatrix,
        x: torch.Tensor,
        bias: torch.nn.Parameter | None,
        *,
        int8_activations: bool | None,
    ) -> torch.Tensor:
        """`x` [..., columns] times a tensor's matrix: [..., rows] in x's dtype. Raises what reading raises."""
        with using(self._context):
            y = matrix.multiply_whole(x, bias, int8_activations=int8_activations)
            if y is not None:
                return y
            with self._lock:
                return matrix.multiply(
                    x, bias, self._lend, self._workspace, int8_activations=int8_activations
                )

    def direct_product(self, matrix: HostMatrix, *, rounds: bool) -> DirectProduct | None:
        """`multiply` without a detour for a few tokens of the model's dtype; None where codes are not all in memory."""
        whole = matrix.whole_product
        return None if whole is None else direct_product(whole, self.dtype, self._context, rounds=rounds)

    def direct_products(self, matrices: Sequence[HostMatrix], *, rounds: bool) -> DirectProducts | None:
        """`direct_product` with some matrices whose inputs are the same; None where one has none."""
        wholes = _wholes(matrices)
        return None if wholes is None else direct_products(wholes, self.dtype, self._context, rounds=rounds)

    def native_products(self, matrices: Sequence[HostMatrix]) -> NativeProducts | None:
        """What `direct_products` multiplies by."""
        wholes = _wholes(matrices)
        if wholes is None:
            return None
        pairs = [(whole.matrix, whole.codes) for whole in wholes]
        return NativeProducts(CodeMatrices(pairs), self.dtype, self._context)

    def multiply_transposed(self, matrix: HostMatrix, y: torch.Tensor) -> torch.Tensor:
        """`y` [..., rows] times a tensor's matrix, not transposed: [..., columns] in y's dtype."""
        with using(self._context), self._lock:
            return matrix.multiply_transposed(y, self._lend, self._workspace)

    def look_up(self, tensor: str, ids: torch.Tensor) -> torch.Tensor:
        """Rows `ids` [...] of a tensor's matrix: [..., columns] in the model's dtype."""
        wanted = ids.reshape(-1)
        with using(self._context), self._lock:
            rows = self._matrices[tensor].look_up(wanted, self._lend_rows, self._workspace, self.dtype)
        return rows.reshape(*ids.shape, rows.shape[-1])

    def shape(self, tensor: str) -> tuple[int, int]:
        """Rows and columns of a tensor's matrix."""
        return self._parts[tensor][0].record.matrix_shape

    def values(self, tensor: str) -> torch.Tensor:
        """A tensor's matrix, [rows, columns] in the model's dtype, in memory of its own. Raises what reading raises."""
        matrix = self._matrices[tensor]
        lend = self._lend if self._parts[tensor][0] in self._multiplied else self._lend_rows
        with using(self._context), self._lock:
            return matrix.values(lend, self._workspace, self.dtype)

    def as_they_come(self, experts: Mapping[int, Sequence[int]], n_tokens: int) -> Iterator[int]:
        """Give each of some experts, known by the numbers of its parts, when it can be computed, soonest first.

        What of them is on disk is asked for at once, and read while others are computed.
        """
        away = None if self._streams is None else self._streams.experts
        return iter(experts) if away is None else away.as_they_come(experts, self._lock)

    def part_numbers(self, tensors: Iterable[str]) -> tuple[int, ...]:
        """What `as_they_come` knows the parts of some tensors by."""
        return tuple(self._numbers[part] for tensor in tensors for part in self._parts[tensor])

    def _matrix(self, parts: tuple[Part, ...], sides: Sides) -> HostMatrix:
        numbers = [self._numbers[part] for part in parts]
        whole = None if self._moves(numbers[0]) else self._store.decoded_run(numbers)
        matrix = PRODUCTS[sides.record.scheme].matrix(parts, sides, whole)
        narrowed = self._store.narrow_run(numbers)
        if narrowed is not None and isinstance(matrix, TakesNarrow):
            matrix.take_narrow(narrowed)
        return matrix

    def _moves(self, number: int) -> bool:
        return self._experts_move and self.plan.parts[number].item.share is not None

    @contextmanager
    def _lend(self, part: Part) -> Iterator[View]:
        number = self._numbers[part]
        decoded = self._store.decoded(number)
        if decoded is None or self._moves(number):
            held = self._open_streams().lend(number, part.name)
        else:
            held = lent(part.name, decoded)
        with held as view:
            yield view

    @contextmanager
    def _lend_rows(self, part: Part) -> Iterator[View]:
        number = self._numbers[part]
        decoded = self._store.decoded(number)
        rows = (
            self._open_streams().rows.lend(number, part.name) if decoded is None else lent(part.name, decoded)
        )
        with rows as view:
            yield view

    def _open_streams(self) -> Streams:
        if self._streams is None or not self._finalizer.alive:
            raise SpqError("the model was closed")
        return self._streams


def _wholes(matrices: Sequence[HostMatrix]) -> list[WholeProduct] | None:
    wholes = [whole for matrix in matrices if (whole := matrix.whole_product) is not None]
    return wholes if len(wholes) == len(matrices) else None


def _close(streams: Streams | None, files: ExitStack) -> None:
    if streams is not None:
        streams.close()
    files.close()


def _read_all_sides(
    parts: Mapping[str, tuple[Part, ...]], readers: Sequence[Reader]
) -> list[tuple[str, Sides]]:
    records = {name: own[0].record for name, own in parts.items()}
    return list(read_all_sides(records, {name: readers[own[0].reader_number] for name, own in parts.items()}))
