"""Codes of low entropy that are held in half their bytes: the same logits to the bit, wherever each part is."""

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers

import spqfmt
from spqfmt.kernels.narrow import narrow
from spqfmt.loaders.plan import plan_model
from spqfmt.residency import cpu

PROMPT = torch.tensor([[(i * 37 + 11) % 256 for i in range(40)]])


@pytest.fixture(scope="module")
def ecq(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of low entropy but for its embedding and head. Not to be changed."""
    folder = tmp_path_factory.mktemp("ecq")
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 6}
    config = transformers.LlamaConfig(**tiny._LLAMA | sizes, tie_word_embeddings=False)
    with torch.random.fork_rng(devices=[]), tiny.quiet():
        torch.manual_seed(0)
        transformers.AutoModelForCausalLM.from_config(config).bfloat16().save_pretrained(folder)
    spqfmt.pack(folder, folder / "m.spq", method="ecq", no_calibration=True, bits=3)
    return folder / "m.spq"


def results(path: Path, **options: Any) -> tuple[list[torch.Tensor], Any]:
    """Logits of a prompt, of one token, weights and gradients of the inputs, and the plan."""
    model, _ = spqfmt.load_model(path, **options)
    layer: Any = model.model.layers[3].mlp.down_proj
    with torch.inference_mode():
        found = [model(PROMPT).logits, model(PROMPT[:, :1]).logits, model(PROMPT[:, :20]).logits]
        found += [layer.weight.clone(), model.model.embed_tokens.weight.clone()]
    x = torch.ones(1, layer.in_features, dtype=torch.bfloat16, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None
    weights = model.packed_weights
    assert weights.held_bytes + weights.plan.fixed.floats == weights.plan.held_bytes
    weights.close()
    return [*found, x.grad], weights.plan


@pytest.fixture(scope="module")
def expected(ecq: Path) -> list[torch.Tensor]:
    """What the model gives where everything is decoded."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "is_narrow", lambda item: False)
        found, plan = results(ecq, packed=True)
    assert {part.residency for part in plan.parts} == {"decoded"}
    return found


def test_without_a_ceiling_codes_of_low_entropy_are_narrow(ecq: Path, expected: list[torch.Tensor]) -> None:
    found, plan = results(ecq, packed=True)
    ends = {"model.embed_tokens.weight", "lm_head.weight"}
    assert {part.name for part in plan.parts if part.residency != "narrow"} == ends
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    weights = sum(part.item.part.n_weights for part in plan.parts if part.residency == "narrow")
    assert 4 < 8 * plan.bytes_in("narrow") / weights < 4.1


def test_under_a_ceiling_some_parts_are_narrow(ecq: Path, expected: list[torch.Tensor]) -> None:
    whole = plan_model(ecq).plan
    seen = set()
    for ceiling in (
        whole.held_bytes - 1,
        (whole.held_bytes + whole.smallest_bytes) // 2,
        whole.smallest_bytes,
    ):
        found, plan = results(ecq, memory=ceiling)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        assert plan.held_bytes <= ceiling
        seen |= {part.residency for part in plan.parts}
    assert {"narrow", "disk"} <= seen


def test_rounded_activations_give_the_same(ecq: Path) -> None:
    found = results(ecq, activations="int8", packed=True)[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "is_narrow", lambda item: False)
        same = results(ecq, activations="int8", packed=True)[0]
    assert all(torch.equal(a, b) for a, b in zip(found, same, strict=True))


def test_what_has_more_escapes_than_room_is_held_otherwise(
    ecq: Path, expected: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def every_second(codes: Any, out: Any) -> bool:
        asked.append(codes.size)
        out[:] = 255
        return len(asked) % 2 == 0 and narrow(codes, out)

    monkeypatch.setattr("spqfmt.loaders.packed.store.narrow", every_second)
    model, _ = spqfmt.load_model(ecq, packed=True)
    held, plan = model.packed_weights.held_bytes, model.packed_weights.plan
    assert held + plan.fixed.floats > plan.held_bytes, "decoded parts in memory of their own are counted"
    with torch.inference_mode():
        found = [model(PROMPT).logits, model(PROMPT[:, :1]).logits]
    assert all(torch.equal(a, b) for a, b in zip(found, expected[:2], strict=True))
    found, plan = results(ecq, memory=plan.held_bytes)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
