"""Checkpoints that are quantized already: named, kept by lossless, refused by every other method."""

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
import tiny_gguf
import torch
from safetensors.torch import save_file

import spqfmt
from spqfmt.errors import ImporterError
from spqfmt.importers import open_source
from spqfmt.quantize.registry import METHODS

AT = "model.layers.0.mlp.up_proj"
INTS, BYTES = torch.zeros(8, 16, dtype=torch.int32), torch.zeros(8, 16, dtype=torch.uint8)
CODES = torch.zeros(8, 16, dtype=torch.int8)
FLOATS = torch.ones(8, 16, dtype=torch.bfloat16)
FP8 = FLOATS.to(torch.float8_e4m3fn)

# config beside the architecture, tensors, what has quantized them
SOURCES: dict[str, tuple[dict[str, Any], dict[str, torch.Tensor], str]] = {
    "gptq": ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, {f"{AT}.qweight": INTS}, "gptq"),
    "gptq without its config": ({}, {f"{AT}.qweight": INTS, f"{AT}.scales": FLOATS}, "gptq or awq"),
    "awq": ({"quantization_config": {"quant_method": "awq"}}, {f"{AT}.qweight": INTS}, "awq"),
    "fp8": (
        {"quantization_config": {"quant_method": "fp8"}},
        {f"{AT}.weight": FP8, f"{AT}.weight_scale_inv": torch.ones(1, 1)},
        "fp8",
    ),
    "bare fp8": ({}, {f"{AT}.weight": FP8}, f"{AT}.weight is f8_e4m3"),
    "fp8 with scales": ({}, {f"{AT}.weight": FP8, f"{AT}.weight_scale_inv": torch.ones(1, 1)}, "fp8"),
    "bitsandbytes 4": (
        {"quantization_config": {"load_in_4bit": True, "quant_method": "bitsandbytes"}},
        {f"{AT}.weight": BYTES.reshape(-1, 1), f"{AT}.weight.absmax": torch.ones(4)},
        "bitsandbytes",
    ),
    "bitsandbytes 8 without its config": (
        {},
        {f"{AT}.SCB": torch.ones(8), f"{AT}.weight": CODES},
        "bitsandbytes",
    ),
    "old bitsandbytes": (
        {"quantization_config": {"load_in_8bit": True}},
        {f"{AT}.weight": CODES},
        "bitsandbytes",
    ),
    "compressed-tensors": (
        {"compression_config": {"quant_method": "compressed-tensors"}},
        {f"{AT}.weight_packed": INTS, f"{AT}.weight_scale": FLOATS},
        "compressed-tensors",
    ),
    "mxfp4": (
        {"quantization_config": {"quant_method": "mxfp4"}},
        {
            f"{AT}_blocks": torch.zeros(2, 8, 4, 16, dtype=torch.uint8),
            f"{AT}_scales": torch.zeros(2, 8, 4, dtype=torch.uint8),
        },
        "mxfp4",
    ),
    "mxfp4 without its config": (
        {},
        {f"{AT}_blocks": torch.zeros(2, 8, 4, 16, dtype=torch.uint8)},
        f"{AT}_blocks is u8",
    ),
    "in the text model": (
        {"text_config": {"quantization_config": {"quant_method": "awq"}}},
        {f"{AT}.qweight": INTS},
        "awq",
    ),
    "a config that speaks of it": (
        {"quantization_config": {"bits": 4}},
        {f"{AT}.weight": FLOATS},
        "config.json says so",
    ),
}


def folder(path: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Path:
    path.mkdir()
    save_file(tensors | {"model.norm.weight": torch.ones(8)}, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], **config}))
    return path


@pytest.mark.parametrize("kind", SOURCES)
def test_a_quantized_checkpoint_is_named_kept_by_lossless_and_refused_by_rtn(
    kind: str, tmp_path: Path
) -> None:
    config, tensors, by = SOURCES[kind]
    source = folder(tmp_path / "source", config, tensors)
    assert open_source(source).quantized == by
    out = tmp_path / "m.spq"
    with pytest.raises(ImporterError) as refused:
        spqfmt.pack(source, out, method="rtn")
    assert f"quantized already ({by}): only --method lossless keeps it" in str(refused.value)
    assert not out.exists()
    spqfmt.pack(source, out)
    with spqfmt.open(out) as file:
        for name, value in tensors.items():
            assert torch.equal(file.read(name).view(torch.uint8), value.view(torch.uint8))


@pytest.mark.parametrize("method", sorted(METHODS.keys() - {"lossless", "keep"}))
def test_every_method_refuses_it(method: str, tmp_path: Path) -> None:
    config, tensors, _ = SOURCES["gptq"]
    source = folder(tmp_path / "source", config, tensors)
    with pytest.raises(ImporterError, match=rf"for {method} give the model that it was made from"):
        spqfmt.pack(source, tmp_path / "m.spq", method=method)


@pytest.mark.parametrize(
    ("config", "tensors"),
    [
        ({}, {f"{AT}.weight": FLOATS}),
        ({"quantization_config": None}, {f"{AT}.weight": FLOATS}),
        ({"quantization_config": {}}, {f"{AT}.weight": FLOATS}),
        # What a model of floats may hold besides: a causal mask, positions, counters.
        ({}, {"h.0.attn.bias": torch.ones(1, 1, 8, 8, dtype=torch.uint8), "h.0.mlp.c_fc.weight": FLOATS}),
        ({}, {"embeddings.position_ids": torch.arange(8).reshape(1, 8), f"{AT}.weight": FLOATS}),
        ({}, {"bn.num_batches_tracked": torch.tensor(3), f"{AT}.weight": FLOATS}),
    ],
)
def test_floats_are_not_called_quantized(
    config: dict[str, Any], tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    source = folder(tmp_path / "source", config, tensors)
    assert open_source(source).quantized == ""
    spqfmt.pack(source, tmp_path / "m.spq", method="rtn")


def test_blocks_of_a_gguf_file_are_dequantized_and_taken_as_floats(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    tiny_gguf.write("llama", path, quantize=gguf.GGMLQuantizationType.Q8_0)
    assert open_source(path).quantized == ""
    spqfmt.pack(path, tmp_path / "m.spq", method="rtn")
