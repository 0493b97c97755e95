"""A device on the CPU: a virtual clock, real bytes, and a watch over who touches which buffer when.

Work is done as it is given; the clock says when it would have been done. That both agree, and that a real device may
order the streams as it likes, is what the watch proves: two accesses to one byte, at least one of them a write, must be
ordered by their stream or by events (vector clocks, as race detectors have them), or BufferConflictError is raised
whatever the rates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar, cast

import torch

from spqfmt.errors import BackendError
from spqfmt.loaders.device.seam import Device, Event, Graph, Memory, Queue, Work
from spqfmt.loaders.device.simulated_graphs import Recording
from spqfmt.residency.device_rates import DEFAULT, DeviceRates

T = TypeVar("T")
_Clock = dict[Queue, int]
_GUARD_BYTES = 4096
_FRESH = 0xA5
"""What new memory is full of: never zero, which would pass for weights."""


class BufferConflictError(AssertionError):
    """Two operations that nothing orders touch the same bytes, and one of them writes."""


@dataclass
class Fault:
    """Something goes wrong with operations whose label contains `label`, after the first `skip` of them, `times` times.

    "fail" raises as the operation is given to the stream; "fail later" leaves it undone, which the next call to the
    device tells, as CUDA does; "delay" makes it take `seconds` longer.
    """

    label: str
    kind: Literal["fail", "fail later", "delay"]
    seconds: float = 0.0
    skip: int = 0
    times: int = 1

    def strikes(self, label: str) -> bool:
        """Whether it is this operation's turn."""
        if self.label not in label or self.times == 0:
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.times -= 1
        return True


class Done(NamedTuple):
    """An operation of the past: the seconds of the virtual clock at which it began and ended."""

    stream: Queue
    label: str
    start: float
    stop: float


class _Event(NamedTuple):
    device: SimulatedDevice
    seconds: float
    clock: _Clock
    of_reader: bool = False
    error: Exception | None = None
    recording: Recording | None = None

    def done(self) -> bool:
        self.device._wait_allowed(self)
        return self.seconds <= self.device.seconds


class _Access(NamedTuple):
    stream: Queue
    begin: int
    end: int
    writes: bool


class SimulatedDevice(Device):
    """`capacity_bytes` of memory, None for any; `faults` that are to happen; `runs` False counts time alone."""

    def __init__(
        self,
        rates: DeviceRates = DEFAULT,
        *,
        capacity_bytes: int | None = None,
        faults: Sequence[Fault] = (),
        runs: bool = True,
    ) -> None:
        self._rates = rates
        self.faults = list(faults)
        self.seconds = 0.0
        """The host's virtual clock: it moves only where the host waits."""
        self.trace: list[Done] = []
        self.peak_host_bytes = 0
        self._capacity = capacity_bytes
        self._runs = runs
        self._allocated = 0
        self._next_address = _GUARD_BYTES
        self._free = dict.fromkeys(Queue, 0.0)
        self._clocks: dict[Queue, _Clock] = {stream: {} for stream in Queue}
        self._host_clock: _Clock = {}
        self._accesses: dict[_Access, tuple[int, str]] = {}
        self._failed: BackendError | None = None
        self._recording: Recording | None = None

    @property
    def torch_device(self) -> torch.device:
        """The CPU, whose memory stands for that of the device."""
        return torch.device("cpu")

    @property
    def rates(self) -> DeviceRates:
        """The rates that the virtual clock goes by."""
        return self._rates

    @property
    def allocated_bytes(self) -> int:
        """Nothing is ever given back, so this is the peak too."""
        return self._allocated

    @property
    def free_bytes(self) -> int | None:
        """What the capacity leaves."""
        return None if self._capacity is None else self._capacity - self._allocated

    def allocate(self, n_bytes: int) -> Memory:
        """Allocate memory that counts against the capacity."""
        self._not_recorded("memory is allocated")
        if self._capacity is not None and self._allocated + n_bytes > self._capacity:
            raise BackendError(
                f"the device has {self._capacity} bytes, {self._allocated} are taken: {n_bytes} more do not fit"
            )
        self._allocated += n_bytes
        return self._memory(n_bytes)

    def allocate_host(self, n_bytes: int) -> Memory:
        """Allocate ordinary memory, and count it as the host's."""
        self._not_recorded("memory of the host is allocated")
        self.peak_host_bytes += n_bytes
        return self._memory(n_bytes)

    def _memory(self, n_bytes: int) -> Memory:
        address = self._next_address
        self._next_address += n_bytes + _GUARD_BYTES
        tensor = torch.full((n_bytes,), _FRESH, dtype=torch.uint8) if self._runs else None
        return Memory(address, n_bytes, tensor)

    def read(self, work: Work, run: Callable[[], None], after: Event | None) -> Event:
        """Do the work at the time when the reading thread would have done it."""
        self._not_recorded(work.label)
        error: Exception | None = None
        if after is not None:
            assert isinstance(after, _Event)
            self._join(Queue.READ, after)
        try:
            self._do(Queue.READ, work, run)
        except Exception as raised:  # noqa: BLE001  # raised again by the one who waits
            error = raised
        return self._event(Queue.READ)._replace(of_reader=True, error=error)

    def enqueue(self, stream: Queue, work: Work, run: Callable[[], T]) -> T:
        """Done at once; the clock of the stream moves on."""
        assert stream is not Queue.READ
        self._check()
        result: T = self._do(stream, work, run)
        return result

    def record(self, stream: Queue) -> Event:
        """All that the stream was given."""
        assert stream is not Queue.READ
        self._check()
        return self._event(stream)

    def wait(self, stream: Queue, event: Event) -> None:
        """Orders the stream, and the host where a read is waited for."""
        assert isinstance(event, _Event)
        self._check()
        if self._recording is None:
            self._wait_allowed(event)
        elif event.recording is not self._recording:
            raise BackendError("an event of before a graph is waited for in it")
        else:
            self._recording.queues.add(stream)
            self._clocks[stream][stream] = self._clocks[stream].get(stream, 0) + 1
        if event.of_reader:
            self._host_waits(event)
        self._join(stream, event)

    def synchronize(self, event: Event) -> None:
        """Move the host's clock to when the event has happened."""
        assert isinstance(event, _Event)
        self._wait_allowed(event)
        self._host_waits(event)
        self._check()

    def capture(self, run: Callable[[], T]) -> tuple[Graph, T]:
        """What `run` asks torch and the plain kernels for is recorded, and done at each replay."""
        self._check()
        self._not_recorded("another graph is recorded")
        before = self._clocks, self._accesses, self._free, self._host_clock, self.seconds, len(self.trace)
        recording = self._recording = Recording()
        self._clocks, self._accesses = {stream: {} for stream in Queue}, {}
        self._free, self._host_clock, self.seconds = dict.fromkeys(Queue, 0.0), {}, 0.0
        try:
            if any(fault.strikes("record a graph") for fault in self.faults):
                raise BackendError("the device failed at 'record a graph'")
            with recording.entered():
                result = run()
            joined = self._clocks[Queue.COMPUTE]
            for queue in recording.queues:
                if joined.get(queue, 0) < self._clocks[queue].get(queue, 0):
                    raise BackendError(f"COMPUTE does not wait for {queue.value} at the end of a graph")
            seconds = max(self._free.values())
        finally:
            self._recording = None
            self._clocks, self._accesses, self._free, self._host_clock, self.seconds, n = before
            del self.trace[n:]
        return _SimulatedGraph(self, recording, seconds), result

    def replay(self, recording: Recording, seconds: float) -> None:
        """Do what was recorded, as one work of COMPUTE that takes so long."""
        self._not_recorded("a graph is given")
        self._check()
        self._do(Queue.COMPUTE, recording.work, recording.again)
        last = self.trace.pop()
        self._free[Queue.COMPUTE] = last.stop + max(0.0, seconds - self.rates.operation_s)
        self.trace.append(last._replace(stop=self._free[Queue.COMPUTE]))

    def _not_recorded(self, what: str) -> None:
        if self._recording is not None:
            raise BackendError(f"{what} while a graph is recorded")

    def _wait_allowed(self, event: _Event) -> None:
        self._not_recorded("the host asks for an event")
        if event.recording is not None:
            raise BackendError("an event of a graph is asked for outside it")

    def close(self) -> None:
        """Do nothing: there is no thread to end."""

    def _check(self) -> None:
        if self._failed is not None:
            raise self._failed

    def _host_waits(self, event: _Event) -> None:
        self.seconds = max(self.seconds, event.seconds)
        _merge(self._host_clock, event.clock)
        if event.error is not None:
            raise event.error

    def _join(self, stream: Queue, event: _Event) -> None:
        self._free[stream] = max(self._free[stream], event.seconds)
        _merge(self._clocks[stream], event.clock)

    def _event(self, stream: Queue) -> _Event:
        own = self._recording
        recording = own if own is not None and stream in own.queues else None
        return _Event(self, self._free[stream], dict(self._clocks[stream]), recording=recording)

    def _do(self, stream: Queue, work: Work, run: Callable[[], T]) -> T:
        if self._recording is not None:
            self._recording.add(stream, work)
        clock = self._clocks[stream]
        _merge(clock, self._host_clock)
        clock[stream] = clock.get(stream, 0) + 1
        struck = [fault for fault in self.faults if fault.strikes(work.label)]
        delay = sum(fault.seconds for fault in struck if fault.kind == "delay")
        start = max(self.seconds, self._free[stream])
        self._free[stream] = start + self.rates.seconds(work.amounts) + delay
        self.trace.append(Done(stream, work.label, start, self._free[stream]))
        for memories, writes in ((work.reads, False), (work.writes, True)) if self._runs else ():
            for memory in memories:
                self._touch(stream, memory, work.label, writes=writes)
        if any(fault.kind == "fail" for fault in struck):
            raise BackendError(f"the device failed at {work.label!r}")
        if any(fault.kind == "fail later" for fault in struck):
            self._failed = BackendError(f"the device failed at {work.label!r}")
            return cast("T", None)
        return run() if self._runs else cast("T", None)

    def _touch(self, stream: Queue, memory: Memory, label: str, *, writes: bool) -> None:
        access = _Access(stream, memory.address, memory.address + memory.n_bytes, writes)
        clock = self._clocks[stream]
        covered = []
        for other, (number, other_label) in self._accesses.items():
            if other.begin >= access.end or access.begin >= other.end or not (writes or other.writes):
                continue
            if clock.get(other.stream, 0) < number:
                raise BufferConflictError(
                    f"{label!r} on {stream.value} {'writes' if writes else 'reads'} what {other_label!r} on "
                    f"{other.stream.value} {'writes' if other.writes else 'reads'}, and nothing orders them"
                )
            if writes and access.begin <= other.begin and other.end <= access.end:
                covered.append(other)
        # Whoever comes after this write comes after what it was ordered behind.
        for other in covered:
            del self._accesses[other]
        self._accesses[access] = (clock[stream], label)


class _SimulatedGraph(NamedTuple):
    device: SimulatedDevice
    recording: Recording
    seconds: float

    def replay(self) -> None:
        self.device.replay(self.recording, self.seconds)


def _merge(clock: _Clock, other: _Clock) -> None:
    for stream, number in other.items():
        clock[stream] = max(clock.get(stream, 0), number)
