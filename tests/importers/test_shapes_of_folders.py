"""Folders and headers of less common shapes: what libraries open is packed and comes back, in every form of unpack."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import CHECKPOINTS, normal, weights, write_json
from safetensors.torch import load_file, safe_open, save_file

import spqfmt
from spqfmt.errors import ImporterError, UnsupportedError


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each file below, by its name in the folder."""
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in folder.rglob("*")
        if file.is_file()
    }


def index_of(names: dict[str, str]) -> dict[str, Any]:
    return {"metadata": {}, "weight_map": names}


def shards_below(folder: Path) -> Path:
    (folder / "weights").mkdir(parents=True)
    names = {name: f"weights/{k}.safetensors" for k, name in enumerate(weights())}
    for name, file in names.items():
        save_file({name: weights()[name]}, folder / file)
    write_json(folder / "model.safetensors.index.json", index_of(names))
    return folder


def index_of_another_name(folder: Path) -> Path:
    folder.mkdir()
    names = {name: f"consolidated-{k}.safetensors" for k, name in enumerate(weights())}
    for name, file in names.items():
        save_file({name: weights()[name]}, folder / file)
    write_json(folder / "consolidated.safetensors.index.json", index_of(names))
    return folder


def empty_tensors(folder: Path) -> Path:
    folder.mkdir()
    save_file(
        {"a": torch.empty(0, 4), "b": torch.empty(3, 0, dtype=torch.int8)}, folder / "model.safetensors"
    )
    return folder


def header(text: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        folder.mkdir()
        data = text.encode()
        (folder / "model.safetensors").write_bytes(len(data).to_bytes(8, "little") + data + b"ab")
        with safe_open(folder / "model.safetensors", "pt") as file:  # the library opens it
            assert file.get_tensor("a").tolist() == [97, 98]
        return folder

    return make


def many_files(folder: Path) -> Path:
    CHECKPOINTS["no config"](folder)
    for k in range(1100):
        (folder / f"f{k}.txt").write_text(str(k))
    return folder


def named_as_literals(folder: Path) -> Path:
    CHECKPOINTS["no config"](folder)
    (folder / "SOURCE.literals").write_text("mine")
    (folder / "source.literals.1").mkdir()
    (folder / "source.literals.1" / "x").write_text("mine too")
    return folder


def modules(folder: Path, paths: dict[str, str], name: str = "modules.json") -> None:
    write_json(folder / name, [{"idx": k, "path": p, "type": t} for k, (p, t) in enumerate(paths.items())])


def model_in_a_folder(folder: Path) -> Path:
    """A folder of sentence-transformers as its first versions saved it."""
    CHECKPOINTS["bert, a classifier"](folder / "0_Transformer")
    write_json(folder / "1_Pooling" / "config.json", {"pooling_mode_mean_tokens": True})
    modules(folder, {"0_Transformer": "Transformer", "1_Pooling": "Pooling"})
    return folder


def router(folder: Path) -> Path:
    for part in ("query_0_Transformer", "document_0_Transformer"):
        CHECKPOINTS["bert, a classifier"](folder / part)
    modules(folder, {"": "Router"})
    types = {"query_0_Transformer": "Transformer", "document_0_Transformer": "Transformer"}
    write_json(folder / "router_config.json", {"types": types, "structure": {}})
    return folder


def module_of_torch(folder: Path) -> Path:
    CHECKPOINTS["sentence-transformers"](folder)
    dense = folder / "2_Dense" / "model.safetensors"
    torch.save(load_file(dense), dense.with_name("pytorch_model.bin"))
    dense.unlink()
    return folder


def several_controlnets(folder: Path) -> Path:
    CHECKPOINTS["pipeline of diffusers"](folder)
    for part in ("controlnet", "controlnet_1"):
        write_json(folder / part / "config.json", {"_class_name": "ControlNetModel"})
        save_file({f"{part}.weight": normal(4, 4)}, folder / part / "diffusion_pytorch_model.safetensors")
    named = json.loads((folder / "model_index.json").read_text())
    named["controlnet"] = ["diffusers.pipelines.controlnet.multicontrolnet", "MultiControlNetModel"]
    write_json(folder / "model_index.json", named)
    return folder


ENTRY = '"dtype": "U8", "shape": [2], "data_offsets": [0, 2]'
SHAPES: dict[str, Callable[[Path], Path]] = {
    "shards in a folder below": shards_below,
    "an index of another name": index_of_another_name,
    "empty tensors alone": empty_tensors,
    "a key more in a header": header(f'{{"a": {{{ENTRY}, "x": 1}}}}'),
    "a tensor twice in a header": header(f'{{"a": {{{ENTRY.replace("U8", "BOOL")}}}, "a": {{{ENTRY}}}}}'),
    "metadata twice": header(f'{{"__metadata__": {{"f": "1", "f": "2"}}, "a": {{{ENTRY}}}}}'),
    "more files than assets": many_files,
    "files with the name of the literals": named_as_literals,
    "a model in a folder": model_in_a_folder,
    "a router": router,
    "a module of torch": module_of_torch,
    "several controlnets": several_controlnets,
}


@pytest.mark.parametrize("name", SHAPES)
def test_every_file_comes_back(tmp_path: Path, name: str) -> None:
    source = SHAPES[name](tmp_path / "source")
    report = spqfmt.pack(source, tmp_path / "m.spq")
    assert not report.left_out
    assert not report.not_given_back
    assert spqfmt.unpack(tmp_path / "m.spq", tmp_path / "out", with_code=True).identical
    assert digests(tmp_path / "out") == digests(source)


@pytest.mark.parametrize(
    "entry", ['"__metadata__": {}, "__metadata__": {}, "a": {%s}', '"a": {%s, "dtype": "U8"}']
)
def test_headers_that_the_library_refuses_are_refused(tmp_path: Path, entry: str) -> None:
    data = ("{" + entry % ENTRY + "}").encode()
    (tmp_path / "x.safetensors").write_bytes(len(data).to_bytes(8, "little") + data + b"ab")
    with pytest.raises(spqfmt.SpqError, match=r"broken safetensors file \(.* stands in its header twice\)"):
        spqfmt.pack(tmp_path / "x.safetensors", tmp_path / "m.spq")


def test_one_file_may_have_an_ending_in_capitals(tmp_path: Path) -> None:
    save_file({"a": torch.ones(3)}, tmp_path / "A.SAFETENSORS")
    spqfmt.pack(tmp_path / "A.SAFETENSORS", tmp_path / "m.spq")
    assert spqfmt.unpack(tmp_path / "m.spq", tmp_path / "out").written == ("A.SAFETENSORS",)


@pytest.mark.parametrize("options", [{}, {"as_": "dense"}], ids=["as it is", "dense"])
@pytest.mark.parametrize("made", [{}, {"method": "rtn", "bits": 8}], ids=["lossless", "rtn"])
@pytest.mark.parametrize("name", ["adapter", "adapter of torch"])
def test_an_adapter_stays_one(
    tmp_path: Path, name: str, made: dict[str, Any], options: dict[str, Any]
) -> None:
    """Its library finds its weights and its config in every case, and no model's."""
    source = CHECKPOINTS[name](tmp_path / "source")
    spqfmt.pack(source, tmp_path / "m.spq", **made)
    report = spqfmt.unpack(tmp_path / "m.spq", tmp_path / "out", **options)
    found = digests(tmp_path / "out")
    assert set(found) == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert found["adapter_config.json"] == digests(source)["adapter_config.json"]
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {name: value.shape for name, value in tensors.items()} == {
        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": (4, 32),
        "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight": (32, 4),
    }
    is_source = name == "adapter" and not made and not options
    assert report.identical == is_source
    assert set(report.made) == (set() if is_source else {"adapter_model.safetensors"})


def test_an_adapter_that_stays_packed_keeps_its_config(tmp_path: Path) -> None:
    source = CHECKPOINTS["adapter"](tmp_path / "source")
    spqfmt.pack(source, tmp_path / "m.spq")
    report = spqfmt.unpack(tmp_path / "m.spq", tmp_path / "out", keep_packed=True)
    assert set(digests(tmp_path / "out")) == {"README.md", "adapter_config.json", "m.spq"}
    assert report.made == {"m.spq": "kept packed"}


def test_the_config_of_an_adapter_beside_a_model_is_not_written_with_plain_weights(tmp_path: Path) -> None:
    """transformers would fetch what it names."""
    source = CHECKPOINTS["llama"](tmp_path / "source")
    write_json(source / "adapter_config.json", {"base_model_name_or_path": "owner/base"})
    spqfmt.pack(source, tmp_path / "m.spq")
    report = spqfmt.unpack(tmp_path / "m.spq", tmp_path / "out", as_="dense")
    assert not (tmp_path / "out" / "adapter_config.json").exists()
    assert "adapter_config.json" in report.left_out


@pytest.mark.parametrize("options", [{"as_": "dense"}, {}], ids=["dense", "of torch"])
def test_plain_weights_of_a_pipeline_lie_in_its_folders(tmp_path: Path, options: dict[str, Any]) -> None:
    name = "pipeline of diffusers" if options else "pipeline of torch files"
    source = CHECKPOINTS[name](tmp_path / "source")
    spqfmt.pack(source, tmp_path / "m.spq")
    report = spqfmt.unpack(tmp_path / "m.spq", tmp_path / "out", **options)
    made = {
        "text_encoder/model.safetensors",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    }
    assert set(report.made) == made
    assert {name for name in digests(tmp_path / "out") if name.endswith(".safetensors")} == made
    found = load_file(tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors")
    assert found["conv_in.weight"].equal(normal(8, 4, 3, 3))
    assert set(found) == {"conv_in.weight", "unet.bias"}
    replaced = {f"{part}/diffusion_pytorch_model.bin" for part in ("unet", "vae")}
    assert set(report.left_out) == (set() if options else replaced)


def test_each_of_several_models_of_a_part_is_read_by_name(tmp_path: Path) -> None:
    spqfmt.pack(several_controlnets(tmp_path / "source"), tmp_path / "m.spq")
    with spqfmt.open(tmp_path / "m.spq") as file:
        assert list(file.part("controlnet_1")) == ["controlnet_1.weight"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("adapter", "an adapter of owner/base, which is no model itself"),
        ("pipeline of diffusers", "several models, such as text_encoder; open"),
    ],
)
def test_what_is_no_single_model_says_so(tmp_path: Path, name: str, words: str) -> None:
    source = CHECKPOINTS[name](tmp_path / "source")
    spqfmt.pack(source, tmp_path / "m.spq")
    for path, kind in ((source, ImporterError), (tmp_path / "m.spq", UnsupportedError)):
        with pytest.raises(kind, match=words):
            spqfmt.load_model(path)
