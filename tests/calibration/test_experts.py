"""Merged experts: each is a layer of its own, with the tokens that are routed to it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from calibration_models import SMALL, TEXT, Onlooker, make_engine, tiny, wanted_of
from safetensors.torch import load_file, save_file
from test_resume import Interrupting

import spqfmt
from spqfmt.calibration.model import load_tokenizer
from spqfmt.calibration.text import choose_samples
from spqfmt.importers import open_source
from spqfmt.loaders import load_model
from spqfmt.packing.options import pack_options
from spqfmt.quantize.calibrated import simulate

NAMES = {
    # family: name of an expert's tensor, its three parts as gate, up and down projection
    "mixtral": ("model.layers.0.block_sparse_moe.experts.{}.{}.weight", ("w1", "w3", "w2")),
    "qwen2_moe": ("model.layers.0.mlp.experts.{}.{}.weight", ("gate_proj", "up_proj", "down_proj")),
}
MOE = pytest.mark.parametrize("family", NAMES)


@MOE
def test_an_expert_sees_the_tokens_that_are_routed_to_it(family: str, folder: Callable[[str], Path]) -> None:
    path = folder(family)
    method = Onlooker()
    list(make_engine(path, method).run())
    model, _ = load_model(path, dtype="float32", packed=False)
    routed: dict[str, Any] = {}
    model.model.layers[0].mlp.experts.register_forward_pre_hook(
        lambda _, args: routed.update(x=args[0].detach(), index=args[1])
    )
    with torch.no_grad():
        model(input_ids=choose_samples(load_tokenizer(open_source(path)), SMALL, None), use_cache=False)
    sites = {layer.weight.name: site for site in method.blocks[0].sites for layer in site.layers}
    weights = {t.name: t.load() for t in open_source(path).tensors}
    pattern, (gate, up, down) = NAMES[family]
    n_seen = 0
    for expert in range(4):
        # First the tokens that have it as their first choice.
        x = routed["x"][torch.where((routed["index"] == expert).t())[1]]
        wide = [x @ weights[pattern.format(expert, part)].t() for part in (gate, up)]
        expected = {gate: x, up: x, down: torch.nn.functional.silu(wide[0]) * wide[1]}
        for part, inputs in expected.items():
            site = sites[pattern.format(expert, part)]
            seen = torch.cat(site.statistics.inputs)  # type: ignore[attr-defined]
            torch.testing.assert_close(seen, inputs)
            assert torch.equal(method.streamed[site.layers[0].weight.name], seen)
        assert len(sites[pattern.format(expert, gate)].layers) == 2
        n_seen += len(x)
    assert n_seen == 2 * len(routed["x"])


@MOE
@pytest.mark.parametrize(
    "options",
    [
        {"method": "gptq", "bits": 4, "group_size": 16},
        {"method": "spqr", "bits": 3},
        {"method": "smoothquant", "activations": "float"},
    ],
    ids=lambda options: options["method"],
)
def test_what_is_loaded_is_what_was_simulated(
    family: str, options: dict[str, Any], folder: Callable[[str], Path], tmp_path: Path
) -> None:
    source, out = folder(family), tmp_path / "m.spq"
    arguments = {**options, "samples": 6, "seq_len": 32, "calibration": TEXT, "embedding_bits": 16}
    report = spqfmt.pack(source, out, **arguments)
    assert report.left_dense == {}
    with spqfmt.open(out) as file:
        methods = {file[name].info.method for name in file if ".experts." in name}
    assert methods == {options["method"]}
    method = pack_options(**arguments)
    engine = make_engine(source, method.method)
    engine._method_options = method.method_options
    made = {name: simulate(r.quantized) for block in engine.run() for name, r in block.results.items()}
    copy = _copy(
        source,
        tmp_path / "copy",
        lambda name, value: made[name].reshape(value.shape) if name in made else value,
    )
    ids = torch.arange(40)[None] * 7 % tiny.VOCABULARY
    with torch.no_grad():
        simulated, loaded, before = (
            load_model(path, dtype="float32", packed=False)[0](input_ids=ids).logits
            for path in (copy, out, source)
        )
    tolerance = 1e-5 * float(simulated.abs().max())
    assert torch.allclose(simulated, loaded, atol=tolerance)
    assert (before - loaded).abs().max() > 20 * tolerance


def _copy(source: Path, target: Path, change: Callable[[str, torch.Tensor], torch.Tensor]) -> Path:
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    state = load_file(source / "model.safetensors")
    save_file(
        {name: change(name, value).contiguous() for name, value in state.items()},
        target / "model.safetensors",
        {"format": "pt"},
    )
    return target


@pytest.mark.parametrize("method", ["gptq", "spqr", "dc", "jsq", "sparsegpt"])
def test_experts_without_tokens_are_rounded_and_said(
    method: str, folder: Callable[[str], Path], tmp_path: Path
) -> None:
    # A router that gives all experts the same: the same two are taken for every token.
    source = _copy(
        folder("mixtral"),
        tmp_path / "source",
        lambda name, value: torch.zeros_like(value) if "block_sparse_moe.gate" in name else value,
    )
    out = tmp_path / "m.spq"
    extra = {"search_steps": 0} if method == "jsq" else {}
    report = spqfmt.pack(source, out, method=method, samples=4, seq_len=32, calibration=TEXT, **extra)
    assert report.left_dense == {}
    idle = {note.partition(":")[0] for note in report.notes if "no sample reached this expert" in note}
    assert len(idle) == 2 * 2 * 3  # two layers, two experts, three projections
    treated = any("neither clamped nor quantized" in note for note in report.notes)
    assert treated == (method in {"dc", "jsq"})
    with spqfmt.open(out) as file:
        for name in idle:
            assert file[name].info.method == method
            assert file[name].input_treatment() is None
    assert torch.isfinite(load_model(out)[0](input_ids=torch.arange(20)[None]).logits).all()


def test_a_resumed_pack_knows_the_experts(folder: Callable[[str], Path], tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"method": "gptq", "samples": 4, "seq_len": 32, "calibration": TEXT}
    out, whole = tmp_path / "m.spq", tmp_path / "whole.spq"
    with pytest.raises(KeyboardInterrupt):
        spqfmt.pack(folder("mixtral"), out, progress=Interrupting("model.layers.1: quantizing"), **arguments)
    spqfmt.pack(folder("mixtral"), out, resume=True, **arguments)
    spqfmt.pack(folder("mixtral"), whole, **arguments)
    assert out.read_bytes() == whole.read_bytes()


def test_every_wanted_tensor_of_an_expert_has_its_place(folder: Callable[[str], Path]) -> None:
    path = folder("qwen2_moe")
    engine = make_engine(path, Onlooker())
    list(engine.run())
    layers = {
        layer.weight.name for block in engine._method.blocks for site in block.sites for layer in site.layers
    }  # type: ignore[attr-defined]
    assert layers == set(wanted_of(path))
