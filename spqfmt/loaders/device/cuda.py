"""A CUDA device through torch: streams, events, pinned memory, one thread that reads."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from mmap import mmap
from typing import Any, TypeVar

import torch

from spqfmt.errors import BackendError, MemoryBudgetError
from spqfmt.kernels.cuda_device import require_cuda
from spqfmt.loaders.device.seam import Device, Event, Graph, Memory, Queue, Work
from spqfmt.residency.device_rates import DeviceRates, assumed_for
from spqfmt.residency.ladder import enough_mib

T = TypeVar("T")
_LEFT_FOR_OTHERS = 256 << 20
"""Device memory that a lower ceiling should leave beside the weights."""
_cuda: Any = torch.cuda  # its streams and events are untyped


class _CudaEvent:
    def __init__(self, event: Any) -> None:
        self.event = event

    def done(self) -> bool:
        done: bool = self.event.query()
        return done


class _ReadEvent:
    def __init__(self, future: Future[None]) -> None:
        self.future = future

    def done(self) -> bool:
        return self.future.done()


class _CudaGraph:
    def __init__(self, graph: Any, device: torch.device) -> None:
        self._graph, self._device = graph, device

    def replay(self) -> None:
        with told("a graph"), torch.cuda.device(self._device):
            self._graph.replay()


class CudaDevice(Device):
    """Copies and decodes on two streams of its own; computes on the stream that is current where it is called.

    Nothing here waits for the whole device: hosts wait for single events. Raises BackendError where there is no CUDA.
    """

    def __init__(self, device: str | torch.device = "cuda") -> None:
        device = torch.device(device)
        require_cuda(device)
        # "cuda" without a number is the one that is current now, whatever is current later.
        self._device = device if ":" in str(device) else torch.device("cuda", torch.cuda.current_device())
        with told("starting"):
            self._streams = {stream: _cuda.Stream(self._device) for stream in (Queue.COPY, Queue.DECODE)}
        self._reader = ThreadPoolExecutor(1, "spqfmt-read")
        self._process = os.getpid()
        self._allocated = 0
        self._pinned: list[torch.Tensor] = []

    @property
    def torch_device(self) -> torch.device:
        """The CUDA device, with its index."""
        return self._device

    @property
    def rates(self) -> DeviceRates:
        """Those assumed for a card of its name."""
        return assumed_for(torch.cuda.get_device_name(self._device))

    @property
    def allocated_bytes(self) -> int:
        """Bytes that were asked for, not what torch's allocator keeps."""
        return self._allocated

    @property
    def free_bytes(self) -> int | None:
        """What the driver says; torch's own reserve is given back to it before."""
        with told("asking for free memory"):
            torch.cuda.empty_cache()
            free, _ = torch.cuda.mem_get_info(self._device)
        return int(free)

    @property
    def is_watched(self) -> bool:
        """No: COMPUTE is the stream that is current."""
        return False

    def allocate(self, n_bytes: int) -> Memory:
        """Allocate memory of the device by torch. MemoryBudgetError: the device has not got it."""
        try:
            with told("allocating"):
                tensor = torch.empty(n_bytes, dtype=torch.uint8, device=self._device)
                # The allocator may give again what is still in use on this stream; ours do not know of that.
                _cuda.current_stream(self._device).synchronize()
        except torch.cuda.OutOfMemoryError as error:
            free, _ = torch.cuda.mem_get_info(self._device)
            lower = max(1, int(free) - _LEFT_FOR_OTHERS)
            raise MemoryBudgetError(
                f"{self._device} has {enough_mib(free)} free, the plan wants {enough_mib(n_bytes)} at once: "
                f"give memory auto, or {enough_mib(lower).replace(' ', '')} at most",
                lower,
            ) from error
        self._allocated += n_bytes
        return Memory(tensor.data_ptr(), n_bytes, tensor)

    def allocate_host(self, n_bytes: int) -> Memory:
        """Allocate page-locked memory of the host: copies from it run beside what the host does.

        Pages of our own are locked: torch's allocator of such memory rounds up to a power of two.
        """
        tensor = torch.frombuffer(mmap(-1, max(1, n_bytes)), dtype=torch.uint8)[:n_bytes]
        with told("pinning host memory"):
            torch.cuda.check_error(_cuda.cudart().cudaHostRegister(tensor.data_ptr(), max(1, n_bytes), 0))
        self._pinned.append(tensor)
        return Memory(tensor.data_ptr(), n_bytes, tensor)

    def read(self, work: Work, run: Callable[[], None], after: Event | None) -> Event:
        """Let the reading thread do the work, behind what it was given before.

        BackendError in a forked child, which has no such thread.
        """
        if os.getpid() != self._process:
            raise BackendError(
                "a forked process cannot use its parent's device; load the model there, or start it by spawn"
            )

        def task() -> None:
            if after is not None:
                self.synchronize(after)
            run()

        with told("starting the thread that reads"):
            return _ReadEvent(self._reader.submit(task))

    def enqueue(self, stream: Queue, work: Work, run: Callable[[], T]) -> T:
        """Run the work with the stream as torch's current one."""
        with told(work.label), torch.cuda.stream(self._stream(stream)):
            return run()

    def record(self, stream: Queue) -> Event:
        """Record an event that takes no times."""
        with told("recording an event"):
            return _CudaEvent(self._stream(stream).record_event(_cuda.Event()))

    def wait(self, stream: Queue, event: Event) -> None:
        """Let the stream wait on the device; for a read the host waits."""
        if isinstance(event, _ReadEvent):
            event.future.result()
        else:
            assert isinstance(event, _CudaEvent)
            with told("waiting for an event"):
                self._stream(stream).wait_event(event.event)

    def synchronize(self, event: Event) -> None:
        """Wait for this event, and for nothing behind it."""
        if isinstance(event, _ReadEvent):
            event.future.result()
        else:
            assert isinstance(event, _CudaEvent)
            with told("waiting for an event"):
                event.event.synchronize()

    def capture(self, run: Callable[[], T]) -> tuple[Graph, T]:
        """Record a CUDA graph on a stream of torch's; what other threads do meanwhile does not end it."""
        with told("recording a graph"), torch.cuda.device(self._device):
            graph = _cuda.CUDAGraph()
            with _cuda.graph(graph, capture_error_mode="thread_local"):
                result = run()
        return _CudaGraph(graph, self._device), result

    def close(self) -> None:
        """What was given to the thread and to both streams is done first: their memory goes back to the allocator."""
        self._reader.shutdown()
        with told("closing"):
            for stream in self._streams.values():
                stream.synchronize()
            while self._pinned:
                torch.cuda.check_error(_cuda.cudart().cudaHostUnregister(self._pinned.pop().data_ptr()))

    def _stream(self, stream: Queue) -> Any:
        own = self._streams.get(stream)
        return _cuda.current_stream(self._device) if own is None else own


@contextmanager
def told(what: str) -> Iterator[None]:
    """An error of CUDA as one of ours, in one line."""
    try:
        yield
    except torch.cuda.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise BackendError(f"the device failed at {what!r}: {' '.join(str(error).split())[:300]}") from error
