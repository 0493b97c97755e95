"""Site after site: inputs of the quantized and of the unquantized model side by side, and what outputs are added to."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
import transformers
from calibration_models import SMALL, Onlooker, make_engine

from spqfmt.calibration.model import load_tokenizer
from spqfmt.calibration.text import choose_samples
from spqfmt.importers import open_source
from spqfmt.quantize.base import MethodOptions
from spqfmt.quantize.calibrated import Block, Result
from spqfmt.quantize.drift import Drift
from spqfmt.quantize.rtn import round_symmetric


@dataclass
class Corrector(Onlooker):
    """Rounds all layers to 4 bits and keeps what it is shown, by the first layer of each site."""

    corrects: bool = True
    drifts: dict[str, Drift | None] = field(default_factory=dict)
    calls: list[list[str]] = field(default_factory=list)

    def quantize_block(self, block: Block, options: MethodOptions) -> Mapping[str, Result]:
        self.drifts |= {site.layers[0].weight.name: site.drift for site in block.sites}
        layers = [layer for site in block.sites for layer in site.layers]
        self.calls.append([layer.weight.name for layer in layers])
        return {
            layer.weight.name: Result(round_symmetric(layer.matrix(), 4, per_row=True)) for layer in layers
        }


def _seen(model: torch.nn.Module, ids: torch.Tensor, modules: list[str]) -> dict[str, torch.Tensor]:
    """The inputs of modules, [tokens, columns], as the whole model runs."""
    found: dict[str, torch.Tensor] = {}
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, args, name=name: found.__setitem__(name, args[0].double().flatten(0, -2))
        )
        for name in modules
    ]
    with torch.no_grad():
        model(input_ids=ids, use_cache=False)
    for hook in hooks:
        hook.remove()
    return found


def test_drifts_are_those_of_whole_models(folder: Callable[[str], Path]) -> None:
    path = folder("llama")
    method = Corrector()
    results = {
        name: result for block in make_engine(path, method).run() for name, result in block.results.items()
    }
    ids = choose_samples(load_tokenizer(open_source(path)), SMALL, None)
    before, after = (
        transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32) for _ in range(2)
    )
    added = {"self_attn.o_proj": "input_layernorm", "mlp.down_proj": "post_attention_layernorm"}
    assert [len(call) for call in method.calls] == [3, 1, 2, 1] * 2
    for names in method.calls:
        first = names[0].removesuffix(".weight")
        block, module = ".".join(first.split(".")[:3]), ".".join(first.split(".")[3:])
        reads = [first, f"{block}.{added.get(module, module)}"]
        old, new = _seen(before, ids, reads), _seen(after, ids, reads)
        drift = method.drifts[names[0]]
        assert drift is not None
        assert drift.n_tokens == ids.numel()
        x = new[first]
        expected = 2 / len(x) * (old[first] - x).T @ x
        assert drift.inputs is not None
        assert torch.allclose(drift.inputs.double(), expected, atol=2e-4 * float(x.square().mean()))
        sums = drift.sums(module)
        if module in added:
            moved = old[reads[1]] - new[reads[1]]
            assert sums is not None
            assert torch.allclose(
                sums.double(), 2 / len(x) * moved.T @ x, atol=2e-4 * float(x.square().mean().sqrt())
            )
            assert names[0].startswith("model.layers.0.self_attn") or sums.any()
        else:
            assert sums is None
        for name in names:
            after.get_parameter(name).data.copy_(torch.from_numpy(results[name].quantized.dequantize()))


def test_without_sequential_the_block_is_quantized_at_once(folder: Callable[[str], Path]) -> None:
    method = Corrector(corrects=False)
    list(make_engine(folder("llama"), method).run())
    assert [len(call) for call in method.calls] == [7, 7]
    assert set(method.drifts.values()) == {None}


@pytest.mark.parametrize("family", ["gpt2", "falcon", "gemma2", "mixtral", "qwen2_moe"])
def test_other_families_are_quantized_site_by_site_experts_last(
    family: str, folder: Callable[[str], Path]
) -> None:
    method, plain = Corrector(), Onlooker()
    results = list(make_engine(folder(family), method).run())
    list(make_engine(folder(family), plain).run())
    names = {layer.weight.name for block in plain.blocks for site in block.sites for layer in site.layers}
    assert {name for result in results for name in result.results} == names
    assert not any(result.skipped for result in results)
    assert [name for result in results for stage in result.stages for name in stage] == [
        name for call in method.calls for name in call
    ]
    for name, drift in method.drifts.items():
        # Which tokens an expert sees is the router's choice, which quantization changes.
        is_expert = ".experts." in name
        assert (drift is None) == is_expert
