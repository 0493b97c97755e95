"""transformers, with the library compressed-tensors, loads what `unpack --as compressed-tensors` writes."""

import importlib.util
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers
from packed_models import METHODS, values

import spqfmt

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("compressed_tensors") is None,
    reason="compressed-tensors is not installed (pip install 'spqfmt[engines]')",
)
PROMPT = torch.arange(20)[None]


def load(folder: Path, *, decompress: bool) -> Any:
    """The model as transformers makes it, in the dtype of its config."""
    options: dict[str, Any] = {}
    if decompress:
        options["quantization_config"] = transformers.CompressedTensorsConfig(dequantize=True)
    with tiny.quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return transformers.AutoModelForCausalLM.from_pretrained(folder, **options)


@pytest.mark.parametrize(
    "what",
    ["rtn, 8 bits a row", "rtn, 4 bits a row", "rtn, groups of 4 bits", "rtn, groups of 3 bits", "ecq"],
)
def test_weights_are_those_of_the_file(tiny_folder: Callable[[str], Path], tmp_path: Path, what: str) -> None:
    path, out = tmp_path / "m.spq", tmp_path / "out"
    spqfmt.pack(tiny_folder("llama"), path, **METHODS[what])
    spqfmt.unpack(path, out, as_="compressed-tensors")
    state = load(out, decompress=True).state_dict()
    due = values(path)
    assert due.keys() == state.keys()
    for name, value in due.items():
        assert torch.equal(state[name], value), name


def test_tokens_are_those_of_the_file(tmp_path: Path) -> None:
    """Without a word to transformers, which keeps layers compressed until they are called."""
    path, out = tmp_path / "m.spq", tmp_path / "out"
    tiny.build("llama", tmp_path / "source", dtype=torch.float32)
    spqfmt.pack(tmp_path / "source", path, method="ecq", bits=4, no_calibration=True)
    spqfmt.unpack(path, out, as_="compressed-tensors")
    model, (ours, _) = load(out, decompress=False), spqfmt.load_model(path, packed=False)
    assert "model.layers.0.mlp.up_proj.weight_packed" in model.state_dict()
    with torch.inference_mode():
        assert torch.equal(model(PROMPT).logits, ours(PROMPT).logits)
        options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
        assert torch.equal(model.generate(PROMPT, **options), ours.generate(PROMPT, **options))
