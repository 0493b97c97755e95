"""The engine finds blocks, layers and their inputs by structure, and shows what the whole model computes."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from calibration_models import SMALL, TEXT, Onlooker, make_engine, tiny, wanted_of

import spqfmt
from spqfmt.calibration.model import load_tokenizer
from spqfmt.calibration.text import choose_samples
from spqfmt.errors import UnsupportedError
from spqfmt.importers import open_source
from spqfmt.loaders import load_model

EXPERTS = [1] * 4 + [2] * 4
"""Gate and up projection read one input, the down projection another; merged, so that no module has them."""

FAMILIES = {
    # family: layers that read one input, of one block
    "llama": [3, 1, 2, 1],
    "llama_tied": [3, 1, 2, 1],
    "mistral": [3, 1, 2, 1],
    "qwen2": [3, 1, 2, 1],
    "qwen3": [3, 1, 2, 1],
    "gemma": [3, 1, 2, 1],
    "gemma2": [3, 1, 2, 1],
    "gpt2": [1, 1, 1, 1],
    "opt": [3, 1, 1, 1],
    "gpt_neox": [1, 1, 1, 1],
    "falcon": [2, 1, 1],  # attention and MLP side by side on one norm
    "llama4": [3, 1, 2, 1],
    "mixtral": [3, 1],
    "qwen2_moe": [3, 1, 2, 1],
}


def inputs_of_whole_model(path: Path, names: set[str]) -> dict[str, torch.Tensor]:
    """The inputs of these linear tensors when the loaded model runs on the calibration samples."""
    model, _ = load_model(path, dtype="float32", packed=False)
    samples = choose_samples(load_tokenizer(open_source(path)), SMALL, None)
    seen: dict[str, torch.Tensor] = {}
    modules = dict(model.named_modules())
    for name in names:
        module = modules[name.removesuffix(".weight")]
        module.register_forward_pre_hook(
            lambda _, args, name=name: seen.__setitem__(name, args[0].detach().clone())
        )
    with torch.no_grad():
        model(input_ids=samples, use_cache=False)
    return seen


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_sees_what_it_sees_in_the_whole_model(family: str, folder: Callable[[str], Path]) -> None:
    path = folder(family)
    method = Onlooker()
    engine = make_engine(path, method)
    results = list(engine.run())
    assert len(results) == 2
    for block in method.blocks:
        assert [len(site.layers) for site in block.sites if "[" not in site.layers[0].module] == FAMILIES[
            family
        ]
        merged = [len(site.layers) for site in block.sites if "[" in site.layers[0].module]
        assert sorted(merged) == (EXPERTS if family in {"mixtral", "qwen2_moe"} else [])
    first = {site.layers[0].weight.name: site for block in method.blocks for site in block.sites}
    modules = {name: site for name, site in first.items() if ".experts." not in name}
    expected = inputs_of_whole_model(path, set(modules))
    for name, site in modules.items():
        shown = torch.cat(site.statistics.inputs)  # type: ignore[attr-defined]
        assert torch.allclose(shown, expected[name], atol=1e-4 * float(expected[name].abs().max())), name
        assert torch.equal(method.streamed[name], shown)
    left = {name for result in results for name in result.skipped}
    layers = {layer.weight.name for site in first.values() for layer in site.layers}
    inside = {name for name in wanted_of(path) if name in engine.block_of}
    assert left == inside  # the method made nothing
    for block_name, block in zip(engine.block_names, method.blocks, strict=True):
        assert block.name == block_name
    assert layers <= inside


def test_weights_come_as_out_by_in(folder: Callable[[str], Path]) -> None:
    method = Onlooker()
    list(make_engine(folder("gpt2"), method).run())
    [c_fc] = [layer for layer in method.blocks[0].sites[2].layers if layer.module == "mlp.c_fc"]
    source = {t.name: t for t in open_source(folder("gpt2")).tensors}
    assert c_fc.weight.transposed
    assert torch.equal(c_fc.matrix(), source[c_fc.weight.name].load().t())
    c_fc.matrix().zero_()
    assert c_fc.matrix().abs().max() > 0


def test_producers_of_inputs_are_named(folder: Callable[[str], Path]) -> None:
    method = Onlooker()
    list(make_engine(folder("mixtral"), method).run())
    attention, out, *experts = method.blocks[0].sites
    assert all(site.shared and site.producer == "" for site in experts)
    assert (attention.producer, attention.shared) == ("input_layernorm", False)
    assert out.producer == ""
    method = Onlooker()
    list(make_engine(folder("qwen2_moe"), method).run())
    _, _, shared_expert, *_ = method.blocks[0].sites
    # The router and the routed experts read the norm's output too.
    assert shared_expert.shared


def test_layers_outside_the_blocks_are_said(folder: Callable[[str], Path], tmp_path: Path) -> None:
    report = spqfmt.pack(
        folder("opt"), tmp_path / "m.spq", method="gptq", calibration=TEXT, samples=4, seq_len=32
    )
    assert report.left_dense == {
        "model.decoder.project_in.weight": "it lies outside the blocks",
        "model.decoder.project_out.weight": "it lies outside the blocks",
    }


def test_an_encoder_is_refused(tmp_path: Path) -> None:
    config = transformers.T5Config(
        vocab_size=264, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    tiny.byte_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UnsupportedError, match="decoder-only"):
        make_engine(tmp_path, Onlooker())


def test_only_one_block_has_weights_at_a_time(folder: Callable[[str], Path]) -> None:
    engine = make_engine(folder("llama"), Onlooker())
    layers = engine.shell.model.model.layers
    for number, _ in enumerate(engine.run()):
        assert all(parameter.is_meta for parameter in layers[number].parameters())
        assert all(parameter.is_meta for layer in layers[number + 1 :] for parameter in layer.parameters())
    assert engine.shell.model.lm_head.weight.is_meta
    assert not engine.shell.model.model.embed_tokens.weight.is_meta
