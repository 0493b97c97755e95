"""A driver that launches nothing, and a device that does nothing, but count what they are asked for."""

import ctypes
import mmap
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, TypeVar

import torch
from triton.backends.compiler import GPUTarget

from spqfmt.kernels.cuda.driver import Launch
from spqfmt.loaders.device.seam import Device, Event, Graph, Memory, Queue, Work
from spqfmt.residency.device_rates import DeviceRates

T = TypeVar("T")
NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)


class NoDriver:
    """Triton's driver, as far as its launcher calls it: what is launched is counted by name."""

    def __init__(self, capability: int) -> None:
        self.launched: Counter[str] = Counter()
        launched = self.launched

        class Launcher:
            def __init__(self, _source: object, metadata: Any) -> None:
                self._name = metadata.name

            def __call__(self, *_arguments: object) -> None:
                launched[self._name] += 1

        self.launcher_cls = Launcher
        self._capability = capability
        self.utils = SimpleNamespace(
            load_binary=lambda *_: (1, 1, 32, 0, 1024),
            get_device_properties=lambda _: {"max_shared_mem": 101_376, "multiprocessor_count": 1},
        )

    def prepare(self, name: str, programs: int, threads: int, arguments: ctypes.Structure) -> Launch:
        """Count launches of our own PTX as those of Triton's."""
        pointers = (ctypes.c_void_p * 1)(ctypes.addressof(arguments))
        function, pointer, launched = ctypes.c_void_p(1), ctypes.c_void_p, self.launched
        # a function of C that does next to nothing, and minds no arguments: to call it takes time
        call = ctypes.CDLL(None).Py_IsInitialized

        def launch() -> None:
            launched[name] += 1
            call(function, programs, 1, 1, threads, 1, 1, 0, pointer(0), pointers, None)

        return launch

    def get_current_device(self) -> int:
        """There is only this one."""
        return 0

    def get_current_stream(self, _device: int) -> int:
        """There is only this one."""
        return 0

    def get_current_target(self) -> GPUTarget:
        """What kernels are compiled for."""
        return GPUTarget("cuda", self._capability, 32)


class _Done:
    def done(self) -> bool:
        return True


class _CountedGraph:
    def __init__(self, counts: Counter[str]) -> None:
        self._counts = counts

    def replay(self) -> None:
        self._counts["graphs"] += 1


class CountingDevice(Device):
    """Memory of which nothing is ever touched, and queues that give what they are told to the driver that is not."""

    def __init__(self, rates: DeviceRates) -> None:
        self._rates = rates
        self._allocated = 0
        self.counts: Counter[str] = Counter()

    @property
    def torch_device(self) -> torch.device:
        """The CPU, whose addresses stand for those of a device."""
        return torch.device("cpu")

    @property
    def rates(self) -> DeviceRates:
        """Those that the plan is made with."""
        return self._rates

    @property
    def allocated_bytes(self) -> int:
        """Bytes of addresses, with nothing behind them."""
        return self._allocated

    @property
    def free_bytes(self) -> int | None:
        """Nobody knows: there is nothing but addresses."""
        return None

    @property
    def is_watched(self) -> bool:
        """Whether it wants to be told: no, as CUDA."""
        return False

    def allocate(self, n_bytes: int) -> Memory:
        """Addresses without memory behind them."""
        self._allocated += n_bytes
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE
        pages = mmap.mmap(-1, max(1, n_bytes), flags=flags)
        tensor = torch.frombuffer(pages, dtype=torch.uint8)[:n_bytes]
        return Memory(tensor.data_ptr(), n_bytes, tensor)

    allocate_host = allocate

    def read(self, work: Work, run: Callable[[], None], after: Event | None) -> Event:
        """Count what would be read."""
        self.counts["reads"] += 1
        return _Done()

    def enqueue(self, stream: Queue, work: Work, run: Callable[[], T]) -> T:
        """Copies are counted, other work is done."""
        if stream is Queue.COPY:
            self.counts["copies"] += 1
            return None  # type: ignore[return-value]
        return run()

    def record(self, stream: Queue) -> Event:
        """Count an event, which is all."""
        self.counts["events"] += 1
        return _Done()

    def wait(self, stream: Queue, event: Event) -> None:
        """Count a wait of a queue, which is all."""
        self.counts["events"] += 1

    def synchronize(self, event: Event) -> None:
        """Count a wait of the host, which is all."""
        self.counts["host_waits"] += 1

    def capture(self, run: Callable[[], T]) -> tuple[Graph, T]:
        """Count what is recorded as if it were launched, and each replay."""
        return _CountedGraph(self.counts), run()

    def close(self) -> None:
        """Do nothing: there is nothing open."""
