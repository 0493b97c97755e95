"""The planner: pure, from sizes and given rates."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers

from spqfmt.container.reader import Reader
from spqfmt.container.writer import Writer
from spqfmt.errors import MemoryBudgetError
from spqfmt.kernels.narrow import narrow_bytes
from spqfmt.records import Chunk, Chunks, PlaneChunk, Stream, TensorRecord
from spqfmt.residency.cpu import plan_residency
from spqfmt.residency.decode_rates import CodecRate, DecodeRates
from spqfmt.residency.inventory import N_BUFFERS, N_READS, Inventory, Item
from spqfmt.residency.ladder import enough_mib
from spqfmt.residency.parts import Part
from spqfmt.residency.plan import Plan
from spqfmt.residency.rates import Rates, measure_rates
from spqfmt.sizes import parse_size
from spqfmt.wire import CODEC_RANS, CODEC_RAW, CODEC_ZSTD

FAST_DISK = Rates(read=4e9, compute=5e9, codecs={"raw": 8e9, "rans": 2e9, "zstd": 1e9})
SLOW_DISK = Rates(read=1e8, compute=5e9, codecs={"raw": 8e9, "rans": 2e9, "zstd": 1e9})


def item(name: str, raw: int, stored: int, codec: int = CODEC_RANS, *, lookups: bool = False) -> Item:
    chunk = Chunk(0, raw, (PlaneChunk(64, stored, raw, codec, 0),))
    codes = Stream("codes", "i8", raw, Chunks.of([chunk]))
    record = TensorRecord(name, (1, raw), "bf16", "uniform", "", {"orientation": "rows"}, (codes,))
    return Item(Part(record, 0, (chunk,), 0, 1, True), not lookups, lookups)


N_LAYERS = 30
ITEMS = (
    item("embed", 1000, 750, lookups=True),
    *(item(f"layer{i}", 1000, 700) for i in range(N_LAYERS)),
    item("raw", 1000, 1000, CODEC_RAW),
)
INVENTORY = Inventory(ITEMS, float_bytes=100, side_bytes=50, workspace_bytes=10)


def residencies(plan: Plan) -> dict[str, str]:
    return {part.name: part.residency for part in plan.parts}


def test_without_a_ceiling_all_is_decoded_and_no_buffers_are_held() -> None:
    plan = plan_residency(INVENTORY, FAST_DISK, None)
    assert set(residencies(plan).values()) == {"decoded"}
    assert plan.fixed.ring == plan.fixed.rows == 0
    assert plan.held_bytes == 100 + 50 + 10 + 1000 * N_READS + 1000 * (N_LAYERS + 2)
    assert plan.serial_ms == pytest.approx(1e3 * 1000 * (N_LAYERS + 1) / 5e9)


def test_a_ceiling_that_all_fits_under_is_no_different() -> None:
    whole = plan_residency(INVENTORY, FAST_DISK, None)
    same = plan_residency(INVENTORY, FAST_DISK, whole.held_bytes)
    assert residencies(same) == residencies(whole)
    assert set(residencies(plan_residency(INVENTORY, FAST_DISK, whole.held_bytes - 1)).values()) != {
        "decoded"
    }


@pytest.mark.parametrize("rates", [FAST_DISK, SLOW_DISK])
def test_every_ceiling_is_kept_and_leaves_no_room_for_another_part(rates: Rates) -> None:
    smallest = plan_residency(INVENTORY, rates, None).smallest_bytes
    times = []
    for ceiling in range(smallest, smallest + 27_000, 310):
        plan = plan_residency(INVENTORY, rates, ceiling)
        assert plan.held_bytes <= ceiling
        room = ceiling - plan.held_bytes
        for part in plan.parts:
            decoded = part.item.part.decoded_bytes
            assert part.residency == "decoded" or decoded - part.bytes > room
        times.append(plan.serial_ms)
    assert times[-1] < times[0]


def test_the_smallest_ceiling_is_named_and_works() -> None:
    smallest = plan_residency(INVENTORY, FAST_DISK, None).smallest_bytes
    with pytest.raises(MemoryBudgetError, match=f"at least .* \\({smallest} bytes\\)") as caught:
        plan_residency(INVENTORY, FAST_DISK, smallest - 1)
    assert caught.value.smallest_bytes == smallest
    plan = plan_residency(INVENTORY, FAST_DISK, smallest)
    assert set(residencies(plan).values()) == {"disk"}
    assert plan.held_bytes == smallest


@pytest.mark.parametrize("n_bytes", [1, 1_310_496, 2**20, 10_843_680, 3 * 2**30 + 1])
def test_a_ceiling_that_is_typed_as_the_error_has_it_is_enough(n_bytes: int) -> None:
    typed = parse_size(enough_mib(n_bytes).replace(" ", ""))
    assert n_bytes <= typed <= n_bytes + 0.11 * 2**20


def test_a_slow_disk_is_read_least() -> None:
    smallest = plan_residency(INVENTORY, SLOW_DISK, None).smallest_bytes
    plan = plan_residency(INVENTORY, SLOW_DISK, smallest + N_LAYERS * 700 + 1000)
    chosen = residencies(plan)
    assert all(chosen[f"layer{i}"] in {"compressed", "decoded"} for i in range(N_LAYERS))


def test_what_is_stored_raw_is_never_kept_compressed() -> None:
    for extra in range(0, 9000, 250):
        ceiling = plan_residency(INVENTORY, SLOW_DISK, None).smallest_bytes + extra
        assert residencies(plan_residency(INVENTORY, SLOW_DISK, ceiling))["raw"] != "compressed"


def test_rows_of_an_embedding_cost_their_share_of_a_pass() -> None:
    first = item("embed", 4000, 3000, lookups=True)
    parts = tuple(
        Item(Part(first.part.record, 0, first.part.chunks, k, k + 1, False), False, True) for k in range(4)
    )
    plan = plan_residency(Inventory((*parts, *ITEMS[1:]), 0, 0, 0), FAST_DISK, 20_000 + 2 * 4000 + 6 * 2000)
    on_disk = [p.expected_ms for p in plan.parts[:4] if p.residency == "disk"]
    assert on_disk
    assert on_disk == pytest.approx([1e3 * 0.25 * (4000 / 2e9 + 3000 / 4e9)] * len(on_disk))


def test_codes_of_low_entropy_are_planned_narrow_where_that_is_less() -> None:
    low, other = item("low", 100_000, 37_000), item("other", 100_000, 50_000)
    assert (low.part.narrow_bytes, other.part.narrow_bytes) == (narrow_bytes(100_000, 100_000 // 768), 0)
    items = (low, *(item(f"low{i}", 100_000, 37_000) for i in range(20)), other)
    inventory = Inventory(items, 0, 0, 0)
    plan = plan_residency(inventory, FAST_DISK, None)
    assert [part.residency for part in plan.parts] == ["narrow"] * 21 + ["decoded"]
    assert plan.held_bytes == plan.fixed.total + 21 * low.part.narrow_bytes + 100_000
    assert plan.fixed.ring == N_BUFFERS * 100_000
    assert plan.serial_ms == pytest.approx(1e3 * 22 * 100_000 / 5e9)
    assert residencies(plan_residency(inventory, FAST_DISK, plan.held_bytes)) == residencies(plan)
    less = plan_residency(inventory, FAST_DISK, plan.held_bytes - 1)
    assert less.held_bytes < plan.held_bytes
    assert less.serial_ms > plan.serial_ms
    # Alone its buffers are more than what it saves; an expert's memory is for any of them.
    for few in ((low,), tuple(replace(i, share=0.5) for i in items)):
        assert set(residencies(plan_residency(Inventory(few, 0, 0, 0), FAST_DISK, None)).values()) == {
            "decoded"
        }


def test_json_has_the_documented_keys() -> None:
    plan = plan_residency(INVENTORY, FAST_DISK, 15_000).to_json()
    assert {"memory_bytes", "smallest_bytes", "weights_bytes", "layers"} <= plan.keys()
    assert plan["weights_bytes"] == {"stored": 700 * N_LAYERS + 1750, "decoded": 1000 * (N_LAYERS + 2) + 150}
    layers = plan["layers"]
    assert isinstance(layers, list)
    assert layers[0].keys() == {"name", "residency", "bytes", "expected_ms"}


def test_the_planner_counts_with_the_decode_rates_that_partial_compression_counts_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codecs = DecodeRates({"rans": CodecRate(2_000_000_000, 10_000), "zstd": CodecRate(1_000_000_000, 5_000)})
    monkeypatch.setattr("spqfmt.residency.rates.measure_decode_rates", lambda: codecs)
    with Writer(tmp_path / "m.spq", 64, force=False) as writer:
        writer.seal({})
        writer.publish()
    with Reader(tmp_path / "m.spq") as reader:
        rates = measure_rates(reader)
    for codec in (CODEC_RANS, CODEC_ZSTD):
        assert (1 << 20) / rates.decode(codec) == pytest.approx(codecs.decode_ns(codec, 1 << 20) / 1e9)


def test_a_config_whose_sizes_differ_from_layer_to_layer_is_estimated() -> None:
    """A config of Gemma 4 refuses to give its head_dim as an attribute."""
    from spqfmt.loaders.plan import estimate

    on_top = estimate(transformers.Gemma4TextConfig(), torch.bfloat16, 128, 1)
    assert on_top.kv_cache_bytes > 0


def test_a_config_with_two_parts_about_text_is_estimated_by_its_decoder() -> None:
    from spqfmt.loaders.plan import estimate

    decoder = transformers.MusicgenDecoderConfig(num_hidden_layers=3)
    config = transformers.MusicgenConfig(
        text_encoder=transformers.T5Config(), audio_encoder=transformers.EncodecConfig(), decoder=decoder
    )
    assert estimate(config, torch.float32, 9, 1) == estimate(decoder, torch.float32, 9, 1)


def test_a_cache_of_latent_vectors_is_estimated_as_transformers_keeps_it() -> None:
    from spqfmt.loaders.plan import estimate

    config = transformers.DeepseekV3Config(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=32,
        moe_intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        n_routed_experts=4,
        n_group=1,
        topk_group=1,
        num_experts_per_tok=2,
        q_lora_rank=16,
        kv_lora_rank=24,
        qk_nope_head_dim=16,
        qk_rope_head_dim=8,
        v_head_dim=16,
    )
    model = transformers.DeepseekV3ForCausalLM(config).eval()
    with torch.inference_mode():
        layers = model(torch.zeros(1, 9, dtype=torch.int64)).past_key_values.layers
    kept = sum(part.nbytes for layer in layers for part in (layer.keys, layer.values))
    assert estimate(config, torch.float32, 9, 1).kv_cache_bytes == kept
