"""`--dequantize`: what the codes of a quantized source stand for, in place of these; without it no method does so."""

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
import quantized
import tiny
import tiny_gguf
import torch
from coded import same, write_arrays
from spq_command import run

import spqfmt
from spqfmt.errors import ImporterError, OptionError
from spqfmt.importers import open_source

AT = "model.layers.0.mlp.up_proj.weight"
LAYOUTS = (
    "gptq-act-order", "awq", "int4", "fp8", "mxfp4", "nvfp4", "nf4-nested", "llm-int8", "hqq", "quanto-int8",
    "torchao-int8",
)  # fmt: skip


@pytest.fixture(scope="module")
def floats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose rows every layout divides into its groups."""
    folder = tmp_path_factory.mktemp("floats") / "model"
    tiny.build("llama", folder, dtype=torch.bfloat16)
    return folder


@pytest.fixture(scope="module", params=[*LAYOUTS, "gguf"])
def source(request: pytest.FixtureRequest, floats: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It in one of them."""
    out = tmp_path_factory.mktemp("source") / "model"
    if request.param == "gguf":
        tiny_gguf.write("llama", out.with_suffix(".gguf"), quantize=gguf.GGMLQuantizationType.Q4_1)
        return out.with_suffix(".gguf")
    quantized.write(floats, out, request.param)
    return out


def test_values_are_packed_as_a_model_of_them_would_be(source: Path, tmp_path: Path) -> None:
    values, coded = tmp_path / "values.spq", open_source(source).as_weights().tensors
    forms = {tensor.name for tensor in coded if tensor.form}
    assert forms
    report = spqfmt.pack(source, values, dequantize=True)
    [note] = report.notes
    assert note.startswith(f"{len(forms)} tensors are codes in the source (")
    assert note.endswith("): the values that they stand for are stored")
    assert set(report.not_given_back.values()) == {"its codes were dequantized"}
    with spqfmt.open(values) as file:
        assert {file[name].info.scheme for name in file} <= {"dense", "tied"}
        assert all(same(file.read(tensor.name), tensor.load()) for tensor in coded)
        config = json.loads(file.assets["config.json"])
        assert "quantization_config" not in config
    model, _ = spqfmt.load_model(values, packed=False)
    assert same(model.state_dict()[AT], next(tensor.load() for tensor in coded if tensor.name == AT))
    spqfmt.unpack(values, tmp_path / "plain", as_="dense")
    options: dict[str, Any] = {"method": "rtn", "bits": 4, "group_size": 32}
    spqfmt.pack(tmp_path / "plain", tmp_path / "due.spq", **options)
    notes = spqfmt.pack(source, tmp_path / "rtn.spq", dequantize=True, **options).notes
    assert any("rtn has quantized again what they stand for" in note for note in notes)
    with spqfmt.open(tmp_path / "due.spq") as due, spqfmt.open(tmp_path / "rtn.spq") as found:
        assert found[AT].info.scheme == "grouped"
        assert all(same(found.read(name), due.read(name)) for name in due)


def test_no_method_takes_values_unasked(source: Path, tmp_path: Path) -> None:
    for method in ("rtn", "ecq", *(("lossless",) if source.suffix else ())):
        with pytest.raises(
            ImporterError, match="or add --dequantize to take what its codes stand for"
        ) as refused:
            spqfmt.pack(source, tmp_path / "m.spq", method=method)
        assert "\n" not in str(refused.value)
    assert not list(tmp_path.iterdir())
    with pytest.raises(OptionError, match="--dequantize gives up the codes that method keep keeps"):
        spqfmt.pack(source, tmp_path / "m.spq", method="keep", dequantize=True)


def test_a_calibrated_method_runs_the_dequantized_model(floats: Path, tmp_path: Path) -> None:
    quantized.write(floats, tmp_path / "nf4", "nf4")
    options: dict[str, Any] = {"method": "gptq", "bits": 4, "samples": 2, "seq_len": 16}
    spqfmt.pack(tmp_path / "nf4", tmp_path / "found.spq", dequantize=True, **options)
    spqfmt.pack(tmp_path / "nf4", tmp_path / "values.spq", dequantize=True)
    spqfmt.unpack(tmp_path / "values.spq", tmp_path / "plain", as_="dense")
    spqfmt.pack(tmp_path / "plain", tmp_path / "due.spq", **options)
    with spqfmt.open(tmp_path / "due.spq") as due, spqfmt.open(tmp_path / "found.spq") as found:
        assert all(same(found.read(name), due.read(name)) for name in due)


BYTES = torch.zeros(4, 8, dtype=torch.uint8)
UNKNOWN: dict[str, tuple[str, dict[str, torch.Tensor], str]] = {
    "vectors of a book": (
        "aqlm", {"a.codes": BYTES.view(4, 8, 1), "a.codebooks": torch.ones(1, 4, 1, 8)}, r"the model has .*\(aqlm\)",
    ),
    "a layout of GPUs": (
        "awq",
        {"a.qweight": BYTES.int(), "a.qzeros": BYTES.int(), "a.scales": torch.ones(4, 8).half()},
        r"tensor 'a.qweight' is one of a quantizer's arrays \(.*\) that .*, because of the version 'marlin'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", UNKNOWN)
def test_arrays_whose_values_nobody_knows_are_refused(tmp_path: Path, kind: str) -> None:
    method, arrays, words = UNKNOWN[kind]
    config = {"quantization_config": {"quant_method": method, "version": "marlin"}}
    source = write_arrays(tmp_path / "source", config, arrays)
    with pytest.raises(ImporterError, match=words):
        spqfmt.pack(source, tmp_path / "m.spq", dequantize=True)


def test_a_model_of_floats_is_packed_as_ever(floats: Path, tmp_path: Path) -> None:
    spqfmt.pack(floats, tmp_path / "m.spq", dequantize=True)
    spqfmt.pack(floats, tmp_path / "due.spq")
    assert (tmp_path / "m.spq").read_bytes() == (tmp_path / "due.spq").read_bytes()


def test_the_command_line(tmp_path: Path) -> None:
    tiny_gguf.write("llama", tmp_path / "m.gguf", quantize=gguf.GGMLQuantizationType.Q8_0)
    refused = run("pack", tmp_path / "m.gguf", tmp_path / "m.spq", "--method", "rtn")
    assert refused.code == 1
    assert refused.stderr.count("\n") == 1
    assert "is stored as codes (Q8_0), which --method keep keeps" in refused.stderr
    told = run(
        "pack", tmp_path / "m.gguf", tmp_path / "m.spq", "--method", "rtn", "--dequantize", "--dry-run"
    )
    assert "rtn" in told.stdout
    packed = run("pack", tmp_path / "m.gguf", tmp_path / "m.spq", "--method", "rtn", "--dequantize")
    assert "rtn has quantized again what they stand for" in packed.stderr
