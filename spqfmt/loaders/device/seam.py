"""What the pipeline asks of a device: memory that is taken once, streams in order, and events between them.

Everything about weights on a device is written once against this class. CudaDevice runs it; SimulatedDevice runs it on
the CPU under a virtual clock and watches that nobody writes what another may still read.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Protocol, TypeVar

import torch

from spqfmt.residency.device_rates import DeviceRates

T = TypeVar("T")


class Queue(Enum):
    """Each does its work in the order in which it was given. READ is a thread of the host, the others the device's."""

    READ = "read"
    COPY = "copy"
    DECODE = "decode"
    COMPUTE = "compute"


class Memory:
    """A run of bytes on the host or on a device. `address` tells apart what lies where."""

    __slots__ = ("_tensor", "address", "n_bytes")

    def __init__(self, address: int, n_bytes: int, tensor: torch.Tensor | None) -> None:
        self.address = address
        self.n_bytes = n_bytes
        self._tensor = tensor

    @property
    def tensor(self) -> torch.Tensor:
        """The memory as a tensor, uint8[n_bytes]. A simulation that only counts time has none."""
        assert self._tensor is not None, "memory without bytes"
        return self._tensor

    def part(self, begin: int, n_bytes: int) -> Memory:
        """`n_bytes` of the memory, from byte `begin` on."""
        assert 0 <= begin <= begin + n_bytes <= self.n_bytes
        tensor = None if self._tensor is None else self._tensor[begin : begin + n_bytes]
        return Memory(self.address + begin, n_bytes, tensor)


@dataclass(frozen=True)
class Work:
    """What is told of an operation beside its doing: what it touches, and how much of which kind (DeviceRates)."""

    label: str
    reads: tuple[Memory, ...] = ()
    writes: tuple[Memory, ...] = ()
    amounts: Mapping[str, int] = field(default_factory=dict)


class Event(Protocol):
    """A point in a stream's work."""

    def done(self) -> bool:
        """Whether all before it is done, without waiting."""
        ...


class Graph(Protocol):
    """Work that was recorded once, with the addresses that it had then, and is given again as a whole."""

    def replay(self) -> None:
        """Give all of it to COMPUTE."""
        ...


class Device(ABC):
    """One device with its memory and its queues.

    Calls come from one thread at a time. What it cannot do raises BackendError.
    """

    @property
    @abstractmethod
    def torch_device(self) -> torch.device:
        """Where tensors of activations and small parameters live."""

    @property
    @abstractmethod
    def rates(self) -> DeviceRates:
        """What a plan for it is made with."""

    @property
    @abstractmethod
    def allocated_bytes(self) -> int:
        """Device memory that `allocate` gave so far."""

    @property
    @abstractmethod
    def free_bytes(self) -> int | None:
        """Device memory that is free now, whoever has the rest; None where that is not known."""

    @property
    def is_watched(self) -> bool:
        """Whether it must be told of all work. Else what computes may be launched, on the current stream, untold."""
        return True

    @abstractmethod
    def allocate(self, n_bytes: int) -> Memory:
        """Device memory for as long as somebody refers to it."""

    @abstractmethod
    def allocate_host(self, n_bytes: int) -> Memory:
        """Host memory that the device copies from by itself (pinned)."""

    @abstractmethod
    def read(self, work: Work, run: Callable[[], None], after: Event | None) -> Event:
        """Do `run` on the READ stream once `after` is done. Its exception is raised by who waits for the event."""

    @abstractmethod
    def enqueue(self, stream: Queue, work: Work, run: Callable[[], T]) -> T:
        """Give the stream the device work that `run` launches; returns at once what `run` returns."""

    @abstractmethod
    def record(self, stream: Queue) -> Event:
        """The event of all that the stream was given so far; not for READ."""

    @abstractmethod
    def wait(self, stream: Queue, event: Event) -> None:
        """What the stream is given from now on begins after the event. One of READ holds up the caller instead."""

    @abstractmethod
    def synchronize(self, event: Event) -> None:
        """Hold up the caller until the event, and no other work of the device."""

    @abstractmethod
    def capture(self, run: Callable[[], T]) -> tuple[Graph, T]:
        """Record what `run` gives to COMPUTE, and to queues that wait for it, without doing it; with what it returns.

        Tensors that it makes stay as long as the graph. In the end COMPUTE must wait for those queues. While this lasts
        no host waits, no event of before is waited for, nothing is allocated and read by `allocate` and `read`: that
        raises BackendError, after which the device works as before.
        """

    @abstractmethod
    def close(self) -> None:
        """Stop the thread that reads."""


def copy_bytes(target: Memory, source: Memory) -> None:
    """Launch a copy of `source` into `target` on the current stream."""
    target.tensor.copy_(source.tensor, non_blocking=True)
