"""For each method: the loaded model computes what the quantizer's own simulation does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.pytorch_utils import Conv1D

import spqfmt
from spqfmt.calibration.engine import Calibration
from spqfmt.calibration.text import CalibrationOptions
from spqfmt.errors import OptionError
from spqfmt.importers import open_source
from spqfmt.loaders import load_model
from spqfmt.models.treatments import treatment
from spqfmt.packing.options import pack_options
from spqfmt.quantize.base import Weight
from spqfmt.quantize.calibrated import Result, column_scale, simulate

CASES: dict[str, dict[str, Any]] = {
    "dc": {"method": "dc", "sparsity": 0.2},
    "dc, weights only": {"method": "dc", "activations": "float", "scaling": "smoothquant"},
    "jsq": {"method": "jsq", "search_steps": 2, "search_samples": 2},
    "jsq 2:4, 4 bits": {
        "method": "jsq",
        "search_steps": 0,
        "pattern": "2:4",
        "bits": 4,
        "saliency_tokens": "all",
    },
    "wanda then smoothquant": {"method": "smoothquant", "pruning": "wanda", "sparsity": 0.5},
    "smoothquant": {"method": "smoothquant"},
    "magnitude": {"method": "magnitude"},
    "sparsegpt": {"method": "sparsegpt", "pattern": "4:8"},
    "llm_int8": {"method": "llm_int8", "threshold": 1.5},
    "zeroquant": {"method": "zeroquant", "group_size": 24},
}
IDS = torch.tensor([[(i * 37 + 11) % 256 for i in range(40)], [(i * 91 + 5) % 256 for i in range(40)]])


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("".join(f"{n} and {n * n} are numbers, {n % 7} is one too. " for n in range(200)))
    return path


def calibrated(folder: Path, text: Path, options: dict[str, Any]) -> dict[str, Result]:
    """What the engine makes of all tensors of the blocks."""
    checked = pack_options(**options, calibration=text, samples=4, seq_len=32, embedding_bits=16)
    source = open_source(folder)
    wanted = {
        t.name: Weight(t.name, t.shape, t.dtype, t.role, t.transposed)
        for t in source.tensors
        if t.role == "linear" and t.tied_to is None and len(t.shape) == 2
    }
    engine = Calibration(
        source,
        checked.method,  # type: ignore[arg-type]
        checked.method_options,
        CalibrationOptions(text, 4, 32),
        wanted,
    )
    return {name: result for block in engine.run() for name, result in block.results.items()}


def simulated(folder: Path, results: dict[str, Result]) -> Any:
    """The source's model with what the results stand for, put in without the help of a file."""
    model, _ = load_model(folder, packed=False)
    for name, result in results.items():
        parameter = model.get_parameter(name)
        module = model.get_submodule(name.rpartition(".")[0])
        value = simulate(result.quantized)
        if isinstance(module, Conv1D):
            value = value.t()
        with torch.no_grad():
            parameter.copy_(value)
        scale = column_scale(result.quantized)
        factors = None if scale is None else torch.from_numpy(scale.to_float32())
        treat = treatment(result.activation_clamp, result.activation_quantization, factors)
        if treat is not None:
            module.register_forward_pre_hook(lambda _, args, treat=treat: (treat(args[0]),))
    return model


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        output: torch.Tensor = model(IDS).logits
    return output


# The transposed layers of GPT-2 and the biases of OPT, with what treats matrices differently.
@pytest.mark.parametrize(
    ("family", "case"),
    [
        *(("llama", case) for case in CASES),
        *((f, c) for f in ("gpt2", "opt") for c in ("dc", "jsq 2:4, 4 bits", "sparsegpt", "llm_int8")),
    ],
)
def test_a_loaded_model_is_the_simulated_one(
    tmp_path: Path, folder: Callable[[str], Path], text: Path, family: str, case: str
) -> None:
    source, options = folder(family), CASES[case]
    path = tmp_path / "m.spq"
    spqfmt.pack(source, path, **options, calibration=text, samples=4, seq_len=32, embedding_bits=16)
    spqfmt.verify(path)
    loaded, _ = load_model(path, packed=False)
    results = calibrated(source, text, options)
    expected = logits(simulated(source, results))
    torch.testing.assert_close(logits(loaded), expected, rtol=1e-5, atol=1e-5)
    packed, _ = load_model(path, packed=True)
    difference = logits(packed) - expected
    # Sums in another order turn a rounding of an input here and there.
    assert difference.norm() < 1e-3 * expected.norm()
    # Something was done.
    assert not torch.allclose(logits(load_model(source)[0]), expected, rtol=1e-5, atol=1e-5)


def test_a_clamp_and_quantized_inputs_are_in_the_file_and_work(
    tmp_path: Path, folder: Callable[[str], Path], text: Path
) -> None:
    path = tmp_path / "m.spq"
    options = {"method": "jsq", "search_steps": 1, "search_samples": 1}
    spqfmt.pack(folder("llama"), path, **options, calibration=text, samples=4, seq_len=32)
    model, _ = load_model(path, packed=False)
    with spqfmt.open(path) as file:
        names = [name for name in file if file[name].input_treatment() is not None]
        assert len(names) == 14
        treat = file[names[0]].input_treatment()
    assert treat is not None
    module = model.get_submodule(names[0].rpartition(".")[0])
    x = torch.randn(2, 5, module.in_features)
    torch.testing.assert_close(module(x), torch.nn.functional.linear(treat(x), module.weight, module.bias))
    assert not torch.equal(treat(x), x)


def test_dc_folds_into_norms_and_keeps_the_rest_as_column_scales(
    tmp_path: Path, folder: Callable[[str], Path], text: Path
) -> None:
    path = tmp_path / "m.spq"
    spqfmt.pack(folder("llama"), path, method="dc", calibration=text, samples=4, seq_len=32)
    with spqfmt.open(path) as file:
        scaled = {
            name.split(".", 3)[3]
            for name in file
            if any(stream.role == "column_scales" for stream in file[name].info.streams)
        }
        methods = {file[name].info.method for name in file if "layernorm" in name}
    assert scaled == {"self_attn.o_proj.weight", "mlp.down_proj.weight"}
    assert methods == {"dc"}


def test_pruned_shares_in_the_file(tmp_path: Path, folder: Callable[[str], Path], text: Path) -> None:
    path = tmp_path / "m.spq"
    spqfmt.pack(
        folder("gpt2"), path, method="smoothquant", pruning="wanda", pattern="2:4", calibration=text,
        samples=4, seq_len=32,
    )  # fmt: skip
    with spqfmt.open(path) as file:
        for name in file:
            if file[name].info.method and name.endswith("c_fc.weight"):
                # Stored [in, out]: the columns of the matrix come first.
                weights = file.read(name)
                assert ((weights.reshape(-1, 4, weights.shape[1]) != 0).sum(1) <= 2).all()


def test_a_layer_whose_inputs_are_all_zero_is_said_and_rounded(
    tmp_path: Path, folder: Callable[[str], Path], text: Path
) -> None:
    source = tmp_path / "source"
    model, tokenizer = load_model(folder("llama"))
    with torch.no_grad():
        # up * gate is 0: the down projection sees nothing.
        model.model.layers[0].mlp.up_proj.weight.zero_()
    model.save_pretrained(source)
    tokenizer.save_pretrained(source)
    path = tmp_path / "m.spq"
    for method in ("dc", "jsq", "sparsegpt"):
        extra = {"search_steps": 0} if method == "jsq" else {}
        report = spqfmt.pack(
            source, path, method=method, calibration=text, samples=4, seq_len=32, force=True, **extra
        )
        assert any("layers.0.mlp.down_proj" in note and "zero" in note for note in report.notes)
        assert torch.isfinite(logits(load_model(path)[0])).all()


def test_options_of_other_methods_are_refused() -> None:
    with pytest.raises(OptionError, match="takes no --search-steps"):
        pack_options(method="dc", search_steps=3)
    with pytest.raises(OptionError, match="takes no --alpha"):
        pack_options(method="rtn", alpha=0.5)
