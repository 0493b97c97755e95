"""A model whose inputs of layers are far from 1 and whose weights make up for it is quantized as its ordinary twin."""

from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from calibration_models import TEXT
from safetensors.torch import load_file, save_file

import spqfmt

FEW = {"samples": 4, "seq_len": 32, "calibration": TEXT, "embedding_bits": 16}
METHODS: list[tuple[str, dict[str, Any]]] = [
    ("gptq", {"bits": 3}),
    ("spqr", {"bits": 3}),
    ("ecq", {"bits": 4}),
    ("ecq", {"bits": 4, "gradients": True}),
    ("wanda", {}),
    ("sparsegpt", {}),
    ("jsq", {"search_steps": 2, "search_samples": 1}),
    ("dc", {"sparsity": 0.3}),
    ("smoothquant", {}),
    ("zeroquant", {"group_size": 16}),
]
NORMS = {"self_attn": "input_layernorm", "mlp": "post_attention_layernorm"}


def norm_of(name: str) -> str | None:
    """The norm that makes the input of a layer; None where none does."""
    layer, _, module = name.rpartition(".weight")[0].rpartition(".")
    block, _, part = layer.rpartition(".")
    return None if module in {"o_proj", "down_proj"} else f"{block}.{NORMS[part]}.weight"


def exponent_of(name: str, exponent: int) -> int:
    """What a tensor is multiplied by, a power of 2: together they change no output of the model."""
    if name.endswith(tuple(f"{norm}.weight" for norm in NORMS.values())):
        return exponent
    return -exponent if name.endswith("_proj.weight") and norm_of(name) else 0


def packed_errors(folder: Path, out: Path, method: str, options: dict[str, Any]) -> dict[str, float]:
    """Of every layer, the error of its weights over their norm; of both times the norm that its input comes from."""
    spqfmt.pack(folder, out, method=method, **FEW, **options)
    source = load_file(folder / "model.safetensors")
    found = {}
    with spqfmt.open(out) as file:
        for name in source:
            if not name.endswith("_proj.weight"):
                continue
            norm = norm_of(name)
            made, value = (
                read(name).double() * (read(norm).double() if norm else 1)
                for read in (file.read, source.__getitem__)
            )
            assert torch.isfinite(made).all()
            found[name] = float((made - value).norm() / value.norm())
    return found


@pytest.mark.parametrize("exponent", [-100, 90])
@pytest.mark.parametrize(("method", "options"), METHODS, ids=str)
def test_a_model_is_quantized_as_its_ordinary_twin(
    folder: Callable[[str], Path], tmp_path: Path, method: str, options: dict[str, Any], exponent: int
) -> None:
    plain, twin = tmp_path / "plain", tmp_path / "twin"
    for path in (plain, twin):
        copytree(folder("llama"), path)
    values = {name: value.float() for name, value in load_file(plain / "model.safetensors").items()}
    save_file(values, plain / "model.safetensors", {"format": "pt"})
    scaled = {name: value * 2.0 ** exponent_of(name, exponent) for name, value in values.items()}
    save_file(scaled, twin / "model.safetensors", {"format": "pt"})
    expected = packed_errors(plain, tmp_path / "plain.spq", method, options)
    made = packed_errors(twin, tmp_path / "twin.spq", method, options)
    # Scales of weights so far from 1 are bfloat16, which is coarser.
    assert made == pytest.approx(expected, rel=0.05)
