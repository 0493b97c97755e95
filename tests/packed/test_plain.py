"""What is planned without asking a class is what the class says; and what is not plain is left to it."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import spqfmt
from spqfmt.codecs.registry import CODECS
from spqfmt.errors import MemoryBudgetError, OptionError, SpqError
from spqfmt.importers import open_source
from spqfmt.importers.base import Asset
from spqfmt.loaders.plan import plan_model
from spqfmt.packing.options import pack_options
from spqfmt.packing.pack import pack_model
from spqfmt.progress import Silent
from spqfmt.residency.model_plan import ModelPlan
from spqfmt.residency.plain import CLASSES, plan_plain
from spqfmt.residency.rates import Rates

SIZES = {
    "vocab_size": 264,
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}


def made(folder: Path, architecture: str, **settings: Any) -> Path:
    """A folder of a small model of that class, its config with all that is needed to be plain."""
    cls = getattr(transformers, architecture)
    config = cls.config_class(**SIZES | {"tie_word_embeddings": False} | settings)
    torch.manual_seed(0)
    cls(config).to(torch.bfloat16).save_pretrained(folder)
    configure(folder, {"tie_word_embeddings": config.tie_word_embeddings})
    return folder


def configure(folder: Path, values: dict[str, Any]) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def plain(
    path: Path, memory: str | None = None, dtype: str | None = None, **options: Any
) -> ModelPlan | None:
    return plan_plain(path, memory=memory, dtype=dtype, n_tokens=100, batch=3, **options)


@pytest.fixture(scope="module")
def rates() -> Rates:
    return Rates(read=1e9, compute=1e9, codecs=dict.fromkeys(CODECS, 2e9))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("architecture", CLASSES)
def test_a_plain_decoder_is_planned_as_its_class_is(
    tmp_path: Path, rates: Rates, architecture: str, tied: bool
) -> None:
    folder = made(tmp_path / "model", architecture, tie_word_embeddings=tied, head_dim=24)
    for number, options in enumerate(({}, {"method": "rtn", "bits": 4}, {"shard_size": "100KB"})):
        path = spqfmt.pack(folder, tmp_path / f"{number}.spq", **options).files[-1]  # type: ignore[arg-type]
        for dtype in (None, "float32"):
            smallest = plan_model(path, dtype=dtype, rates=rates).plan.smallest_bytes
            for memory in (None, f"{smallest}", f"{smallest + 30_000}"):
                expected = plan_model(path, memory=memory, dtype=dtype, n_tokens=100, batch=3, rates=rates)
                found = plain(path, memory, dtype, rates=rates)
                assert found is not None
                assert held(found) == held(expected)
                assert found.on_top == expected.on_top
                assert found.to_json() == expected.to_json()
        with pytest.raises(MemoryBudgetError) as theirs:
            plan_model(path, memory=1, rates=rates)
        with pytest.raises(MemoryBudgetError) as ours:
            plain(path, "1", rates=rates)
        assert str(ours.value) == str(theirs.value)


def held(planned: ModelPlan) -> dict[str, Any]:
    """An inventory, its parts by name: records of two readers are never the same."""
    items = [(item.part.name, item.products, item.lookups) for item in planned.inventory.items]
    return vars(planned.inventory) | {"items": items, "totals": planned.inventory.totals}


NOT_PLAIN: dict[str, dict[str, Any]] = {
    "another class": {"architectures": ["LlamaModel"]},
    "no class": {"architectures": None},
    "another type": {"model_type": "mistral"},
    "biases": {"attention_bias": True},
    "more layers": {"num_hidden_layers": 4},
    "fewer layers": {"num_hidden_layers": 2},
    "very many layers": {"num_hidden_layers": 10**9},
    "no layers": {"num_hidden_layers": -1},
    "another width": {"hidden_size": 128},
    "other heads": {"num_attention_heads": 8, "head_dim": 24},
    "no number": {"intermediate_size": "176"},
    "an open tie": {"tie_word_embeddings": None},
    "another tie": {"tie_word_embeddings": True},
    "a quantizer": {"quantization_config": {"quant_method": "fp8"}},
    "a part": {"text_config": {"hidden_size": 64}},
}


@pytest.mark.parametrize("case", NOT_PLAIN)
def test_another_config_is_left_to_the_class(tmp_path: Path, case: str) -> None:
    folder = made(tmp_path / "model", "LlamaForCausalLM")
    spqfmt.pack(folder, tmp_path / "m.spq")
    assert plain(tmp_path / "m.spq") is not None
    configure(folder, NOT_PLAIN[case])
    # A config that says of other weights is a source's; of a file it is what was there.
    spqfmt.pack(folder, tmp_path / "other.spq")
    assert plain(tmp_path / "other.spq") is None


def drop(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["model.norm.weight"]


def add(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(64)


def widen(tensors: dict[str, torch.Tensor]) -> None:
    tensors["model.layers.0.mlp.up_proj.weight"] = torch.zeros(176, 65)


@pytest.mark.parametrize("change", [drop, add, widen])
def test_other_tensors_are_left_to_the_class(
    tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], None]
) -> None:
    folder = made(tmp_path / "model", "LlamaForCausalLM")
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    spqfmt.pack(folder, tmp_path / "m.spq")
    assert plain(tmp_path / "m.spq") is None


@pytest.mark.parametrize("config", [b"{", b"[]", b'{"a":' * 9000, b" " * 70_000 + b"{}", b"", None])
def test_what_is_no_config_is_left_to_the_class(tmp_path: Path, config: bytes | None) -> None:
    folder = made(tmp_path / "model", "LlamaForCausalLM")
    source = open_source(folder)
    assets = () if config is None else (Asset("config.json", config),)
    pack_model(
        replace(source, assets=assets), tmp_path / "m.spq", pack_options(), force=False, progress=Silent()
    )
    assert plain(tmp_path / "m.spq") is None
    with pytest.raises(SpqError):
        plan_model(tmp_path / "m.spq")


def test_a_source_is_left_to_the_class_and_no_ceiling_is_refused(tmp_path: Path) -> None:
    folder = made(tmp_path / "model", "LlamaForCausalLM")
    assert plain(folder) is None
    spqfmt.pack(folder, tmp_path / "m.spq")
    for memory in ("0", "many"):
        with pytest.raises(OptionError) as theirs:
            plan_model(tmp_path / "m.spq", memory=memory)
        with pytest.raises(OptionError) as ours:
            plain(tmp_path / "m.spq", memory)
        assert str(ours.value) == str(theirs.value)
