"""Experts that a checkpoint stacks in one tensor: what they read is seen, and every calibrated method takes them."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from probe import build, model_classes, near
from probe_inputs import inputs_for, outputs
from tiny import byte_tokenizer

import spqfmt
from spqfmt.calibration.experts import seen_inputs
from spqfmt.loaders import load_model
from spqfmt.loaders.plan import plan_model

pytestmark = pytest.mark.filterwarnings("ignore")


def made(family: str) -> Any:
    return build(model_classes(transformers.CONFIG_MAPPING[family])[0], torch.float32)


def test_what_all_experts_of_a_stack_read_is_seen_where_they_are_multiplied_one_by_one() -> None:
    model = made("gpt_oss")
    block = model.model.layers[0].mlp
    model.config._experts_implementation = "eager"
    x = torch.randn(1, 5, 64)
    up: list[torch.Tensor] = []
    down: list[torch.Tensor] = []
    with (
        torch.no_grad(),
        seen_inputs(block, {"experts.gate_up_proj[:]": up.append, "experts.down_proj[:]": down.append}),
    ):
        block(x)
        _, _, chosen = block.router(x[0])
    tokens = [token for expert in range(4) for token in torch.where((chosen == expert).t())[1].tolist()]
    assert torch.equal(torch.cat(up), x[0][tokens])
    assert torch.cat(down).shape == (5 * chosen.shape[1], model.config.intermediate_size)


def test_what_all_experts_of_a_stack_read_is_seen_where_they_are_multiplied_at_once() -> None:
    model = made("llama4_text")
    block = model.model.layers[0].feed_forward
    x = torch.randn(1, 5, 64)
    up: list[torch.Tensor] = []
    with torch.no_grad(), seen_inputs(block, {"experts.gate_up_proj[:]": up.append}):
        block(x)
        scores, _ = block.router(x[0])
    wanted = (x[0].repeat(4, 1) * scores.t().reshape(-1, 1)).view(4, 5, -1)
    assert torch.equal(torch.cat(up), wanted[scores.t() > 0])
    assert len(torch.cat(up)) == 5 * model.config.num_experts_per_tok


@pytest.mark.parametrize(
    ("family", "method"),
    [
        *(("gpt_oss", method) for method in ("gptq", "spqr", "dc", "jsq", "ecq")),
        ("granitemoehybrid", "spqr"),
        ("llama4_text", "gptq"),
    ],
)
def test_every_calibrated_method_takes_stacks(tmp_path: Path, family: str, method: str) -> None:
    model = made(family)
    model.save_pretrained(tmp_path)
    byte_tokenizer(320).save_pretrained(tmp_path)
    text, path = tmp_path / "text.txt", tmp_path / "m.spq"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 200)
    report = spqfmt.pack(tmp_path, path, method=method, calibration=text, samples=4, seq_len=32)
    assert not [name for name in report.left_dense if "experts" in name or "moe" in name]
    packed = {t.name: t.method for t in spqfmt.inspect(path).tensors if len(t.shape) == 3 and t.shape[0] == 4}
    assert packed
    assert set(packed.values()) == {method}
    plan = plan_model(path)
    assert not plan.whole
    given = inputs_for(model)
    wanted = outputs(load_model(path, packed=False)[0], given)
    for options in ({"packed": True}, {"memory": plan.plan.smallest_bytes}):
        loaded, _ = load_model(path, **options)
        weights = loaded.packed_weights
        assert near(outputs(loaded, given), wanted)
        assert weights.held_bytes + plan.plan.fixed.floats == weights.plan.held_bytes
        weights.close()
