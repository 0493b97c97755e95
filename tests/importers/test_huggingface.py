"""Hugging Face folders, good and bad."""

import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from spqfmt.errors import ImporterError
from spqfmt.importers import SourceModel, open_source

DTYPES = {
    "f64": torch.float64,
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "f8_e4m3": torch.float8_e4m3fn,
    "f8_e5m2": torch.float8_e5m2,
    "i64": torch.int64,
    "i32": torch.int32,
    "i16": torch.int16,
    "i8": torch.int8,
    "u64": torch.uint64,
    "u32": torch.uint32,
    "u16": torch.uint16,
    "u8": torch.uint8,
    "bool": torch.bool,
}


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def write_folder(folder: Path, tensors: dict[str, torch.Tensor], **config: object) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], **config}))
    return folder


def by_name(model: SourceModel) -> dict[str, torch.Tensor]:
    return {tensor.name: tensor.load() for tensor in model.tensors}


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_comes_with_its_exact_bits(tmp_path: Path, dtype: str) -> None:
    size = DTYPES[dtype].itemsize
    raw = (
        torch.arange(48 * size, dtype=torch.int64)
        .mul(37)
        .remainder(2 if dtype == "bool" else 256)
        .to(torch.uint8)
    )
    value = raw.view(DTYPES[dtype]).reshape(6, 8)
    tensor = open_source(write_folder(tmp_path, {"x.weight": value})).tensors[0]
    assert (tensor.dtype, tensor.shape) == (dtype, (6, 8))
    loaded = tensor.load()
    assert loaded.dtype == DTYPES[dtype]
    assert bits(loaded) == bits(value)


def test_nan_payloads_and_negative_zeros_survive(tmp_path: Path) -> None:
    patterns = torch.tensor([0x7FC1, 0xFF81, 0x8000, 0x7F80, 0x0001], dtype=torch.uint16).view(torch.bfloat16)
    loaded = open_source(write_folder(tmp_path, {"x": patterns})).tensors[0].load()
    assert bits(loaded) == bits(patterns)


@pytest.mark.parametrize("name", sorted(tiny.configurations()))
def test_all_tensors_of_a_model_in_order(tiny_folder: Callable[[str], Path], name: str) -> None:
    folder = tiny_folder(name)
    model = open_source(folder)
    stored = load_file(folder / "model.safetensors")
    loaded = {tensor.name: tensor.load() for tensor in model.tensors if tensor.tied_to is None}
    assert loaded.keys() == stored.keys()
    assert all(bits(loaded[name]) == bits(stored[name]) for name in stored)
    segments = [tensor.segment for tensor in model.tensors]
    runs = [segment for i, segment in enumerate(segments) if i == 0 or segments[i - 1] != segment]
    assert len(runs) == len(set(runs)), "every segment must be one run"
    assert (runs[0], runs[-1]) == ("embed", "head")
    assert model.tensors[-1].role == "head"
    assert {asset.name for asset in model.assets} >= {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
    }


def test_only_gpt2_projections_are_transposed(tiny_folder: Callable[[str], Path]) -> None:
    for name in tiny.configurations():
        linear = {
            tensor.transposed for tensor in open_source(tiny_folder(name)).tensors if tensor.role == "linear"
        }
        assert linear == {name == "gpt2"}, name


def test_shards_give_the_same_tensors_as_one_file(tmp_path: Path, tiny_folder: Callable[[str], Path]) -> None:
    tiny.build("llama", tmp_path, shard="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    sharded, single = open_source(tmp_path), open_source(tiny_folder("llama"))
    assert [t.name for t in sharded.tensors] == [t.name for t in single.tensors]
    expected = by_name(single)
    assert all(bits(value) == bits(expected[name]) for name, value in by_name(sharded).items())
    assert "model.safetensors.index.json" not in {asset.name for asset in sharded.assets}


def test_complete_shards_do_without_their_index(tmp_path: Path) -> None:
    tiny.build("llama", tmp_path, shard="100KB")
    (tmp_path / "model.safetensors.index.json").unlink()
    assert len(open_source(tmp_path).tensors) == 21


def test_a_missing_head_is_tied_to_the_embedding(tiny_folder: Callable[[str], Path]) -> None:
    *_, head = open_source(tiny_folder("llama_tied")).tensors
    assert (head.name, head.tied_to, head.role) == ("lm_head.weight", "model.embed_tokens.weight", "head")
    assert head.load().shape == head.shape == (264, 64)


def test_an_untied_head_is_a_tensor_of_its_own(tiny_folder: Callable[[str], Path]) -> None:
    *_, head = open_source(tiny_folder("llama")).tensors
    assert (head.name, head.tied_to) == ("lm_head.weight", None)


@pytest.mark.parametrize(
    ("flag", "same", "tied"),
    [(True, True, True), (True, False, False), (False, True, False), (None, True, False)],
)
def test_a_stored_copy_is_tied_when_config_and_bits_agree(
    tmp_path: Path, flag: bool | None, same: bool, tied: bool
) -> None:
    embedding = torch.randn(5000, 4)  # more rows than are compared at once
    head = embedding.clone()
    head[-1, -1] += 0 if same else 1
    config = {} if flag is None else {"tie_word_embeddings": flag}
    folder = write_folder(
        tmp_path, {"model.embed_tokens.weight": embedding, "lm_head.weight": head}, **config
    )
    found = {tensor.name: tensor.tied_to for tensor in open_source(folder).tensors}
    assert found["lm_head.weight"] == ("model.embed_tokens.weight" if tied else None)


def refuse(path: Path, message: str) -> None:
    with pytest.raises(ImporterError, match=re.escape(message)) as caught:
        open_source(path)
    assert "\n" not in str(caught.value)


def test_a_missing_path(tmp_path: Path) -> None:
    refuse(tmp_path / "nothing", f"{tmp_path / 'nothing'}: no such file or folder")


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    refuse(
        tmp_path / "notes.txt",
        "not a model that can be imported; give a model's folder, or a .safetensors, .gguf or .pt file",
    )


def test_a_folder_without_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    refuse(tmp_path, "no .safetensors files in this folder")


def test_a_folder_with_pickled_weights_only(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "ran",))

    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    refuse(
        tmp_path,
        f"{tmp_path / 'pytorch_model.bin'}: it holds more than tensors, which torch's safe loader refuses",
    )
    assert not (tmp_path / "ran").exists()


def test_a_folder_of_gguf_files(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    refuse(tmp_path, f"give the file, such as {tmp_path / 'm.gguf'}")


def test_no_config(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, {"x": torch.zeros(1)})
    (folder / "config.json").unlink()
    assert [tensor.name for tensor in open_source(folder).tensors] == ["x"]


@pytest.mark.parametrize("text", ["{", "[]", "\xff"])
def test_a_broken_config(tmp_path: Path, text: str) -> None:
    folder = write_folder(tmp_path, {"x": torch.zeros(1)})
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    refuse(folder, f"{folder / 'config.json'}: not")


@pytest.mark.parametrize("damage", ["cut header", "cut data", "huge header", "empty"])
def test_a_broken_safetensors_file(tmp_path: Path, damage: str) -> None:
    folder = write_folder(tmp_path, {"x": torch.zeros(100)})
    file = folder / "model.safetensors"
    data = file.read_bytes()
    broken = {
        "cut header": data[:20],
        "cut data": data[:-1],
        "huge header": b"\xff" * 8 + data[8:],
        "empty": b"",
    }
    file.write_bytes(broken[damage])
    refuse(folder, f"{file}: broken safetensors file")


def test_a_dtype_that_cannot_be_held(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, {"x": torch.zeros(3)})
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes().replace(b"F32", b"F99"))
    refuse(folder, "tensor x has dtype F99, which .spq cannot hold")


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    tiny.build("llama", tmp_path, shard="100KB")
    return tmp_path


def test_a_missing_shard(sharded: Path) -> None:
    victim = sorted(sharded.glob("*.safetensors"))[1]
    victim.unlink()
    refuse(sharded, f"{victim}: this shard is named in the index but missing")


def test_a_missing_shard_without_an_index(sharded: Path) -> None:
    victim = sorted(sharded.glob("*.safetensors"))[1]
    victim.unlink()
    (sharded / "model.safetensors.index.json").unlink()
    refuse(sharded, f"{victim}: this shard is missing")


def test_a_tensor_that_the_index_promises_is_missing(sharded: Path) -> None:
    index = sharded / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["model.ghost"] = next(iter(content["weight_map"].values()))
    index.write_text(json.dumps(content))
    refuse(sharded, "tensor model.ghost is named in the index but missing")


def test_an_index_must_not_leave_the_folder(sharded: Path) -> None:
    outside = sharded / "sub"
    outside.mkdir()
    index = sharded / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["model.norm.weight"] = "../model.safetensors"
    index.write_text(json.dumps(content))
    refuse(sharded, "which is no file in this folder")


@pytest.mark.parametrize("text", ["{", "{}", '{"weight_map": 3}'])
def test_a_broken_index(sharded: Path, text: str) -> None:
    index = sharded / "model.safetensors.index.json"
    index.write_text(text)
    refuse(sharded, f"{index}: no valid weight_map")


def test_a_tensor_in_two_shards(sharded: Path) -> None:
    first, second, *_ = sorted(sharded.glob("*.safetensors"))
    shutil.copy(first, second)
    refuse(sharded, f"is also in {first.name}")


def test_unrelated_weight_files(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, {"x": torch.zeros(1)})
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    shutil.copy(folder / "a.safetensors", folder / "b.safetensors")
    refuse(folder, "several .safetensors files and no model.safetensors.index.json")


def test_weights_that_vanish_after_opening_are_an_error_that_names_them(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, {"x": torch.zeros(100)})
    tensor = open_source(folder).tensors[0]
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(ImporterError, match="changed while tensor x was read"):
        tensor.load()
