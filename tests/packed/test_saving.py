"""save_pretrained of a packed model: a folder that loads again, or one line that says why there is none."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig

import spqfmt
from spqfmt.errors import OptionError, SpqError
from spqfmt.loaders.packed import PackedLinear
from spqfmt.loaders.plan import plan_model

IDS = torch.tensor([[(i * 37 + 11) % 256 for i in range(24)]])


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(IDS).logits
    return found


@pytest.fixture
def packed(tiny_folder: Callable[[str], Path], tmp_path: Path) -> Path:
    path = tmp_path / "m.spq"
    spqfmt.pack(tiny_folder("llama"), path, method="rtn", bits=4, group_size=16)
    return path


@pytest.mark.parametrize("shard_size", [None, 50_000])
def test_a_saved_folder_loads_again(
    tiny_folder: Callable[[str], Path], tmp_path: Path, shard_size: int | None
) -> None:
    path = tmp_path / "source" / "m.spq"
    path.parent.mkdir()
    spqfmt.pack(tiny_folder("llama"), path, method="rtn", shard_size=shard_size)
    if shard_size:
        path = path.with_name("m.spq.index.json")
    model, _ = spqfmt.load_model(path, memory=plan_model(path).plan.smallest_bytes)
    expected = logits(model)
    model.config.bos_token_id = 7
    model.generation_config.update(do_sample=True, temperature=0.25)
    model.save_pretrained(tmp_path / "saved")
    shutil.rmtree(path.parent)
    for options in ({}, {"packed": True}):
        again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved", **options)
        assert isinstance(again.model.layers[0].mlp.up_proj, PackedLinear) == bool(options)
        assert torch.allclose(logits(again), expected, atol=0.02)
        assert (again.config.bos_token_id, again.generation_config.temperature) == (7, 0.25)
        assert again.dtype == model.dtype
    assert torch.equal(logits(again), expected)
    # The folder that a model was loaded from is one that it may be saved to.
    again.save_pretrained(tmp_path / "saved")
    assert torch.equal(logits(again), expected)


@pytest.mark.filterwarnings("ignore:Could not find a config file")
def test_an_adapter_is_saved_alone(packed: Path, tmp_path: Path) -> None:
    model, _ = spqfmt.load_model(packed, packed=True)
    model.add_adapter(LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False))
    expected = logits(model)
    model.save_pretrained(tmp_path / "adapter")
    saved = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors"} <= saved
    assert not any(
        name.endswith((".spq", "model.safetensors")) for name in saved - {"adapter_model.safetensors"}
    )
    again, _ = spqfmt.load_model(packed, packed=True)
    again.load_adapter(str(tmp_path / "adapter"))
    assert torch.equal(logits(again), expected)


def test_weights_that_the_file_has_not_are_not_lost(packed: Path, tmp_path: Path) -> None:
    model, _ = spqfmt.load_model(packed, packed=True)
    with torch.no_grad():
        model.model.norm.weight.mul_(2)
    with pytest.raises(
        SpqError, match=r"^model\.norm\.weight has changed since it was loaded, .*: load with packed=False"
    ):
        model.save_pretrained(tmp_path / "saved")
    model, _ = spqfmt.load_model(packed, packed=True)
    model.model.norm.weight = torch.nn.Parameter(torch.ones(64))
    with pytest.raises(SpqError, match=r"^model\.norm\.weight has changed"):
        model.save_pretrained(tmp_path / "saved")
    model, _ = spqfmt.load_model(packed)
    model.set_input_embeddings(torch.nn.Embedding(256, 64))
    with pytest.raises(
        SpqError, match=r"^model\.embed_tokens\.weight is new since .*: load with packed=False"
    ):
        model.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_what_cannot_be_saved_so_is_refused(packed: Path, tmp_path: Path) -> None:
    model, _ = spqfmt.load_model(packed, packed=True)
    at = tmp_path / "saved"
    for options in ({"push_to_hub": True}, {"state_dict": {"a": 1}}, {"variant": "fp16"}):
        with pytest.raises(
            OptionError, match=f"^{next(iter(options))}: packed weights are saved as they are"
        ):
            model.save_pretrained(at, **options)
    model.save_pretrained(at, is_main_process=False, max_shard_size="1GB")
    assert not at.exists()
    at.mkdir()
    for name in ("model.safetensors", "other.spq"):
        (at / name).touch()
        with pytest.raises(
            OptionError, match=f"{name} is there, which would be loaded instead; give another"
        ):
            model.save_pretrained(at)
        (at / name).unlink()
    packed.write_bytes(packed.read_bytes() + b"x")
    with pytest.raises(SpqError, match=r"m\.spq is not the file any more that the model was loaded from"):
        model.save_pretrained(at)
    assert not list(at.iterdir())
