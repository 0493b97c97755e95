"""What from_pretrained is told beside the folder counts for packed weights too, or is refused by its name."""

import inspect
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers
from peft import LoraConfig, get_peft_model

import spqfmt
from spqfmt.loaders import pretrained
from spqfmt.loaders.packed.modules import PackedLinear

INPUTS = torch.tensor([[(i * 37 + 11) % 256 for i in range(40)]])
LLAMA = transformers.LlamaForCausalLM


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Callable[[str], Path]) -> Path:
    """A folder with a packed model."""
    at = tmp_path_factory.mktemp("options")
    spqfmt.pack(tiny_folder("llama"), at / "m.spq")
    spqfmt.unpack(at / "m.spq", at / "folder", keep_packed=True)
    return at / "folder"


def load(folder: Path, model_class: Any = transformers.AutoModelForCausalLM, **options: Any) -> Any:
    with tiny.quiet():
        loaded = model_class.from_pretrained(folder, packed=True, **options)
    model = loaded[0] if isinstance(loaded, tuple) else loaded
    assert isinstance(model.model.layers[0].mlp.up_proj, PackedLinear)
    return loaded


def plain(folder: Path, model_class: Any = transformers.AutoModelForCausalLM, **options: Any) -> Any:
    with tiny.quiet():
        return model_class.from_pretrained(folder, **options)


@pytest.mark.parametrize("model_class", [transformers.AutoModelForCausalLM, LLAMA])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attention_is_computed_as_asked(folder: Path, model_class: Any, implementation: str) -> None:
    model = load(folder, model_class, attn_implementation=implementation)
    expected = plain(folder, model_class, attn_implementation=implementation)
    assert model.config._attn_implementation == expected.config._attn_implementation == implementation
    assert model.model.layers[0].self_attn.config._attn_implementation == implementation
    assert torch.equal(model(INPUTS).logits, expected(INPUTS).logits)


def test_what_is_given_as_none_is_not_given(folder: Path) -> None:
    """As lm_eval gives what it was not told."""
    names = ("gguf_file", "state_dict", "variant", "quantization_config", "tp_plan", "of_no_class")
    model = load(folder, **dict.fromkeys(names))
    assert torch.equal(model(INPUTS).logits, plain(folder)(INPUTS).logits)


@pytest.mark.parametrize("model_class", [transformers.AutoModelForCausalLM, LLAMA])
def test_keywords_of_the_config_reach_it(folder: Path, model_class: Any) -> None:
    options = {"output_hidden_states": True, "rms_norm_eps": 0.5, "output_attentions": True}
    model, expected = load(folder, model_class, **options), plain(folder, model_class, **options)
    out, wanted = model(INPUTS), expected(INPUTS)
    assert len(out.hidden_states) == len(wanted.hidden_states) == 3
    assert len(out.attentions) == 2
    assert torch.equal(out.logits, wanted.logits)
    assert not torch.equal(out.logits, plain(folder)(INPUTS).logits)


@pytest.mark.parametrize("model_class", [transformers.AutoModelForCausalLM, LLAMA])
@pytest.mark.parametrize("as_path", [False, True])
def test_another_config_counts(tmp_path: Path, folder: Path, model_class: Any, as_path: bool) -> None:
    config = transformers.AutoConfig.from_pretrained(folder)
    config.rms_norm_eps = 0.5
    config.save_pretrained(tmp_path)
    given: Any = tmp_path if as_path and model_class is LLAMA else config
    before = config.to_dict()
    model, expected = load(folder, model_class, config=given), plain(folder, model_class, config=given)
    assert model.config.rms_norm_eps == 0.5
    assert torch.equal(model(INPUTS).logits, expected(INPUTS).logits)
    assert config.to_dict() == before, "the caller's own config stays as it is"


def test_a_config_given_goes_with_an_attention(folder: Path) -> None:
    config = transformers.AutoConfig.from_pretrained(folder)
    model = load(folder, LLAMA, config=config, attn_implementation="eager")
    assert model.config._attn_implementation == "eager"
    assert config._attn_implementation is None


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, "bfloat16"])
def test_a_dtype_is_computed_in(folder: Path, name: str, dtype: Any) -> None:
    assert load(folder, **{name: dtype})(INPUTS).logits.dtype == torch.bfloat16


def test_the_dtype_of_the_config_is_the_default(folder: Path) -> None:
    config = transformers.AutoConfig.from_pretrained(folder)
    config.dtype = torch.bfloat16
    for dtype in (None, "auto"):
        model, expected = (make(folder, LLAMA, config=config, dtype=dtype) for make in (load, plain))
        assert model.dtype == expected.dtype == torch.bfloat16


def test_what_was_loaded_is_told(folder: Path) -> None:
    model, info = load(folder, output_loading_info=True)
    assert info["missing_keys"] == info["unexpected_keys"] == set()
    assert torch.equal(model(INPUTS).logits, plain(folder)(INPUTS).logits)


def test_a_generation_config_counts(folder: Path) -> None:
    generation = transformers.GenerationConfig(max_new_tokens=3, eos_token_id=7)
    model = load(folder, generation_config=generation)
    assert (model.generation_config.max_new_tokens, model.generation_config.eos_token_id) == (3, 7)
    assert load(folder).generation_config.to_dict() == plain(folder).generation_config.to_dict()


@pytest.mark.parametrize("device_map", ["cpu", torch.device("cpu"), {"": "cpu"}])
def test_one_device_is_taken(folder: Path, device_map: Any) -> None:
    assert load(folder, device_map=device_map).device == torch.device("cpu")


def refuse(folder: Path, message: str, *arguments: Any, **options: Any) -> None:
    with pytest.raises(spqfmt.OptionError, match=re.escape(message)), tiny.quiet():
        LLAMA.from_pretrained(folder, *arguments, **{"packed": True, **options})


@pytest.mark.parametrize("device_map", ["auto", {"model": "cpu", "lm_head": "cpu"}])
def test_several_devices_are_refused(folder: Path, device_map: Any) -> None:
    refuse(folder, "device_map: packed weights are on one device", device_map=device_map)


@pytest.mark.parametrize("name", sorted(pretrained._NOT_PACKED))
def test_what_packed_weights_cannot_do_is_refused_by_name(folder: Path, name: str) -> None:
    of_ranks = {"distributed_config", "tp_plan", "tp_size"}
    words = "shared out by tp_plan='auto' alone" if name in of_ranks else f"{name}: not for packed weights"
    refuse(folder, words, **{name: {"bits": 4}})
    assert load(folder, LLAMA, **{name: None})


def test_unknown_names_are_refused(folder: Path) -> None:
    refuse(folder, "no_such_name: not for packed weights", no_such_name=1)
    refuse(folder, "output_attention: not for packed weights", output_attention=False)
    config = transformers.AutoConfig.from_pretrained(folder)
    # As transformers has it: with a config, keywords go to the model and not to the config.
    refuse(folder, "use_cache: not for packed weights", config=config, use_cache=False)
    refuse(folder, "packed weights take no arguments by position", None)
    refuse(folder, "host_memory is for a model on a device", host_memory="1MiB")
    refuse(folder, "dtype: packed weights compute in one dtype", dtype={"": "float32", "lm_head": "float16"})
    refuse(folder, "packed weights compute in", dtype="float64")


def test_every_name_that_transformers_takes_is_decided_on() -> None:
    method = transformers.PreTrainedModel.from_pretrained
    own = inspect.getsource(inspect.unwrap(method.__func__))
    taken = set(re.findall(r'kwargs\.pop\("(\w+)"', own))
    taken |= {
        name for text in re.findall(r"for name in \[(.*?)\]", own) for name in re.findall(r'"(\w+)"', text)
    }
    taken |= set(re.findall(r"^            (\w+) ?\(`", own, re.MULTILINE))
    taken |= {
        n
        for n, p in inspect.signature(inspect.unwrap(method.__func__)).parameters.items()
        if p.kind == p.KEYWORD_ONLY
    }
    assert {
        "attn_implementation",
        "variant",
        "ignore_mismatched_sizes",
        "low_cpu_mem_usage",
        "tp_plan",
    } <= taken
    elsewhere = {
        "pretrained_model_name_or_path",
        "model_args",
        "kwargs",
        "state_dict",
        "gguf_file",
        "variant",
    }
    decided = pretrained._WITH_PACKED | pretrained._OF_NO_CONCERN | pretrained._NOT_PACKED
    assert taken - elsewhere <= decided


def test_packed_false_is_the_ordinary_way(folder: Path) -> None:
    model = plain(folder, packed=False, attn_implementation="eager", ignore_mismatched_sizes=True)
    assert not isinstance(model.model.layers[0].mlp.up_proj, PackedLinear)
    refuse(folder, "activations is for packed weights", packed=False, activations="float")


def test_a_class_of_ones_own(folder: Path) -> None:
    class Own(LLAMA):  # type: ignore[misc,valid-type]
        pass

    model = load(folder, Own)
    assert isinstance(model, Own)
    assert torch.equal(model(INPUTS).logits, plain(folder)(INPUTS).logits)


def test_a_packed_file_alone_in_a_folder(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "m.spq").write_bytes((folder / "m.spq").read_bytes())
    expected = plain(folder)(INPUTS).logits
    assert torch.equal(load(tmp_path, LLAMA)(INPUTS).logits, expected)
    assert torch.equal(plain(tmp_path, LLAMA)(INPUTS).logits, expected)


def test_a_variant_is_another_file(folder: Path) -> None:
    with pytest.raises(OSError, match=r"model\.fp16\.safetensors"):
        plain(folder, LLAMA, variant="fp16")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("packed", [None, True])
def test_an_adapter_is_put_onto_its_base(
    tmp_path: Path, folder: Path, packed: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that names the packed folder as its base, and one that lies beside the packed file."""
    lora = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    adapted = get_peft_model(plain(folder, LLAMA, packed=packed), lora).eval()
    adapted.save_pretrained(tmp_path / "adapter")
    expected = adapted(INPUTS).logits
    without = plain(folder, LLAMA, packed=packed)(INPUTS).logits
    assert not torch.equal(expected, without)
    asked = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "adapter", packed=packed)
    assert torch.equal(asked(INPUTS).logits, expected)
    beside = shutil.copytree(folder, tmp_path / "beside")
    shutil.copytree(tmp_path / "adapter", beside, dirs_exist_ok=True)
    assert torch.equal(plain(beside, LLAMA, packed=packed)(INPUTS).logits, expected)
    monkeypatch.setattr(pretrained, "is_peft_available", lambda: False)
    # transformers without peft does not look at it either.
    assert torch.equal(plain(beside, LLAMA, packed=packed)(INPUTS).logits, without)
