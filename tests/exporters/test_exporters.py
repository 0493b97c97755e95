"""What holds for every form of export: its name on the command line, and codes that other quantizers made."""

import json
import typing
from pathlib import Path
from typing import Any

import packed_words
import pytest
import torch
from coded import write_arrays
from packed_models import values
from test_gguf_export import check, model_folder

import spqfmt
from spqfmt.cli.unpack import unpack as command
from spqfmt.errors import EncodeError
from spqfmt.exporters.registry import exporters
from spqfmt.reading import unpack as module
from spqfmt.reading.grids import StoredWeight

AT = "model.layers.0.mlp.up_proj"


def test_the_command_and_python_name_all_forms() -> None:
    [option] = [parameter for parameter in command.params if parameter.name == "as_"]
    due = {"source", "dense", *exporters()}
    assert set(option.type.choices) == due  # type: ignore[attr-defined]
    said = typing.get_type_hints(module.unpack)["as_"]
    assert {name for part in typing.get_args(said) for name in typing.get_args(part)} == due


@pytest.fixture
def awq(tmp_path: Path) -> Path:
    """A layer of AWQ and an embedding, kept, of a model that GGUF has."""
    weight = torch.randn((48, 128), generator=torch.Generator().manual_seed(2)) / 20
    scales, zeros, codes = packed_words.grid(weight, torch.arange(128) // 64, 4, symmetric=False)
    arrays = packed_words.awq_arrays(AT, codes, scales, zeros)
    arrays["model.embed_tokens.weight"] = torch.zeros(8, 64, dtype=torch.float16)
    said = {"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemm", "zero_point": True}
    folder = model_folder(tmp_path / "config", "qwen2")
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": said}
    spqfmt.pack(write_arrays(tmp_path / "source", config, arrays), tmp_path / "m.spq", method="keep")
    return tmp_path / "m.spq"


@pytest.mark.parametrize("form", ["gptq", "compressed-tensors"])
def test_codes_of_awq(awq: Path, tmp_path: Path, form: Any) -> None:
    spqfmt.unpack(awq, tmp_path / "out", as_=form)
    spqfmt.pack(tmp_path / "out", tmp_path / "again.spq", method="keep")
    exact, again = (values(path, torch.float32) for path in (awq, tmp_path / "again.spq"))
    assert exact.keys() == again.keys()
    assert all(torch.equal(again[name], value) for name, value in exact.items())


def test_codes_of_awq_are_blocks(awq: Path, tmp_path: Path) -> None:
    spqfmt.unpack(awq, tmp_path / "m.gguf", as_="gguf")
    assert check(awq, tmp_path / "m.gguf")[f"{AT}.weight"] == "Q5_0"


@pytest.mark.parametrize("form", [name for name in exporters() if name != "gguf"])
def test_a_folder_that_is_full_is_left_as_it_is(awq: Path, tmp_path: Path, form: Any) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(FileExistsError):
        spqfmt.unpack(awq, tmp_path / "out", as_=form)
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["mine"]


@pytest.mark.parametrize("form", exporters())
def test_damage_that_shows_late_leaves_nothing(
    awq: Path, tmp_path: Path, form: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Codes are read as they are written, when files are there already."""
    n_calls = 0
    real = StoredWeight.codes

    def codes(weight: StoredWeight) -> Any:
        nonlocal n_calls
        n_calls += 1
        if n_calls > (1 if form == "gguf" else 0):
            raise EncodeError("damaged")
        return real(weight)

    monkeypatch.setattr(StoredWeight, "codes", codes)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(EncodeError, match="damaged"):
        spqfmt.unpack(awq, tmp_path / ("o.gguf" if form == "gguf" else "out"), as_=form)
    assert n_calls == (2 if form == "gguf" else 1)
    assert sorted(tmp_path.iterdir()) == before
