"""A model with code of its own: packed, given back, and loaded where the caller trusts the code, as in transformers."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import spqfmt
from spqfmt.errors import UnsupportedError

IDS = torch.arange(24)[None]
CONFIG = "from transformers import LlamaConfig\nclass OwnConfig(LlamaConfig):\n    model_type = 'own_llama'\n"
MODEL = """
from transformers import LlamaForCausalLM
from .configuration_own import OwnConfig
class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
    def forward(self, *args, **options):
        out = super().forward(*args, **options)
        out.logits = out.logits * 2
        return out
"""


def test_own_code_runs_only_where_the_caller_trusts_it(
    tiny_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed_own(tiny_folder("llama"), tmp_path, {})
    source = tmp_path / "source"
    spqfmt.verify(tmp_path / "m.spq")
    assert spqfmt.inspect(tmp_path / "m.spq").tensors
    spqfmt.unpack(tmp_path / "m.spq", tmp_path / "folder", keep_packed=True, with_code=True)
    for trusted in (False, None, "yes"):
        with pytest.raises(UnsupportedError, match=r"own_llama.* with trust_remote_code=True only"):
            spqfmt.load_model(tmp_path / "m.spq", trust_remote_code=trusted)  # type: ignore[arg-type]
    monkeypatch.setattr("builtins.input", lambda *_: "n")
    auto = transformers.AutoModelForCausalLM
    expected = auto.from_pretrained(source, trust_remote_code=True)(IDS).logits
    for options in ({}, {"packed": True}):
        with pytest.raises(ValueError, match="trust_remote_code=True"):
            auto.from_pretrained(tmp_path / "folder", **options)
        model = auto.from_pretrained(tmp_path / "folder", trust_remote_code=True, **options)
        assert type(model).__name__ == "OwnForCausalLM"
        assert torch.allclose(model(IDS).logits, expected, atol=1e-4)


@pytest.fixture
def own(tiny_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A packed model with code of its own, whose logits are twice those of its base."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked whether to run code"))
    return packed_own(tiny_folder("llama"), tmp_path, {})


def packed_own(llama: Path, folder: Path, auto_map: dict[str, str]) -> Path:
    """A Llama with a class of its own, packed into `folder`."""
    source = shutil.copytree(llama, folder / "source")
    config = json.loads((source / "config.json").read_text())
    config |= {"model_type": "own_llama", "architectures": ["OwnForCausalLM"]}
    config["auto_map"] = {
        "AutoConfig": "configuration_own.OwnConfig",
        "AutoModelForCausalLM": "modeling_own.OwnForCausalLM",
        **auto_map,
    }
    (source / "config.json").write_text(json.dumps(config))
    (source / "configuration_own.py").write_text(CONFIG)
    (source / "modeling_own.py").write_text(MODEL)
    spqfmt.pack(source, folder / "m.spq")
    return folder / "m.spq"


@pytest.mark.parametrize("options", [{}, {"packed": True}, {"memory": "1MiB"}], ids=str)
def test_load_model_runs_own_code_that_the_caller_trusts(
    own: Path, tiny_folder: Callable[[str], Path], options: dict[str, Any]
) -> None:
    plain = spqfmt.load_model(tiny_folder("llama"))[0](IDS).logits
    model, tokenizer = spqfmt.load_model(own, trust_remote_code=True, **options)
    assert type(model).__name__ == "OwnForCausalLM"
    assert type(model.config).__name__ == "OwnConfig"
    assert tokenizer is not None
    assert torch.allclose(model(IDS).logits, 2 * plain, atol=1e-4)
    again, _ = spqfmt.load_model(own, trust_remote_code=True, **options)
    # Not a class for each load: what transformers keeps of the code is kept by the file's name.
    assert type(again).__module__ == type(model).__module__


def test_what_is_saved_of_own_code_names_it_again(own: Path, tmp_path: Path) -> None:
    model, _ = spqfmt.load_model(own, trust_remote_code=True)
    model.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "modeling_own.py").exists()
    saved, _ = spqfmt.load_model(tmp_path / "saved", trust_remote_code=True)
    assert torch.equal(saved(IDS).logits, model(IDS).logits)


def test_code_of_a_repository_is_not_fetched(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    path = packed_own(
        tiny_folder("llama"), tmp_path, {"AutoModelForCausalLM": "some/one--modeling_own.OwnForCausalLM"}
    )
    with pytest.raises(UnsupportedError, match=r"m\.spq: config.json: auto_map names code of a repository"):
        spqfmt.load_model(path, trust_remote_code=True)


def test_code_that_gives_no_model(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    path = packed_own(
        tiny_folder("llama"), tmp_path, {"AutoModelForCausalLM": "modeling_own.OwnConfig", "AutoModel": "x.Y"}
    )
    with pytest.raises(
        UnsupportedError, match=r"m\.spq: 'modeling_own.OwnConfig' of its auto_map is no model of"
    ):
        spqfmt.load_model(path, trust_remote_code=True)


def test_code_that_fails_is_named(own: Path, tmp_path: Path) -> None:
    (tmp_path / "source" / "modeling_own.py").write_text("raise ValueError('not today')")
    spqfmt.pack(tmp_path / "source", own, force=True)
    with pytest.raises(UnsupportedError, match=r"m\.spq: its own code gives no model: not today"):
        spqfmt.load_model(own, trust_remote_code=True)
