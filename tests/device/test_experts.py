"""Experts as parts of a device's plan: only those that were chosen are decoded, and the logits are those of the CPU."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import device_support
import pytest
import tiny
import torch
import transformers
from device_support import RATES, loaded_onto_device, logits_of

import spqfmt
from spqfmt.codecs.threads import blocks
from spqfmt.loaders.device import SimulatedDevice
from spqfmt.loaders.foreseen import ForeseenOrAsked, Slot, SlotState
from spqfmt.loaders.packed.experts import PackedExperts
from spqfmt.loaders.plan import plan_for_device

INPUTS = torch.tensor([[(i * 37 + 11) % 256 for i in range(9)]])
N_EXPERTS, TOP_K, N_LAYERS = 8, 2, 2
METHODS: dict[str, dict[str, Any]] = {
    "4 bits": {"method": "rtn", "bits": 4, "group_size": 32},
    "8 bits": {"method": "rtn"},
    "lossless": {"method": "lossless"},
}


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A small Mixtral by a method of METHODS, made once."""
    root = tmp_path_factory.mktemp("experts")

    def pack(method: str) -> Path:
        folder = root / method.replace(" ", "")
        if not folder.exists():
            config = transformers.MixtralConfig(
                hidden_size=64, intermediate_size=96, num_hidden_layers=N_LAYERS, num_attention_heads=4,
                num_key_value_heads=2, vocab_size=256, num_local_experts=N_EXPERTS, num_experts_per_tok=TOP_K,
                max_position_embeddings=64,
            )  # fmt: skip
            with torch.random.fork_rng(devices=[]), tiny.quiet():
                torch.manual_seed(0)
                transformers.AutoModelForCausalLM.from_config(config).bfloat16().save_pretrained(folder)
            spqfmt.pack(folder, folder / "m.spq", **METHODS[method])
        return folder / "m.spq"

    return pack


def logits(model: Any, ids: torch.Tensor = INPUTS) -> torch.Tensor:
    return logits_of(model, ids)


def on_device(path: Path, memory: int | None, host: int | None) -> tuple[Any, SimulatedDevice]:
    return loaded_onto_device(path, memory, host, dtype="float32")


def decoded_experts(device: SimulatedDevice, begin: int) -> list[str]:
    return [d.label for d in device.trace[begin:] if d.label.startswith("decode") and ".experts." in d.label]


@pytest.mark.parametrize("method", sorted(METHODS))
def test_logits_are_those_of_the_cpu_and_only_chosen_experts_are_decoded(
    packed: Callable[[str], Path], method: str, small_parts: None
) -> None:
    path = packed(method)
    reference, _ = spqfmt.load_model(path, dtype="float32", packed=True)
    expected, one = logits(reference), logits(reference, INPUTS[:, :1])
    reference.packed_weights.close()
    found = plan_for_device(path, dtype="float32", rates=RATES)
    assert not found.whole
    whole = found.plan
    assert sum(part.item.expert is not None for part in whole.parts) >= 3 * N_EXPERTS * N_LAYERS
    smallest, least_host = whole.smallest_bytes, whole.on_host.smallest_bytes
    seen = set()
    for memory, host in (
        (None, None),
        (smallest + whole.stored_bytes // 3, least_host + whole.stored_bytes // 3),
        *([(smallest, least_host)] if method == "8 bits" else []),  # the plain decoder is slow
    ):
        model, device = on_device(path, memory, host)
        plan = model.packed_weights.plan
        assert sum(isinstance(module, PackedExperts) for module in model.modules()) == N_LAYERS
        for group in plan.on_host.groups:
            assert len({part.item.expert for part in plan.parts[group.first : group.stop]}) == 1
        seen |= {part.residency for part in plan.parts if part.item.expert is not None}
        parameters = sum(parameter.nbytes for parameter in model.parameters())
        assert device.allocated_bytes + parameters == plan.held_bytes
        torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)
        begin = len(device.trace)
        torch.testing.assert_close(logits(model, INPUTS[:, :1]), one, rtol=1e-4, atol=1e-4)
        # A group of an expert has its three matrices or some; nothing is decoded for those that were not chosen.
        labels = [label.split(".experts.")[:2] for label in decoded_experts(device, begin)]
        chosen = {(layer.rpartition(" ")[2], expert.partition(".")[0]) for layer, expert in labels}
        streamed = [p.residency != "decoded" for p in plan.parts if p.item.expert is not None]
        assert any(streamed) is (len(chosen) > 0)
        assert len(chosen) <= TOP_K * N_LAYERS
        model.packed_weights.close()
    assert len(seen) > 1


def test_experts_are_multiplied_straight_where_they_stay_compressed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = transformers.MixtralConfig(
        hidden_size=128, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=4,
        vocab_size=256, num_local_experts=2, num_experts_per_tok=1, max_position_embeddings=64,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]), tiny.quiet():
        torch.manual_seed(0)
        source = transformers.AutoModelForCausalLM.from_config(config).bfloat16()
        source.save_pretrained(tmp_path)
    with blocks(13):
        spqfmt.pack(tmp_path, tmp_path / "m.spq", method="lossless", codec="rans")
    monkeypatch.setattr(device_support, "RATES", replace(RATES, fused=1e12))
    model, device = loaded_onto_device(tmp_path / "m.spq", 1 << 30, None, dtype="bfloat16")
    plan = model.packed_weights.plan
    experts = [part for part in plan.parts if part.item.expert is not None]
    assert {(part.residency, part.fused) for part in experts} == {("compressed", True)}
    for n_tokens, is_straight in ((1, True), (20, False)):
        ids = torch.zeros(1, n_tokens, dtype=torch.int64)  # alike, so that one expert has all
        expected = logits(source, ids)
        begin = len(device.trace)
        torch.testing.assert_close(logits(model, ids), expected, rtol=0.05, atol=0.02)
        done = [d.label for d in device.trace[begin:] if ".experts." in d.label]
        assert any(label.startswith("fused") for label in done) is is_straight
        assert any(label.startswith("decode") for label in done) is not is_straight
        if n_tokens == 1:
            assert len(done) == 3
    model.packed_weights.close()


def test_stacks_are_decoded_where_they_are_asked_for(
    packed: Callable[[str], Path], small_parts: None
) -> None:
    path = packed("8 bits")
    decoded, _ = spqfmt.load_model(path, dtype="float32", packed=False)
    model, _ = on_device(path, None, None)
    name = "model.layers.1.mlp.experts"
    for stack in ("gate_up_proj", "down_proj"):
        own = getattr(model.get_submodule(name), stack)
        torch.testing.assert_close(own, getattr(decoded.get_submodule(name), stack))
    model.packed_weights.close()


def test_experts_that_are_stored_by_their_inputs_are_decoded_whole(tmp_path: Path) -> None:
    config = transformers.GptOssConfig(
        hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
        head_dim=16, vocab_size=256, num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=64,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]), tiny.quiet():
        torch.manual_seed(0)
        transformers.AutoModelForCausalLM.from_config(config).bfloat16().save_pretrained(tmp_path)
    spqfmt.pack(tmp_path, tmp_path / "m.spq", method="lossless")
    whole = plan_for_device(tmp_path / "m.spq", dtype="float32", rates=RATES).whole
    assert set(whole.values()) == {"experts stored by their inputs, on a device"}
    expected, _ = spqfmt.load_model(tmp_path / "m.spq", dtype="float32", packed=False)
    model, _ = on_device(tmp_path / "m.spq", None, None)
    torch.testing.assert_close(logits(model), logits(expected), rtol=1e-4, atol=1e-4)
    model.packed_weights.close()


def test_what_is_asked_for_comes_first_and_leaves_the_order_of_the_others() -> None:
    slots = [Slot() for _ in range(3)]
    foreseen = ForeseenOrAsked(slots, [0, 5, 6, 1, 2], [5, 6])
    for part in (0, 1, 2):
        foreseen.used(part)
    assert list(foreseen.coming(3)) == [0]
    foreseen.ask([6, 5])
    assert list(foreseen.coming(3)) == [6, 5, 0]
    foreseen.used(6)
    assert list(foreseen.coming(3)) == [5, 0]
    foreseen.ask([])
    assert list(foreseen.coming(3)) == [0]
    assert all(slot.state is SlotState.FREE for slot in slots)
