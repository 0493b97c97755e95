"""Models loaded from .spq files and from sources compute what transformers computes from the source folder."""

import importlib.util
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import spqfmt
from spqfmt.errors import (
    ChecksumError,
    CorruptError,
    ImporterError,
    OptionError,
    SpqError,
    UnsupportedError,
    UnusedTensorsWarning,
)
from spqfmt.importers import open_source
from spqfmt.loaders import load_model, need_tokenizer
from spqfmt.models.config import find_model_class
from spqfmt.models.places import unmatched

INPUTS = torch.tensor([[(i * 37 + 11) % 256 for i in range(40)]])


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        output: torch.Tensor = model(INPUTS).logits
    return output


def by_transformers(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    with tiny.quiet():
        return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


@pytest.mark.parametrize("name", sorted(tiny.configurations()))
def test_a_packed_model_computes_what_its_source_does(
    tmp_path: Path, tiny_folder: Callable[[str], Path], name: str
) -> None:
    folder = tiny_folder(name)
    spqfmt.pack(folder, tmp_path / "m.spq")
    model, tokenizer = load_model(tmp_path / "m.spq")
    expected = by_transformers(folder)
    assert type(model) is type(expected)
    assert not model.training
    assert torch.equal(logits(model), logits(expected))
    assert model.generation_config.to_dict() == expected.generation_config.to_dict()
    assert tokenizer.decode(tokenizer("Grüße, 12 €")["input_ids"]) == "Grüße, 12 €"
    buffers, wanted = dict(model.named_buffers()), dict(expected.named_buffers())
    assert buffers.keys() == wanted.keys()
    assert all(torch.equal(buffers[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize("name", sorted(tiny.configurations()))
def test_a_source_folder_loads_the_same_way(tiny_folder: Callable[[str], Path], name: str) -> None:
    model, _ = load_model(tiny_folder(name))
    assert torch.equal(logits(model), logits(by_transformers(tiny_folder(name))))


def test_tied_weights_share_their_memory(tmp_path: Path, tiny_folder: Callable[[str], Path]) -> None:
    spqfmt.pack(tiny_folder("llama_tied"), tmp_path / "m.spq")
    model, _ = load_model(tmp_path / "m.spq")
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()


def test_untied_copies_do_not(tiny_folder: Callable[[str], Path]) -> None:
    model, _ = load_model(tiny_folder("llama"))
    assert model.lm_head.weight.data_ptr() != model.model.embed_tokens.weight.data_ptr()


def test_shards_load_by_their_index(tmp_path: Path, tiny_folder: Callable[[str], Path]) -> None:
    report = spqfmt.pack(tiny_folder("llama"), tmp_path / "m.spq", shard_size=200_000)
    assert len(report.files) > 2
    index = next(tmp_path.glob("*.json"))
    assert torch.equal(logits(load_model(index)[0]), logits(by_transformers(tiny_folder("llama"))))


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float32])
def test_the_default_dtype_is_that_of_most_weights(tmp_path: Path, stored: torch.dtype) -> None:
    tiny.build("llama", tmp_path, dtype=stored)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].float()
    save_file(tensors, tmp_path / "model.safetensors")
    model, _ = load_model(tmp_path)
    assert {parameter.dtype for parameter in model.parameters()} == {stored}
    assert torch.equal(logits(model), logits(by_transformers(tmp_path, stored)))


@pytest.mark.parametrize("dtype", ["float32", "f32", torch.float32, "bfloat16"])
def test_another_dtype_on_request(tmp_path: Path, dtype: Any) -> None:
    tiny.build("llama", tmp_path, dtype=torch.float16)
    model, _ = load_model(tmp_path, dtype=dtype)
    wanted = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    assert {parameter.dtype for parameter in model.parameters()} == {wanted}
    assert torch.equal(logits(model), logits(by_transformers(tmp_path, wanted)))


def test_an_unknown_dtype(tiny_folder: Callable[[str], Path]) -> None:
    with pytest.raises(ValueError, match="choose one of float32"):
        load_model(tiny_folder("llama"), dtype="int4")


def test_an_encoder_loads_as_the_class_its_config_names(tmp_path: Path) -> None:
    config = transformers.BertConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48
    )
    for cls in (transformers.BertModel, transformers.BertForMaskedLM):
        folder = tmp_path / cls.__name__
        with tiny.quiet():
            expected = cls(config).eval()
            expected.save_pretrained(folder)
        spqfmt.pack(folder, folder / "m.spq")
        model, tokenizer = load_model(folder / "m.spq")
        assert type(model) is cls
        assert tokenizer is None
        inputs = torch.arange(10)[None]
        assert torch.equal(model(inputs)[0], expected(inputs)[0])


@pytest.mark.parametrize("options", [{}, {"packed": True}])
def test_a_config_that_says_nothing_of_tied_weights(tmp_path: Path, options: dict[str, Any]) -> None:
    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    config = transformers.CLIPConfig(
        text_config=size | {"vocab_size": 64, "eos_token_id": 2, "bos_token_id": 1},
        vision_config=size | {"image_size": 32, "patch_size": 16},
        projection_dim=16,
    )
    assert not hasattr(config.get_text_config(), "tie_word_embeddings")
    with tiny.quiet():
        expected = transformers.CLIPModel(config).eval()
        expected.save_pretrained(tmp_path)
    spqfmt.pack(tmp_path, tmp_path / "m.spq")
    model, _ = load_model(tmp_path / "m.spq", **options)
    inputs = {"input_ids": torch.arange(10)[None], "pixel_values": torch.ones(1, 3, 32, 32)}
    with torch.inference_mode():
        result, wanted = model(**inputs).logits_per_image, expected(**inputs).logits_per_image
    assert torch.allclose(result, wanted, rtol=1e-5)


def test_merged_experts_are_the_only_copies(tiny_folder: Callable[[str], Path]) -> None:
    model, _ = load_model(tiny_folder("mixtral"))
    expected = by_transformers(tiny_folder("mixtral"))
    assert {n: p.shape for n, p in model.named_parameters()} == {
        n: p.shape for n, p in expected.named_parameters()
    }


@pytest.fixture
def llama(tmp_path: Path, tiny_folder: Callable[[str], Path]) -> Path:
    """A copy that a test may break."""
    return Path(shutil.copytree(tiny_folder("llama"), tmp_path / "llama"))


def change(folder: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")


def configure(folder: Path, **values: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def refuse(folder: Path, error: type[SpqError], message: str) -> None:
    """`folder`, packed, is refused; unpacked as well, as a fault of the source."""
    packed = folder.parent / "m.spq"
    spqfmt.pack(folder, packed)
    with pytest.raises(error, match=re.escape(message)) as caught:
        load_model(packed)
    assert str(packed) in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(ImporterError if error is CorruptError else error, match=re.escape(message)):
        load_model(folder)


def test_a_missing_tensor_is_named(llama: Path) -> None:
    change(llama, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    refuse(llama, CorruptError, "needs tensors that are not in it: model.layers.1.mlp.up_proj.weight")


def test_many_missing_tensors_are_counted(llama: Path) -> None:
    change(llama, lambda tensors: [tensors.pop(name) for name in list(tensors) if "layers.1." in name])
    refuse(llama, CorruptError, "and 6 more")


UNUSED = {
    "a head that the class lacks": {"mtp.fc.weight": torch.ones(8, 8)},
    "more layers than the config has": {"model.layers.7.mlp.up_proj.weight": torch.ones(128, 64)},
    "an old buffer": {"model.layers.0.attn.masked_bias": torch.tensor(-1e4), "empty": torch.zeros(0)},
}


@pytest.mark.parametrize("memory", [None, "100MiB"])
@pytest.mark.parametrize("extra", UNUSED)
def test_tensors_without_a_place_are_named_and_left_out(llama: Path, extra: str, memory: str | None) -> None:
    expected = logits(by_transformers(llama))
    change(llama, lambda tensors: tensors.update(UNUSED[extra]))
    packed = llama.parent / "m.spq"
    spqfmt.pack(llama, packed)
    for path in (packed, llama) if memory is None else (packed,):
        with pytest.warns(UnusedTensorsWarning, match=re.escape(f"{path}: not used, LlamaForC")) as caught:
            model, _ = load_model(path, memory=memory)
        assert [all(name in str(w.message) for name in UNUSED[extra]) for w in caught] == [True]
        assert torch.equal(logits(model), expected)
    spqfmt.unpack(packed, llama.parent / "out")
    found = load_file(llama.parent / "out" / "model.safetensors")
    assert all(torch.equal(found[name], value) for name, value in UNUSED[extra].items())


def test_what_the_class_says_may_be_left_over_is_not_named(llama: Path) -> None:
    change(
        llama, lambda tensors: tensors.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    )
    load_model(llama)  # a warning would be an error
    assert unmatched(open_source(llama)) == ((), ())


def test_unused_tensors_are_known_before_a_load(llama: Path) -> None:
    change(llama, lambda tensors: [tensors.update(extra) for extra in UNUSED.values()])
    named = [name for extra in UNUSED.values() for name in extra]
    assert sorted(unmatched(open_source(llama)).unused) == sorted(named)
    assert unmatched(open_source(llama)).missing == ()


@pytest.mark.parametrize("name", sorted(tiny.configurations()))
def test_a_whole_model_lacks_nothing_and_has_no_unused_tensors(
    tiny_folder: Callable[[str], Path], name: str
) -> None:
    assert unmatched(open_source(tiny_folder(name))) == ((), ())


def test_a_wrong_shape_is_named(llama: Path) -> None:
    change(llama, lambda tensors: tensors.update({"model.norm.weight": torch.zeros(65)}))
    refuse(llama, CorruptError, "tensor model.norm.weight has shape (65,), LlamaForCausalLM wants (64,)")


def test_a_missing_head_of_an_untied_model(llama: Path) -> None:
    change(llama, lambda tensors: tensors.pop("lm_head.weight"))
    refuse(llama, CorruptError, "needs tensors that are not in it: lm_head.weight")


def test_an_unknown_model_type(llama: Path) -> None:
    configure(llama, model_type="brand_new")
    refuse(llama, UnsupportedError, "transformers cannot use its config.json")


def test_a_class_that_the_library_lacks_or_lacks_a_library_for() -> None:
    class Config:
        model_type, architectures = "odd", ("HiggsAudioV2TokenizerModel",)

    if hasattr(transformers.HiggsAudioV2TokenizerModel, "_backends"):
        with pytest.raises(UnsupportedError, match=r"m\.spq: HiggsAudioV2TokenizerModel needs .*torchaudio"):
            find_model_class(Config(), Path("m.spq"))
    config = transformers.VoxtralRealtimeTextConfig()
    with pytest.raises(UnsupportedError, match=r"m\.spq: transformers has no model of type"):
        find_model_class(config, Path("m.spq"))


def test_code_of_the_model_is_never_run(llama: Path) -> None:
    (llama / "modeling_evil.py").write_text("raise SystemExit('ran')")
    configure(
        llama, model_type="evil", auto_map={"AutoConfig": "modeling_evil.X", "AutoModel": "modeling_evil.Y"}
    )
    refuse(llama, UnsupportedError, "transformers cannot use its config.json")


def test_weights_of_another_quantization_format(llama: Path) -> None:
    configure(llama, quantization_config={"quant_method": "gptq", "bits": 4})
    refuse(llama, UnsupportedError, "quantized by another format (gptq)")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"hidden_act": "zork"}, "cannot build the LlamaForCausalLM of its config.json: unknown 'zork'"),
        ({"rope_parameters": {"rope_type": "zork"}}, "cannot build the LlamaForCausalLM of its config.json"),
        ({"pad_token_id": 9999}, "Padding_idx must be within num_embeddings"),
        ({"num_hidden_layers": "two"}, "cannot use its config.json: Validation error"),
        ({"num_attention_heads": 3}, "cannot use its config.json: Class validation error"),
        ({"dtype": "zork"}, "cannot use its config.json: module 'torch' has no attribute 'zork'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("packed", [None, True])
def test_a_config_that_transformers_cannot_build(
    tiny_folder: Callable[[str], Path],
    tmp_path: Path,
    values: dict[str, object],
    words: str,
    packed: bool | None,
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder("llama"), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))
    spqfmt.pack(folder, tmp_path / "m.spq")
    with pytest.raises(UnsupportedError, match=re.escape(words)) as caught:
        load_model(tmp_path / "m.spq", packed=packed)
    assert str(tmp_path / "m.spq") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(importlib.util.find_spec("natten") is not None, reason="natten is installed")
@pytest.mark.parametrize("packed", [None, True])
def test_a_class_that_needs_a_library_which_is_not_installed(tmp_path: Path, packed: bool | None) -> None:
    transformers.DinatConfig(architectures=["DinatModel"]).save_pretrained(tmp_path)
    save_file({"a.weight": torch.ones(2, 2)}, tmp_path / "model.safetensors")
    spqfmt.pack(tmp_path, tmp_path / "m.spq")
    with pytest.raises(
        UnsupportedError, match=r"m\.spq: .* requires the natten library .*; install it$"
    ) as caught:
        load_model(tmp_path / "m.spq", packed=packed)
    assert "\n" not in str(caught.value)


def test_architectures_that_are_no_names(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder("llama"), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"architectures": [3, "AutoModel", "PreTrainedModel"]})
    )
    assert type(load_model(folder)[0]) is transformers.LlamaForCausalLM
    # Made of the bare base class, a model would change what transformers thinks that all others can do.
    assert "_can_set_experts_implementation_cached_value" not in vars(transformers.PreTrainedModel)


@pytest.mark.parametrize("device", ["tpu", "cpu:x", "cuda:-1"])
def test_a_device_that_there_is_not(tiny_folder: Callable[[str], Path], device: str) -> None:
    with pytest.raises(OptionError, match=f"device '{device}'"):
        load_model(tiny_folder("llama"), device=device)


def test_a_broken_tokenizer(llama: Path) -> None:
    (llama / "tokenizer.json").write_text('{"model": {"type": "?"}}')
    refuse(llama, UnsupportedError, "transformers cannot use its tokenizer")


def test_a_model_without_config(tmp_path: Path, llama: Path) -> None:
    spqfmt.pack(llama, tmp_path / "m.spq")
    with spqfmt.open(tmp_path / "m.spq") as file:
        assert "config.json" in file.assets
    (llama / "config.json").unlink()
    with pytest.raises(ImporterError, match=r"no config\.json"):
        load_model(llama)


def test_damage_is_reported_as_it_is(tmp_path: Path, llama: Path) -> None:
    packed = tmp_path / "m.spq"
    spqfmt.pack(llama, packed)
    data = bytearray(packed.read_bytes())
    data[len(data) // 3] ^= 1
    packed.write_bytes(data)
    with pytest.raises(ChecksumError):
        load_model(packed)


def test_damage_inside_merged_experts_is_reported_too(
    tmp_path: Path, tiny_folder: Callable[[str], Path]
) -> None:
    packed = tmp_path / "m.spq"
    spqfmt.pack(tiny_folder("mixtral"), packed)
    data = bytearray(packed.read_bytes())
    data[len(data) // 2] ^= 1
    packed.write_bytes(data)
    with pytest.raises(ChecksumError):
        load_model(packed)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_model(tmp_path / "none.spq")
    with pytest.raises(ImporterError, match="no such file or folder"):
        load_model(tmp_path / "none")


def test_transformers_speaks_as_before_after_a_load(tiny_folder: Callable[[str], Path]) -> None:
    before = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    load_model(tiny_folder("llama"))
    assert (transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()) == before


def test_a_model_without_tokenizer(llama: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (llama / name).unlink()
    _, tokenizer = load_model(llama)
    with pytest.raises(SpqError, match="no tokenizer in it"):
        need_tokenizer(llama, tokenizer)


@pytest.mark.parametrize("dtype", ["float4_e2m1fn_x2", "float8_e8m0fnu", "float8_e5m2fnuz", "complex64"])
def test_small_floats_load_as_their_numbers_and_complex_ones_are_refused(tmp_path: Path, dtype: str) -> None:
    tiny.build("llama", tmp_path / "source")
    file, name = tmp_path / "source" / "model.safetensors", "model.norm.weight"
    tensors = load_file(file)
    n = tensors[name].numel()
    kind = getattr(torch, dtype)
    value = (
        torch.full((n,), 2.0).to(kind)
        if "x2" not in dtype
        else torch.full((n // 2,), 0x44, dtype=torch.uint8)
    )
    save_file(tensors | {name: value.view(kind)}, file)
    spqfmt.pack(tmp_path / "source", tmp_path / "m.spq")
    for path in (tmp_path / "source", tmp_path / "m.spq"):
        if dtype == "complex64":
            with pytest.raises(UnsupportedError, match=f"{path}: tensor '{name}' is of complex numbers"):
                load_model(path)
        else:
            model, _ = load_model(path)
            assert torch.equal(model.state_dict()[name], torch.full((n,), 2.0))
    spqfmt.unpack(tmp_path / "m.spq", tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").stat().st_size > n
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as opened:
        assert opened.get_slice(name).get_shape() == [n]
