"""The planner for a device: pure, from sizes and given rates."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from spqfmt.cli.device_table import show_device_plan
from spqfmt.cli.units import size
from spqfmt.codecs.threads import blocks
from spqfmt.container.reader import Reader
from spqfmt.errors import MemoryBudgetError
from spqfmt.records import Chunk, Chunks, PlaneChunk, Stream, TensorRecord
from spqfmt.residency.blocks import with_blocks_of
from spqfmt.residency.device import DeviceInventory, plan_device
from spqfmt.residency.device_rates import ASSUMED, DEFAULT, DeviceRates, assumed_for
from spqfmt.residency.device_stages import is_fused, stages
from spqfmt.residency.inventory import Expert, Inventory, Item, Load
from spqfmt.residency.parts import Part
from spqfmt.residency.plan import Plan
from spqfmt.schemes.uniform import Uniform
from spqfmt.wire import CODEC_RANS

N = 40
RAW, STORED, SENT = 6400, 4800, 5120
EMBEDDING = 6400
SLOW_DECODER = replace(DEFAULT, rans=1e8, operation_s=0.0)
FAST_DECODER = replace(DEFAULT, rans=1e13, operation_s=0.0, step_s=0.0)


def part(name: str) -> Part:
    chunk = Chunk(0, RAW, (PlaneChunk(64, STORED, RAW, CODEC_RANS, 0),))
    codes = Stream("codes", "i8", RAW, Chunks.of([chunk]))
    record = TensorRecord(name, (1, RAW), "bf16", "uniform", "", {"orientation": "rows"}, (codes,))
    return Part(record, 0, (chunk,), 0, 1, True)


LOAD = Load(SENT, 16384, {"read": STORED}, {"rans": RAW})
ITEMS = tuple(Item(part(f"layer{n}"), products=True, lookups=False, load=LOAD) for n in range(N))
LOOKUPS = Inventory((Item(part("embed"), products=False, lookups=True),), 0, 64, 640)
INVENTORY = DeviceInventory(ITEMS, float_bytes=1000, side_bytes=512, workspace_bytes=2048, lookups=LOOKUPS)
WHOLE = plan_device(INVENTORY, DEFAULT)
SMALLEST, LEAST_HOST = WHOLE.smallest_bytes, WHOLE.on_host.smallest_bytes


def where(plan: Plan) -> list[str]:
    return [part.residency for part in plan.parts]


def test_without_ceilings_all_is_decoded() -> None:
    assert set(where(WHOLE)) == {"decoded"}
    assert not WHOLE.is_streamed
    assert WHOLE.fixed.ring == 0
    assert WHOLE.held_bytes == WHOLE.fixed.total + N * RAW
    assert WHOLE.serial_ms == pytest.approx(1e3 * N * (DEFAULT.operation_s + RAW / DEFAULT.compute))


@pytest.mark.parametrize("rates", [DEFAULT, SLOW_DECODER, FAST_DECODER, ASSUMED["rtx4060"]])
def test_both_ceilings_are_kept_and_no_room_is_left_that_could_hold_a_part(rates: DeviceRates) -> None:
    for memory in range(SMALLEST, WHOLE.held_bytes + 7000, 9_130):
        for host in (*range(LEAST_HOST, LEAST_HOST + N * SENT + 9000, 31_000), None):
            plan = plan_device(INVENTORY, rates, memory, host)
            assert plan.held_bytes <= memory
            assert host is None or plan.host_held_bytes <= host
            assert plan.smallest_bytes == SMALLEST
            assert plan.on_host.smallest_bytes == LEAST_HOST
            found = where(plan)
            if host is None:
                assert "disk" not in found
            elif "disk" in found:
                assert host - plan.host_held_bytes < SENT + EMBEDDING
            if {"host", "disk"} & set(found):
                assert memory - plan.held_bytes < RAW


def test_more_memory_never_costs_time() -> None:
    for rates in (DEFAULT, SLOW_DECODER, FAST_DECODER):
        times = [
            plan_device(INVENTORY, rates, memory, None).serial_ms
            for memory in range(SMALLEST, WHOLE.held_bytes + 7000, 1_777)
        ]
        assert times[-1] < times[0]
        # A few parts more or less are a matter of rounding to whole ones.
        assert all(later <= earlier * 1.03 for earlier, later in pairwise(times))


def test_a_slow_decoder_wants_decoded_layers_and_a_fast_one_compressed_ones() -> None:
    memory = SMALLEST + 20 * RAW
    slow = where(plan_device(INVENTORY, SLOW_DECODER, memory))
    fast = where(plan_device(INVENTORY, FAST_DECODER, memory))
    assert slow.count("decoded") == 20
    assert set(slow) == {"decoded", "host"}
    assert fast.count("compressed") >= 20 * RAW // SENT - 1
    assert "decoded" not in fast


def test_what_is_left_goes_to_host_memory_and_then_stays_on_disk() -> None:
    plan = plan_device(INVENTORY, SLOW_DECODER, SMALLEST + 10 * RAW, LEAST_HOST + 10 * SENT)
    found = where(plan)
    assert (found.count("decoded"), found.count("host"), found.count("disk")) == (10, 10, 20)
    assert plan.bytes_in("host") == 10 * SENT
    on_disk = next(part for part in plan.parts if part.residency == "disk")
    assert on_disk.bytes == 0
    assert on_disk.stages.read == pytest.approx(STORED / DEFAULT.read)
    assert on_disk.stages.copy == pytest.approx(SENT / DEFAULT.copy)


def test_alike_parts_are_spread_over_the_model() -> None:
    found = where(plan_device(INVENTORY, SLOW_DECODER, SMALLEST + 20 * RAW))
    runs = [
        len(run)
        for run in "".join("d" if w == "decoded" else "h" for w in found)
        .replace("dh", "d h")
        .replace("hd", "h d")
        .split()
    ]
    assert max(runs) <= 3


def test_the_smallest_ceilings_are_named_and_work() -> None:
    plan = plan_device(INVENTORY, DEFAULT, SMALLEST, LEAST_HOST)
    assert set(where(plan)) == {"disk"}
    assert (plan.held_bytes, plan.host_held_bytes) == (SMALLEST, LEAST_HOST)
    with pytest.raises(MemoryBudgetError, match=rf"^memory .*at least .*\({SMALLEST} bytes\)") as caught:
        plan_device(INVENTORY, DEFAULT, SMALLEST - 1)
    assert caught.value.smallest_bytes == SMALLEST
    with pytest.raises(MemoryBudgetError, match=rf"^host_memory .*\({LEAST_HOST} bytes\)") as caught:
        plan_device(INVENTORY, DEFAULT, SMALLEST, LEAST_HOST - 1)
    assert caught.value.smallest_bytes == LEAST_HOST


def test_overlap_is_the_longest_stream() -> None:
    plan = plan_device(INVENTORY, replace(DEFAULT, step_s=0.0), SMALLEST, LEAST_HOST)
    read, copy, decode, compute = plan.stages
    assert plan.serial_ms == pytest.approx(1e3 * (read + copy + decode + compute))
    assert plan.overlapped_ms == pytest.approx(1e3 * read)
    assert read > copy > decode


def test_groups_are_as_large_as_the_buffers_under_a_ceiling_may_be() -> None:
    several = replace(INVENTORY, part_bytes=RAW)
    sizes = []
    for memory in (SMALLEST, 10 * SMALLEST, 100 * SMALLEST, None):
        plan = plan_device(several, DEFAULT, memory, None)
        groups = plan.on_host.groups
        assert [group.first for group in groups] == [0, *(group.stop for group in groups[:-1])]
        assert groups[-1].stop == len(plan.parts)
        for group in groups:
            assert len({part.residency for part in plan.parts[group.first : group.stop]}) == 1
        assert memory is None or plan.held_bytes <= memory
        sizes.append(max(group.decoded_bytes for group in groups))
    assert sizes[0] == RAW
    assert sizes[-1] == 4 * RAW  # while loading


def test_rows_are_looked_up_on_the_device_where_all_has_room_there() -> None:
    row = Item(part("embed"), products=False, lookups=True, load=LOAD)
    inventory = replace(INVENTORY, rows=(row,), row_side_bytes=64)
    whole = plan_device(inventory, DEFAULT)
    assert whole.parts[0].name == "embed"
    assert whole.on_host.lookups.parts == ()
    assert whole.held_bytes == WHOLE.held_bytes + EMBEDDING + 64
    less = plan_device(inventory, DEFAULT, whole.held_bytes - 1)
    assert [p.name for p in less.on_host.lookups.parts] == ["embed"]
    assert less.held_bytes == WHOLE.held_bytes


def test_json_has_the_documented_keys() -> None:
    found = plan_device(INVENTORY, DEFAULT, SMALLEST).to_json()
    assert {"memory_bytes", "smallest_bytes", "weights_bytes", "layers", "host_memory_bytes"} <= found.keys()
    assert found["weights_bytes"] == {"stored": (N + 1) * STORED, "decoded": N * RAW + 1512}
    layers = found["layers"]
    assert isinstance(layers, list)
    assert layers[0].keys() == {"name", "residency", "bytes", "expected_ms"}


def test_a_card_is_found_by_its_name() -> None:
    assert assumed_for("NVIDIA GeForce RTX 4090") is ASSUMED["rtx4090"]
    assert assumed_for("NVIDIA A100-SXM4-40GB") is ASSUMED["a100"]
    assert assumed_for("NVIDIA H100 PCIe") is ASSUMED["h100"]
    assert assumed_for("another card") is DEFAULT
    assert all(rates.assumed for rates in ASSUMED.values())


def test_a_launch_takes_as_long_as_one_of_its_blocks() -> None:
    rates = replace(DEFAULT, operation_s=0.0, rans=1e12, step_s=1e-7, warps=100, block_bytes=1 << 16)
    block = (1 << 16) / 32 * 1e-7
    assert rates.seconds({"rans": 1 << 16}) == pytest.approx(block)
    assert rates.seconds({"rans": 100 << 16}) == pytest.approx(block)
    assert rates.seconds({"rans": 101 << 16}) == pytest.approx(2 * block)
    assert rates.seconds({"rans": 3200}) == pytest.approx(3200 / 32 * 1e-7)
    small = replace(rates, block_bytes=1 << 14)
    assert small.seconds({"rans": 100 << 14}) == pytest.approx(block / 4)
    assert replace(rates, rans=1e6).seconds({"rans": 1 << 16}) == pytest.approx((1 << 16) / 1e6)


FUSED = replace(
    INVENTORY,
    items=tuple(replace(item, load=LOAD._replace(fused={"fused": RAW})) for item in ITEMS),
    change_bytes=640,
)
FREE = replace(DEFAULT, operation_s=0.0, step_s=0.0, fused_step_s=0.0)


def test_products_straight_from_compressed_parts_take_the_decoder_and_no_more(
    capsys: pytest.CaptureFixture[str],
) -> None:
    memory = SMALLEST + 30 * SENT
    plan, first = (plan_device(inventory, FREE, memory) for inventory in (FUSED, INVENTORY))
    assert where(first).count("compressed") >= 25
    for part in plan.parts:
        assert part.fused is (part.residency == "compressed")
        if part.fused:
            assert part.stages.decode == 0
            assert part.stages.compute == pytest.approx(RAW / FREE.rans)
    assert plan.fused_bytes == plan.bytes_in("compressed") > 0
    assert first.fused_bytes == 0
    layers = plan.to_json()["layers"]
    assert isinstance(layers, list)
    assert [layer.get("fused", False) for layer in layers] == [part.fused for part in plan.parts]
    on_top = SimpleNamespace(n_tokens=1, batch=1, kv_cache_bytes=0, activation_bytes=0)
    show_device_plan(cast("Any", SimpleNamespace(plan=plan, on_top=on_top, changed=(), whole={})), str)
    assert f"for 1 to 8 tokens: {size(plan.fused_bytes)} of what" in capsys.readouterr().out


@pytest.mark.parametrize(("gain", "stays"), [(0.9, False), (1.02, False), (1.2, True)])
def test_what_has_room_decoded_stays_compressed_where_a_token_takes_less(gain: float, stays: bool) -> None:
    sent = Load(RAW // 2, 16384, {"read": RAW // 2}, {"rans": RAW}, {"fused": RAW})
    looked_up = Item(LOOKUPS.items[0].part, products=False, lookups=True, load=LOAD)
    items = tuple(replace(item, load=sent) for item in ITEMS)
    given = replace(INVENTORY, items=items, rows=(looked_up,))
    plan = plan_device(given, replace(FREE, fused=FREE.compute * gain), 10 * WHOLE.held_bytes)
    products = {part.residency for part in plan.parts if part.item.products}
    assert products == {"compressed" if stays else "decoded"}
    assert plan.is_streamed is stays
    # rows are looked up of what is decoded, on the device
    assert [part.residency for part in plan.parts if part.item.lookups] == ["decoded"]
    assert not plan.on_host.lookups.parts
    # without room for both the host looks rows up
    tight = plan_device(given, replace(FREE, fused=FREE.compute * gain), plan.held_bytes - 64)
    assert tight.is_streamed is stays
    assert tight.on_host.lookups.parts


def test_what_outliers_change_takes_room_where_parts_are_streamed() -> None:
    assert plan_device(FUSED, FREE).fixed.sides == INVENTORY.side_bytes
    assert plan_device(FUSED, FREE).held_bytes == WHOLE.held_bytes
    streamed = plan_device(FUSED, FREE, SMALLEST + 20 * SENT)
    assert streamed.fixed.sides == INVENTORY.side_bytes + 640
    assert streamed.smallest_bytes == SMALLEST + 640


@pytest.mark.parametrize(
    ("rates", "is_better"),
    [
        (FREE, True),
        (replace(FREE, fused=FREE.rans / 10), False),  # slower than decoding, and what that moves
        (
            replace(FREE, fused=FREE.rans / 2, compute=FREE.rans / 10),
            True,
        ),  # memory bounds what is decoded first
        (replace(FREE, block_bytes=1 << 12), False),  # there is no room for the records of so many blocks
        (
            replace(FREE, step_s=1e-6, warps=1, block_bytes=1 << 13),
            True,
        ),  # as slow as decoding, without the rest
    ],
)
def test_parts_are_multiplied_straight_where_that_is_faster(rates: DeviceRates, is_better: bool) -> None:
    assert is_fused(FUSED.items[:4], "compressed", rates) is is_better
    assert not is_fused(FUSED.items[:4], "host", rates)


def test_parts_that_go_together_are_multiplied_straight_all_or_none() -> None:
    one = FUSED.items[0]
    for other in (ITEMS[1], replace(one, products=False, lookups=True)):
        assert not is_fused((one, other), "compressed", FREE)


def test_an_expert_is_multiplied_straight_for_its_share_of_tokens() -> None:
    expert = tuple(replace(item, share=0.25, expert=Expert(0, 0)) for item in FUSED.items[:3])
    assert is_fused(expert, "compressed", FREE)
    assert stages(expert, "compressed", FREE).compute == pytest.approx(3 * RAW / FREE.rans / 4)
    # a launch of few blocks takes as long as one of them, and three of them longer than to decode all at once
    slow = replace(FREE, step_s=1e-6, warps=1000, block_bytes=1 << 13)
    assert not is_fused(expert, "compressed", slow)


def test_a_plan_counts_with_the_blocks_of_the_file(write_tensors: Callable[..., Path]) -> None:
    """Of 16 KiB a launch takes a quarter of the time of one block of 64, where it is no more than that."""
    codes = np.random.default_rng(0).normal(0, 20, (64, 4096)).clip(-127, 127).astype(np.int8)
    rates = replace(DEFAULT, operation_s=0.0, rans=1e15, step_s=1e-6, warps=1000)
    seconds = {}
    for log2 in (16, 14):
        with blocks(log2):
            encoded = Uniform(codes, np.float32(0.01), "i8").encode()
            path = write_tensors({"w": (encoded, codes.shape)}, chunk_bytes=1 << 20)
        with Reader(path) as reader:
            own = with_blocks_of(rates, [reader])
            seconds[log2] = own.seconds({"rans": codes.size})
            assert own == replace(rates, block_bytes=1 << log2)
    assert seconds[16] == pytest.approx(4 * seconds[14])
