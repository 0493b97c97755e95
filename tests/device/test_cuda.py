"""CudaDevice where there is no CUDA: torch's streams and events replaced by ones that write down what they are told."""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from spqfmt.errors import BackendError, ChecksumError, MemoryBudgetError
from spqfmt.loaders.device import cuda
from spqfmt.loaders.device.seam import Queue, Work

WORK = Work("copy w")


class _Event:
    def __init__(self, log: list[str], name: str = "") -> None:
        self.log = log
        self.name = name
        self.is_done = False

    def query(self) -> bool:
        return self.is_done

    def synchronize(self) -> None:
        self.log.append(f"host waits for {self.name}")


class _Stream:
    def __init__(self, log: list[str], name: str) -> None:
        self.log = log
        self.name = name

    def record_event(self, event: _Event) -> _Event:
        event.name = f"event of {self.name}"
        self.log.append(f"{self.name} records")
        return event

    def wait_event(self, event: _Event) -> None:
        self.log.append(f"{self.name} waits for {event.name}")

    def synchronize(self) -> None:
        self.log.append(f"host waits for all of {self.name}")


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the device is told; a whole-device synchronization would fail the test."""
    entries: list[str] = []
    names = iter(("copy", "decode"))
    current = [_Stream(entries, "compute")]

    @contextmanager
    def use(stream: _Stream) -> Iterator[None]:
        current.append(stream)
        yield
        current.pop()

    fake = SimpleNamespace(
        Stream=lambda device: _Stream(entries, next(names)),
        Event=lambda: _Event(entries),
        current_stream=lambda device: current[-1],
    )
    monkeypatch.setattr(cuda, "_cuda", fake)
    monkeypatch.setattr(torch.cuda, "stream", use)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *a: pytest.fail("the whole device was waited for"))
    entries.append("")
    entries.clear()
    return entries


@pytest.fixture
def device(log: list[str]) -> Iterator[cuda.CudaDevice]:
    made = cuda.CudaDevice("cuda")
    assert made.torch_device == torch.device("cuda", 0)
    yield made
    made.close()


def test_work_runs_with_its_stream_as_the_current_one(device: cuda.CudaDevice, log: list[str]) -> None:
    for stream in (Queue.COPY, Queue.DECODE, Queue.COMPUTE):
        name = device.enqueue(stream, WORK, lambda: cuda._cuda.current_stream(None).name)
        assert name == stream.value
    event = device.record(Queue.COPY)
    device.wait(Queue.DECODE, event)
    device.synchronize(event)
    assert log == ["copy records", "decode waits for event of copy", "host waits for event of copy"]
    assert not event.done()


def test_reads_are_done_in_order_each_after_its_event(device: cuda.CudaDevice, log: list[str]) -> None:
    done: list[int] = []
    begin = threading.Event()
    first = device.read(WORK, lambda: (begin.wait(5), done.append(1))[1], None)
    second = device.read(WORK, lambda: done.append(2), device.record(Queue.COPY))
    assert not first.done()
    begin.set()
    device.wait(Queue.COPY, second)  # holds up the caller, not the stream
    assert done == [1, 2]
    assert first.done()
    assert log == ["copy records", "host waits for event of copy"]


def test_what_a_read_raises_is_raised_by_who_waits_and_later_reads_go_on(device: cuda.CudaDevice) -> None:
    def fail() -> None:
        raise ChecksumError("bad")

    bad = device.read(WORK, fail, None)
    good = device.read(WORK, lambda: None, None)
    for wait in (lambda: device.wait(Queue.COPY, bad), lambda: device.synchronize(bad)):
        with pytest.raises(ChecksumError, match="bad"):
            wait()
    device.synchronize(good)


def test_an_error_of_cuda_is_one_line_that_names_the_work(device: cuda.CudaDevice) -> None:
    def fail() -> None:
        raise RuntimeError("CUDA error: an illegal memory access\nwas encountered")

    with pytest.raises(
        BackendError, match=r"^the device failed at 'copy w': CUDA error: an illegal memory access was"
    ):
        device.enqueue(Queue.COPY, WORK, fail)


def test_a_graph_is_recorded_on_a_stream_of_its_own_with_the_queues_that_wait_for_it(
    device: cuda.CudaDevice, log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Graph:
        def replay(self) -> None:
            log.append("graph")

    @contextmanager
    def record(graph: Graph, *, capture_error_mode: str) -> Iterator[None]:
        log.append(f"begin, {capture_error_mode}")
        with torch.cuda.stream(_Stream(log, "recorded")):  # type: ignore[arg-type]
            yield
        log.append("end")

    @contextmanager
    def current(where: torch.device) -> Iterator[None]:
        assert where == torch.device("cuda", 0)
        yield

    monkeypatch.setattr(cuda._cuda, "CUDAGraph", Graph, raising=False)
    monkeypatch.setattr(cuda._cuda, "graph", record, raising=False)
    monkeypatch.setattr(torch.cuda, "device", current)

    def token() -> str:
        device.wait(Queue.DECODE, device.record(Queue.COMPUTE))
        device.enqueue(Queue.DECODE, WORK, lambda: log.append(cuda._cuda.current_stream(None).name))
        device.wait(Queue.COMPUTE, device.record(Queue.DECODE))
        return "logits"

    graph, found = device.capture(token)
    graph.replay()
    assert found == "logits"
    assert log == [
        "begin, thread_local",
        "recorded records",
        "decode waits for event of recorded",
        "decode",
        "decode records",
        "recorded waits for event of decode",
        "end",
        "graph",
    ]

    def fail() -> None:
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore")

    with pytest.raises(
        BackendError, match="the device failed at 'recording a graph': CUDA error: operation not"
    ):
        device.capture(fail)


def test_closing_waits_for_both_streams_and_the_reader(device: cuda.CudaDevice, log: list[str]) -> None:
    done: list[int] = []
    device.read(WORK, lambda: (time.sleep(0.05), done.append(1))[1], None)
    device.close()
    assert done == [1]
    assert log == ["host waits for all of copy", "host waits for all of decode"]


def test_memory_that_there_is_not(
    device: cuda.CudaDevice, log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def empty(*shape: int, **options: object) -> torch.Tensor:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (300 << 20, 1 << 30))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    message = (
        "cuda:0 has 300.0 MiB free, the plan wants 512.0 MiB at once: give memory auto, or 44.0MiB at most"
    )
    with pytest.raises(MemoryBudgetError, match=message):
        device.allocate(512 << 20)
    assert device.free_bytes == 300 << 20
    assert device.allocated_bytes == 0


def test_host_memory_is_pinned_to_the_exact_size_and_let_go_at_the_end(
    device: cuda.CudaDevice, log: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pinned: dict[int, int] = {}
    errors = [0, 0, 2]

    def register(address: int, n_bytes: int, flags: int) -> int:
        pinned[address] = n_bytes
        return errors.pop(0)

    def unregister(address: int) -> int:
        del pinned[address]
        return 0

    def check(error: int) -> None:
        if error:
            raise RuntimeError(f"CUDA error {error}")

    runtime = SimpleNamespace(cudaHostRegister=register, cudaHostUnregister=unregister)
    monkeypatch.setattr(cuda._cuda, "cudart", lambda: runtime, raising=False)
    monkeypatch.setattr(torch.cuda, "check_error", check)
    memories = [device.allocate_host(n) for n in (5 << 20, 12_345)]
    assert [memory.tensor.numel() for memory in memories] == [5 << 20, 12_345]
    assert pinned == {memory.address: memory.n_bytes for memory in memories}
    assert all(memory.address % 4096 == 0 for memory in memories)
    with pytest.raises(BackendError, match=r"pinning host memory.*CUDA error 2"):
        device.allocate_host(4096)
    pinned = {memory.address: memory.n_bytes for memory in memories}
    device.close()
    assert pinned == {}


def test_a_device_that_is_not_there(log: list[str]) -> None:
    with pytest.raises(BackendError, match="device 'cuda:3' cannot be used: there are 1 CUDA devices"):
        cuda.CudaDevice("cuda:3")


def test_a_forked_child_is_told_instead_of_waiting(
    device: cuda.CudaDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with pytest.raises(BackendError, match="a forked process cannot use its parent's device; load the model"):
        device.read(WORK, lambda: None, None)
