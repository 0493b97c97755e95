"""What is loaded from the file is the model that the quantizer simulated."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from calibration_models import SMALL, TEXT, make_engine

import spqfmt
from spqfmt.calibration.model import load_tokenizer
from spqfmt.calibration.text import choose_samples
from spqfmt.importers import open_source
from spqfmt.loaders import load_model
from spqfmt.quantize.base import MethodOptions
from spqfmt.quantize.calibrated import simulate
from spqfmt.quantize.registry import METHODS

CASES = [
    (family, method, options)
    for family in ("llama_tied", "gpt2", "opt")
    for method, options in (
        ("gptq", {"bits": 3}),
        ("gptq", {"bits": 4, "group_size": 16}),
        ("spqr", {"bits": 3}),
        ("spqr", {"bits": 4, "act_order": False, "group_size": 20}),
    )
]


@pytest.mark.parametrize(("family", "method", "options"), CASES)
def test_the_loaded_model_is_the_simulated_one(
    family: str, method: str, options: dict[str, int], folder: Callable[[str], Path], tmp_path: Path
) -> None:
    path, out = folder(family), tmp_path / "m.spq"
    report = spqfmt.pack(
        path, out, method=method, embedding_bits=16, samples=6, seq_len=32, calibration=TEXT, **options
    )
    assert report.files == (out,)
    assert not out.with_name("m.spq.resume").exists()
    spqfmt.verify(out)
    simulated = _simulated(path, method, options)
    loaded, _ = load_model(out, dtype="float32", packed=False)
    samples = choose_samples(load_tokenizer(open_source(path)), SMALL, None)
    with torch.no_grad():
        ours, theirs = (model(input_ids=samples).logits for model in (simulated, loaded))
    tolerance = 1e-5 * float(ours.abs().max())
    assert torch.allclose(ours, theirs, atol=tolerance)
    source, _ = load_model(path, dtype="float32")
    with torch.no_grad():
        assert (source(input_ids=samples).logits - theirs).abs().max() > 50 * tolerance


def _simulated(path: Path, method: str, options: dict[str, int]) -> torch.nn.Module:
    """The source model with the weights that the method says it made."""
    model, _ = load_model(path, dtype="float32", packed=False)
    engine = make_engine(path, METHODS[method])
    engine._method_options = METHODS[method].check(replace(MethodOptions(), **options))  # type: ignore[arg-type]
    parameters = dict(model.named_parameters())
    transposed = {t.name for t in open_source(path).tensors if t.transposed}
    with torch.no_grad():
        for block in engine.run():
            for name, result in block.results.items():
                matrix = simulate(result.quantized)
                parameters[name].copy_(matrix.t() if name in transposed else matrix)
    return model


@pytest.mark.parametrize("method", ["gptq", "spqr"])
def test_what_the_file_says_of_its_making(method: str, folder: Callable[[str], Path], tmp_path: Path) -> None:
    out = tmp_path / "m.spq"
    spqfmt.pack(
        folder("llama"), out, method=method, bits=3, samples=4, seq_len=32, calibration=TEXT, group_size=16
    )
    report = spqfmt.inspect(out)
    formula = float(report.metadata["formula_bits_per_weight"])
    layers = [tensor for tensor in report.tensors if tensor.method == method and "proj" in tensor.name]
    stored = sum(t.stored_bytes for t in layers) * 8 / sum(t.n_weights for t in layers)
    assert formula > 3.6
    assert stored > 3
    assert '"samples": 4' in report.metadata["calibration"]
    if method == "spqr":
        outliers = sum(tensor.outliers for tensor in layers)
        n_weights = sum(tensor.n_weights for tensor in layers)
        assert formula == pytest.approx(3.625 + 32 * outliers / n_weights, abs=1e-4)
        # Layers with one input share its order of columns.
        shared = [
            t for t in layers if any(s.role == "permutation" and s.codec == "shared" for s in t.streams)
        ]
        assert len(shared) == 2 * 3


def test_quantized_inputs_go_into_the_next_block(folder: Callable[[str], Path], tmp_path: Path) -> None:
    files = []
    for sequential in (True, False):
        files.append(tmp_path / f"{sequential}.spq")
        spqfmt.pack(
            folder("llama"),
            files[-1],
            method="gptq",
            bits=2,
            samples=6,
            seq_len=32,
            calibration=TEXT,
            sequential=sequential,
        )
    with spqfmt.open(files[0]) as first, spqfmt.open(files[1]) as second:
        name = "model.layers.{}.self_attn.q_proj.weight"
        assert torch.equal(first.read(name.format(0)), second.read(name.format(0)))
        assert not torch.equal(first.read(name.format(1)), second.read(name.format(1)))
