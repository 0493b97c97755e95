"""The way of parts to the product: order, who owns which buffer, how streams overlap, and what happens on failures."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from device_support import RATES, engine_of, plan_of

from spqfmt.container.reader import Reader
from spqfmt.errors import BackendError, ChecksumError, CorruptError, SpqError
from spqfmt.kernels.choose import kernels_for
from spqfmt.loaders.device import BufferConflictError, Fault, SimulatedDevice
from spqfmt.loaders.device.decoder import Decoder
from spqfmt.loaders.device.group_shipping import GroupShipment
from spqfmt.loaders.device.pipeline import Pipeline
from spqfmt.loaders.device.seam import Queue, Work
from spqfmt.schemes.uniform import Uniform

ROWS, COLUMNS, N_LAYERS = 64, 128, 8
NAMES = [f"layer{i}" for i in range(N_LAYERS)]


@pytest.fixture
def stored(write_tensors: Callable[..., Path], generator: Any) -> Path:
    """Eight layers of one part each."""
    tensors = {}
    for name in NAMES:
        codes = generator.normal(0, 20, (ROWS, COLUMNS)).clip(-127, 127).astype(np.int8)
        tensors[name] = (Uniform(codes, np.float32(0.01), "i8").encode(), (ROWS, COLUMNS))
    return write_tensors(tensors, chunk_bytes=1 << 20)


X = torch.linspace(-1, 1, COLUMNS)[None]


def one_pass(engine: Any, names: list[str] = NAMES) -> list[torch.Tensor]:
    return [engine.multiply(name, X, None, int8_activations=False) for name in names]


@pytest.fixture
def expected(stored: Path) -> list[torch.Tensor]:
    engine, _ = engine_of(stored, "decoded")
    assert {part.residency for part in engine.plan.parts} == {"decoded"}
    return one_pass(engine)


def same(found: list[torch.Tensor], expected: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("residency", ["compressed", "host", "disk"])
def test_streamed_weights_are_the_decoded_ones_whatever_the_order_of_use(
    stored: Path, expected: list[torch.Tensor], residency: str
) -> None:
    engine, device = engine_of(stored, residency)
    assert {part.residency for part in engine.plan.parts} == {residency}
    taken = device.allocated_bytes
    order = list(range(N_LAYERS))
    for numbers in (order, order, order[::-1], [3, 3, 7, 0, 5, 3], order):
        found = one_pass(engine, [NAMES[n] for n in numbers])
        assert same(found, [expected[n] for n in numbers])
    assert device.allocated_bytes == taken == engine.plan.held_bytes
    engine.close()


def test_every_step_of_a_part_comes_after_the_one_before_it(stored: Path) -> None:
    engine, device = engine_of(stored, "disk")
    for _ in range(3):
        one_pass(engine)
    times: dict[str, list[Any]] = {}
    for done in device.trace:
        times.setdefault(done.label, []).append(done)
    for name in NAMES:
        assert len(times[f"compute {name}"]) == 3
        for earlier, later in pairwise(("read", "copy", "decode", "compute")):
            # What was read ahead of a fourth pass has no later step yet.
            for before, after in zip(times[f"{earlier} {name}"], times[f"{later} {name}"], strict=False):
                assert before.stop <= after.start
    engine.close()


@pytest.mark.parametrize("residency", ["decoded", "compressed", "host", "disk"])
def test_layers_that_go_together_are_the_same_and_computed_with_one_by_one(
    stored: Path, expected: list[torch.Tensor], residency: str
) -> None:
    # Four parts of this size are loaded together where all stays: 3 layers of 8 KiB.
    engine, device = engine_of(stored, residency, part_bytes=6 << 10)
    groups = [(group.first, group.stop) for group in engine.plan.on_host.groups]
    assert groups == [(0, 3), (3, 6), (6, 8)]
    order = list(range(N_LAYERS))
    for numbers in (order, order, order[::-1], [3, 3, 7, 0, 5, 3], order):
        assert same(one_pass(engine, [NAMES[n] for n in numbers]), [expected[n] for n in numbers])
    labels = [done.label for done in device.trace]
    assert "decode layer0 to layer2" in labels
    assert "compute layer1" in labels
    engine.close()


@pytest.mark.parametrize("residency", ["decoded", "compressed", "host", "disk"])
def test_of_layers_that_go_together_the_damaged_one_is_named(
    stored: Path, residency: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Reader(stored) as reader:
        plane = reader.index.by_name["layer4"].by_role["codes"].chunks[0].planes[0]
    damage(stored, "layer4", at=plane.stored_bytes - 40)
    monkeypatch.setattr("spqfmt.kernels.native.crc32", lambda chunk, value=0: _Any())
    with pytest.raises(CorruptError, match=r"tensor 'layer4': .*rans block"):
        one_pass(engine_of(stored, residency, part_bytes=6 << 10)[0])


def test_what_stays_decoded_lies_side_by_side_and_is_one_piece(
    write_tensors: Callable[..., Path], generator: Any
) -> None:
    codes = generator.normal(0, 20, (4 * ROWS, COLUMNS)).clip(-127, 127).astype(np.int8)
    encoded = Uniform(codes, np.float32(0.01), "i8").encode()
    path = write_tensors({"w": (encoded, codes.shape)}, chunk_bytes=1 << 11)
    for residency, n_pieces in (("decoded", 1), ("compressed", 2)):
        engine, _ = engine_of(path, residency, part_bytes=1 << 12)
        assert len(engine.plan.parts) == 8
        assert len(engine._pieces["w"]) == n_pieces
        engine.close()


def seconds_of_a_pass(stored: Path, residency: str, rates: Any) -> tuple[float, int]:
    """Virtual seconds of the fourth pass and later, each; the number of parts."""
    reader = Reader(stored)
    plan = plan_of([reader], residency)
    device = SimulatedDevice(rates, runs=False)
    parts = [part.item.part for part in plan.parts]
    assert [(group.first, group.stop) for group in plan.on_host.groups] == [
        (n, n + 1) for n in range(len(parts))
    ]
    shipments = [GroupShipment.of([part], zstd_on_device=False) for part in parts]
    pipeline = Pipeline(device, plan, shipments, [reader], Decoder(kernels_for(torch.device("cpu"), "torch")))
    pipeline.load()
    ends = []
    for _ in range(8):
        for number, part in enumerate(parts):
            with pipeline.lend(number) as codes:
                work = Work(f"compute {part.name}", (codes,), (), {"compute": part.decoded_bytes})
                device.enqueue(Queue.COMPUTE, work, lambda: None)
        ends.append(max(done.stop for done in device.trace if done.stream is Queue.COMPUTE))
    reader.close()
    return (ends[-1] - ends[3]) / 4, len(parts)


def balanced(stored: Path, seconds: dict[str, float]) -> Any:
    """Rates at which a part takes so long on each stream."""
    with Reader(stored) as reader:
        parts = [part.item for part in plan_of([reader], "disk").parts]
    read = np.mean([item.part.stored_bytes for item in parts])
    sent = np.mean([item.load.sent_bytes for item in parts])
    decoded = parts[0].part.decoded_bytes
    return replace(
        RATES, operation_s=0.0, read=read / seconds["read"], copy=sent / seconds["copy"],
        rans=decoded / seconds["decode"], compute=decoded / seconds["compute"],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("residency", "streams"),
    [
        ("host", ("copy", "decode", "compute")),
        ("disk", ("read", "copy", "decode", "compute")),
        ("compressed", ("decode", "compute")),
    ],
)
def test_streams_of_equal_length_overlap_to_the_length_of_one(
    stored: Path, residency: str, streams: tuple[str, ...]
) -> None:
    rates = balanced(stored, dict.fromkeys(("read", "copy", "decode", "compute"), 1.0))
    seconds, n_parts = seconds_of_a_pass(stored, residency, rates)
    assert n_parts == N_LAYERS
    assert seconds < 1.1 * n_parts
    assert seconds < 0.6 * len(streams) * n_parts


@pytest.mark.parametrize("slow", ["read", "copy", "decode", "compute"])
def test_the_slowest_stream_alone_decides(stored: Path, slow: str) -> None:
    times = dict.fromkeys(("read", "copy", "decode", "compute"), 0.4) | {slow: 1.0}
    seconds, n_parts = seconds_of_a_pass(stored, "disk", balanced(stored, times))
    assert n_parts <= seconds * 1.001
    assert seconds < 1.05 * n_parts


def test_a_ring_of_one_buffer_would_not_overlap(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = balanced(stored, dict.fromkeys(("read", "copy", "decode", "compute"), 1.0))
    for module in ("spqfmt.loaders.device.holdings", "spqfmt.residency.device"):
        monkeypatch.setattr(f"{module}.N_SLOTS", 1)
        monkeypatch.setattr(f"{module}.N_LANDINGS", 1)
    seconds, n_parts = seconds_of_a_pass(stored, "host", rates)
    assert seconds > 1.9 * n_parts


def test_a_delay_anywhere_changes_no_result(stored: Path, expected: list[torch.Tensor]) -> None:
    for label in ("read", "copy", "decode", "compute"):
        faults = [Fault(f"{label} layer{n}", "delay", 1.0) for n in (2, 5, 7)]
        engine, device = engine_of(stored, "disk", faults=faults)
        for _ in range(2):
            assert same(one_pass(engine), expected)
        assert device.trace[-1].stop > 3
        engine.close()


@pytest.mark.parametrize("kind", ["fail", "fail later"])
@pytest.mark.parametrize("label", ["copy", "decode", "compute"])
def test_a_device_that_fails_is_told_and_hands_out_nothing_more(
    stored: Path, expected: list[torch.Tensor], label: str, kind: Any
) -> None:
    engine, device = engine_of(stored, "disk", faults=[Fault(f"{label} layer6", kind, skip=1)])
    found: list[torch.Tensor] = []

    def three_passes() -> None:
        for n, name in enumerate(NAMES * 3):
            y = engine.multiply(name, X, None, int8_activations=False)
            device.synchronize(device.record(Queue.COMPUTE))  # as whoever looks at a result on a device must
            assert torch.equal(y, expected[n % N_LAYERS])
            found.append(y)

    with pytest.raises(BackendError, match=f"the device failed at '{label} layer6'"):
        three_passes()
    assert N_LAYERS < len(found) < 2 * N_LAYERS
    with pytest.raises(BackendError, match="the device failed"):
        engine.multiply("layer0", X, None, int8_activations=False)
    engine.close()


def test_a_device_that_fails_while_it_loads_is_told(stored: Path) -> None:
    for residency, label in (("decoded", "decode layer3"), ("compressed", "copy layer3")):
        for kind in ("fail", "fail later"):
            with pytest.raises(BackendError, match=f"the device failed at '{label}'"):
                engine_of(stored, residency, faults=[Fault(label, kind)])  # type: ignore[arg-type]


def damage(path: Path, name: str, at: int = 100) -> int:
    """Change one byte of a tensor's codes; its place in the file."""
    with Reader(path) as reader:
        offset = reader.index.by_name[name].by_role["codes"].chunks[0].planes[0].offset + at
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(bytes(data))
    return offset


@pytest.mark.parametrize("residency", ["decoded", "compressed", "host"])
def test_a_damaged_chunk_stops_loading(stored: Path, residency: str) -> None:
    damage(stored, "layer4")
    with pytest.raises(ChecksumError, match=r"tensors\.spq: tensor 'layer4': .*checksum"):
        engine_of(stored, residency)


def test_a_chunk_that_is_damaged_while_the_model_runs_is_told_and_mended_ones_work_again(
    stored: Path, expected: list[torch.Tensor]
) -> None:
    engine, _ = engine_of(stored, "disk")
    assert same(one_pass(engine), expected)
    damage(stored, "layer4")
    for _ in range(2):
        # What was read ahead before the damage may still be served.
        with pytest.raises(ChecksumError, match=r"tensor 'layer4'") as caught:
            one_pass(engine, NAMES * 2)
        assert caught.value.offset is not None
        assert same(one_pass(engine, NAMES[:4]), expected[:4])
        assert same(one_pass(engine, NAMES[5:]), expected[5:])
    damage(stored, "layer4")
    assert same(one_pass(engine), expected)
    engine.close()


@pytest.mark.parametrize("residency", ["decoded", "compressed", "host", "disk"])
def test_a_chunk_with_a_right_checksum_that_does_not_decode_is_never_computed_with(
    stored: Path, expected: list[torch.Tensor], residency: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one who forges a file would make it: the checksum fits, the block does not."""
    with Reader(stored) as reader:
        plane = reader.index.by_name["layer4"].by_role["codes"].chunks[0].planes[0]
    damage(stored, "layer4", at=plane.stored_bytes - 40)
    monkeypatch.setattr("spqfmt.kernels.native.crc32", lambda chunk, value=0: _Any())

    def load_and_run() -> None:
        engine, _ = engine_of(stored, residency)
        assert same(one_pass(engine, NAMES[:4]), expected[:4])
        one_pass(engine)

    with pytest.raises(CorruptError, match=r"tensor 'layer4': .*rans block"):
        load_and_run()


class _Any(int):
    """Equal to every checksum."""

    def __ne__(self, other: object) -> bool:
        return False

    __hash__ = int.__hash__


def test_a_closed_engine_says_so(stored: Path) -> None:
    for residency in ("disk", "host", "compressed"):
        engine, _ = engine_of(stored, residency)
        engine.close()
        with pytest.raises(SpqError, match="the model was closed"):
            one_pass(engine)
    engine, _ = engine_of(stored, "decoded")
    engine.close()
    one_pass(engine)


def test_the_watch_finds_a_copy_that_does_not_wait_for_the_decoder(
    stored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = SimulatedDevice.wait
    monkeypatch.setattr(
        SimulatedDevice,
        "wait",
        lambda self, stream, event: (
            None if stream is Queue.COPY and not event.of_reader else real(self, stream, event)
        ),
    )
    with pytest.raises(BufferConflictError, match=r"'copy layer\d+' on copy writes what 'decode layer\d+'"):
        one_pass(engine_of(stored, "host")[0])


@pytest.mark.parametrize("stream", [Queue.DECODE, Queue.COMPUTE])
def test_the_watch_finds_a_stream_that_waits_for_nothing(
    stored: Path, monkeypatch: pytest.MonkeyPatch, stream: Queue
) -> None:
    real = SimulatedDevice.wait
    monkeypatch.setattr(
        SimulatedDevice,
        "wait",
        lambda self, waiting, event: None if waiting is stream else real(self, waiting, event),
    )
    with pytest.raises(BufferConflictError, match="nothing orders them"):
        one_pass(engine_of(stored, "disk")[0], NAMES * 3)
