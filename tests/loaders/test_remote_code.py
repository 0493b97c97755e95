"""A model with code of its own: packed, given back, and loaded where the caller trusts the code, as in transformers."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

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
    source = shutil.copytree(tiny_folder("llama"), tmp_path / "source")
    config = json.loads((source / "config.json").read_text())
    config |= {"model_type": "own_llama", "architectures": ["OwnForCausalLM"]}
    config["auto_map"] = {
        "AutoConfig": "configuration_own.OwnConfig",
        "AutoModelForCausalLM": "modeling_own.OwnForCausalLM",
    }
    (source / "config.json").write_text(json.dumps(config))
    (source / "configuration_own.py").write_text(CONFIG)
    (source / "modeling_own.py").write_text(MODEL)
    spqfmt.pack(source, tmp_path / "m.spq")
    spqfmt.verify(tmp_path / "m.spq")
    assert spqfmt.inspect(tmp_path / "m.spq").tensors
    spqfmt.unpack(tmp_path / "m.spq", tmp_path / "folder", keep_packed=True, with_code=True)
    with pytest.raises(UnsupportedError, match="own_llama"):
        spqfmt.load_model(tmp_path / "m.spq")
    monkeypatch.setattr("builtins.input", lambda *_: "n")
    auto = transformers.AutoModelForCausalLM
    expected = auto.from_pretrained(source, trust_remote_code=True)(IDS).logits
    for options in ({}, {"packed": True}):
        with pytest.raises(ValueError, match="trust_remote_code=True"):
            auto.from_pretrained(tmp_path / "folder", **options)
        model = auto.from_pretrained(tmp_path / "folder", trust_remote_code=True, **options)
        assert type(model).__name__ == "OwnForCausalLM"
        assert torch.allclose(model(IDS).logits, expected, atol=1e-4)
