"""One model's packed weights on a device: what packed modules compute with, there."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TypeVar

import torch

from spqfmt.codecs.threads import own_lock_held_over_forks
from spqfmt.container.reader import Reader
from spqfmt.errors import SpqError
from spqfmt.kernels.device.fusing import FUSED_FLOATS, MAX_FUSED_TOKENS
from spqfmt.loaders.device.compute import Products
from spqfmt.loaders.device.decoder import Decoder
from spqfmt.loaders.device.direct import DirectEngine, LookUp, direct_product, look_up
from spqfmt.loaders.device.group_shipping import GroupShipment
from spqfmt.loaders.device.pieces import WeightPiece
from spqfmt.loaders.device.pipeline import Pipeline
from spqfmt.loaders.device.seam import Device, Graph, Memory
from spqfmt.loaders.device.sides import DeviceSides, change_bytes, device_side_bytes, put_sides
from spqfmt.loaders.packed.engine import HostWeights
from spqfmt.loaders.packed.room import Room
from spqfmt.loaders.packed.weights import DirectProduct, DirectProducts, NativeProducts
from spqfmt.records import TensorRecord
from spqfmt.residency.plan import Plan
from spqfmt.residency.sides import read_sides
from spqfmt.residency.workspace import rows_at_once

_LOOKED_UP_BYTES = 1 << 20
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
_GIB = 1 << 30

T = TypeVar("T")


class DeviceWeights:
    """Serves any number of modules and threads, one computation at a time.

    Rows of embeddings that are decoded on the device are looked up there, others on the host.

    Takes over the readers and closes them with itself, as packed.HostWeights does.
    """

    def __init__(
        self,
        plan: Plan,
        readers: Sequence[Reader],
        dtype: torch.dtype,
        device: Device,
        decoder: Decoder,
    ) -> None:
        """Take all memory and read what the plan keeps in it. Raises FormatError, OSError, BackendError."""
        self.plan = plan
        self.device = device
        self._dtype = dtype
        self.room = Room(plan)
        with ExitStack() as stack:
            stack.callback(device.close)
            # It closes the readers, at once if it cannot be made; else they close after the device has read its last.
            lookups = HostWeights(plan.on_host.lookups, readers, dtype)
            stack.pop_all()
            stack.callback(lookups.close)
            stack.callback(device.close)
            self._lookups = lookups
            zstd_on_device = decoder.zstd is not None
            records = [(parts[0].record, parts[0].reader_number) for parts in plan.by_tensor.values()]
            self._side_memory, self._sides = _put_all(
                records, readers, device, with_changes=plan.is_streamed and dtype in FUSED_FLOATS
            )
            workspace = device.allocate(plan.fixed.workspace)
            shipments = [
                GroupShipment.of(
                    [part.item.part for part in plan.parts[group.first : group.stop]],
                    zstd_on_device=zstd_on_device,
                )
                for group in plan.on_host.groups
            ]
            self._pipeline = Pipeline(
                device=device, plan=plan, shipments=shipments, readers=readers, decoder=decoder
            )
            self._pieces = self._pipeline.pieces
            self._products = Products(device, decoder.kernels, self._lend, workspace)
            self._lock = own_lock_held_over_forks()
            self._direct = DirectEngine(
                device=device,
                kernels=decoder.kernels,
                dtype=dtype,
                hold=self._hold,
                stored=self._pipeline.stored,
                workspace=workspace,
                lock=self._lock,
            )
            self._look_ups: dict[str, LookUp | None] = {}
            self.recorder = threading.Lock()
            """Held by whoever makes graphs of tokens."""
            self._pipeline.load()
            self._finalizer = weakref.finalize(self, stack.pop_all().close)

    @property
    def torch_device(self) -> torch.device:
        """Where inputs of products must be."""
        return self.device.torch_device

    @property
    def held_bytes(self) -> int:
        """Device memory that the engine holds: the plan's bytes but for the ordinary parameters."""
        return self._pipeline.held_bytes + self._side_memory.n_bytes + self.plan.fixed.workspace

    @property
    def host_held_bytes(self) -> int:
        """Host memory that the engine holds."""
        return self._pipeline.host_held_bytes + self._lookups.held_bytes

    def close(self) -> None:
        """Stop the thread that reads and close the file; what is not decoded can be computed no more."""
        self._finalizer()

    def is_recordable(self, tensor: str) -> bool:
        """Whether products with a tensor's matrix may stand in a graph of somebody else's: it stays decoded."""
        pieces = self._pieces.get(tensor)
        return pieces is not None and all(piece.home is not None for piece in pieces)

    def looks_up_here(self, tensor: str) -> bool:
        """Whether rows of a tensor's matrix are looked up on the device: no host waits for their numbers."""
        return self._rows_of(tensor) is not None

    @property
    def never_recorded(self) -> str | None:
        """Why no graph can be made of a token; None where one may be."""
        away = [part for part in self.plan.parts if part.residency in {"host", "disk"}]
        if not away:
            return None
        gib = sum(part.item.part.stored_bytes for part in away) / _GIB
        return f"{gib:.2f} GiB of the weights are not on the device, and come anew for each token"

    def settle(self) -> None:
        """What is got ready ahead of a token is forgotten, so that the next one begins as a graph of it does."""
        with self._lock:
            self._pipeline.settle()

    def record(self, run: Callable[[], T]) -> tuple[Graph, T]:
        """A graph of the whole token that `run` computes, which does nothing yet (Device.capture).

        No other thread computes with these weights meanwhile. Raises BackendError.
        """
        self._check_open()

        def recorded() -> T:
            with self._pipeline.recording():
                return run()

        with self._lock:
            self._pipeline.settle()
            return self.device.capture(recorded)

    def replay(self, graph: Graph) -> None:
        """Give a graph of `record` to the device, behind what it was given, and before what comes next."""
        self._check_open()
        with self._lock:
            self._pipeline.settle()
            graph.replay()

    def matrix(self, tensor: str) -> str:
        """What `multiply` takes, by the tensor's name."""
        return tensor

    def part_numbers(self, tensors: Iterable[str]) -> tuple[int, ...]:
        """What `as_they_come` knows the parts of some tensors by: the groups that they are in."""
        return tuple(dict.fromkeys(piece.group for tensor in tensors for piece in self._pieces[tensor]))

    def as_they_come(self, experts: Mapping[int, Sequence[int]], n_tokens: int) -> Iterator[int]:
        """Give each of some experts, known by the numbers of its parts, those in memory first.

        They are all asked for at once: the next ones are copied and decoded while one computes. Those that so few
        tokens are multiplied by straight are not decoded.
        """
        soonest = self._pipeline.soonest
        is_ready = self._pipeline.is_multiplied_straight if n_tokens <= MAX_FUSED_TOKENS else lambda _: False
        wanted = {
            expert: [number for number in numbers if soonest(number) and not is_ready(number)]
            for expert, numbers in experts.items()
        }
        order = sorted(experts, key=lambda expert: max(map(soonest, wanted[expert]), default=0))
        numbers = [number for expert in order for number in wanted[expert]]
        if numbers:
            self._check_open()
            with self._lock:
                self._pipeline.ask(numbers)
        return iter(order)

    def multiply(
        self, tensor: str, x: torch.Tensor, bias: torch.Tensor | None, *, int8_activations: bool | None
    ) -> torch.Tensor:
        """`x` [..., columns] times a tensor's matrix: [..., rows] in x's dtype. Raises what reading raises."""
        tokens = x.reshape(-1, x.shape[-1])
        if tokens.dtype not in _FLOATS:
            tokens = tokens.float()
        with self._lock:
            y = self._products.multiply(
                tokens,
                self._pieces[tensor],
                self._sides[tensor],
                bias=bias,
                int8_activations=int8_activations,
            )
        return y.to(x.dtype).reshape(*x.shape[:-1], y.shape[-1])

    def direct_product(self, tensor: str, *, rounds: bool) -> DirectProduct | None:
        """`multiply` with what is prepared for few tokens of the model's dtype; None for matrices of other forms."""
        return direct_product(self._pieces[tensor], self._sides[tensor], self._direct)

    def direct_products(self, tensors: Sequence[str], *, rounds: bool) -> DirectProducts | None:
        """None: each is a launch of its own."""
        return None

    def native_products(self, matrices: Sequence[str]) -> NativeProducts | None:
        """None: they are not on the host."""
        return None

    def multiply_transposed(self, tensor: str, y: torch.Tensor) -> torch.Tensor:
        """`y` [..., rows] times a tensor's matrix, not transposed: [..., columns] in y's dtype."""
        tokens = y.reshape(-1, y.shape[-1])
        if tokens.dtype not in _FLOATS:
            tokens = tokens.float()
        with self._lock:
            x = self._products.multiply_transposed(tokens, self._pieces[tensor], self._sides[tensor])
        return x.to(y.dtype).reshape(*y.shape[:-1], x.shape[-1])

    def look_up(self, tensor: str, ids: torch.Tensor) -> torch.Tensor:
        """Rows `ids` [...] of a tensor's matrix: [..., columns] in the model's dtype.

        What is looked up on the host waits for `ids`.
        """
        rows_of = self._rows_of(tensor)
        if rows_of is None:
            return self._lookups.look_up(tensor, ids.cpu()).to(self.torch_device)
        with self._lock:
            rows = rows_of(ids.reshape(-1).long())
        return rows.reshape(*ids.shape, rows.shape[-1])

    def _rows_of(self, tensor: str) -> LookUp | None:
        if tensor not in self._look_ups:
            pieces = self._pieces.get(tensor)
            found = None if pieces is None else look_up(pieces, self._sides[tensor], self._direct)
            self._look_ups[tensor] = found
        return self._look_ups[tensor]

    def values(self, tensor: str) -> torch.Tensor:
        """A tensor's matrix, [rows, columns] in the model's dtype, in device memory of its own."""
        if tensor not in self._pieces:
            return self._looked_up(tensor)
        with self._lock:
            return self._products.values(self._pieces[tensor], self._sides[tensor], self._dtype)

    def _looked_up(self, tensor: str) -> torch.Tensor:
        """All rows, some at a time: the host has no room for them."""
        shape = self._lookups.shape(tensor)
        out = torch.empty(shape, dtype=self._dtype, device=self.torch_device)
        for first in range(0, shape[0], step := rows_at_once(shape[1], out.itemsize, _LOOKED_UP_BYTES)):
            ids = torch.arange(first, min(first + step, shape[0]))
            out[first : first + step] = self._lookups.look_up(tensor, ids)
        return out

    @contextmanager
    def _lend(self, piece: WeightPiece) -> Iterator[Memory]:
        if piece.home is not None:
            yield piece.home
            return
        self._check_open()
        with self._pipeline.lend(piece.group) as group:
            yield piece.inside(group)

    def _hold(self, group: int) -> Memory:
        self._check_open()
        return self._pipeline.hold(group)

    def _check_open(self) -> None:
        if not self._finalizer.alive:
            raise SpqError("the model was closed")


def _put_all(
    records: Sequence[tuple[TensorRecord, int]],
    readers: Sequence[Reader],
    device: Device,
    *,
    with_changes: bool,
) -> tuple[Memory, dict[str, DeviceSides]]:
    sizes = [
        device_side_bytes(record) + (change_bytes(record) if with_changes else 0) for record, _ in records
    ]
    memory = device.allocate(sum(sizes))
    sides, at = {}, 0
    for (record, reader_number), n_bytes in zip(records, sizes, strict=True):
        found = read_sides(readers[reader_number], record)
        sides[record.name] = put_sides(found, memory.part(at, n_bytes), with_changes=with_changes)
        at += n_bytes
    return memory, sides
