"""Folders written, and read back by the libraries they are written for."""

import dataclasses
import json
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import transformers
from safetensors import safe_open

from spqfmt.errors import EncodeError
from spqfmt.exporters import export_huggingface
from spqfmt.importers import SourceTensor, open_source


def source(name: str, value: torch.Tensor, dtype: str, tied_to: str | None = None) -> SourceTensor:
    return SourceTensor(name, tuple(value.shape), dtype, "head", "other", False, tied_to, lambda: value)


def export(folder: Path, out: Path, **options: int) -> None:
    model = open_source(folder)
    export_huggingface(out, model.tensors, {asset.name: asset.data for asset in model.assets}, **options)


@pytest.mark.parametrize("name", sorted(tiny.configurations()))
@pytest.mark.parametrize("max_shard_bytes", [10**9, 100_000])
def test_transformers_loads_what_was_written(
    tmp_path: Path, tiny_folder: Callable[[str], Path], name: str, max_shard_bytes: int
) -> None:
    out = tmp_path / "out"
    export(tiny_folder(name), out, max_shard_bytes=max_shard_bytes)
    with tiny.quiet():
        expected = transformers.AutoModelForCausalLM.from_pretrained(tiny_folder(name)).state_dict()
        found = transformers.AutoModelForCausalLM.from_pretrained(out).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert (out / "model.safetensors").exists() == (max_shard_bytes == 10**9)
    for shard in out.glob("*.safetensors"):
        assert shard.stat().st_size < max_shard_bytes + 10_000
    assert (out / "tokenizer.json").read_bytes() == (tiny_folder(name) / "tokenizer.json").read_bytes()


def test_every_dtype_and_shape(tmp_path: Path) -> None:
    values = {
        "f64": torch.randn(3, 2, dtype=torch.float64),
        "bf16": torch.randn(5).bfloat16(),
        "f8_e4m3": torch.randn(4, 4).to(torch.float8_e4m3fn),
        "i32": torch.tensor(7, dtype=torch.int32),
        "bool": torch.tensor([True, False, True]),
        "i8": torch.zeros(0, 4, dtype=torch.int8),
        "f16": torch.randn(4, 6).half().t(),  # not contiguous
    }
    export_huggingface(tmp_path / "out", [source(k, v, k) for k, v in values.items()], {})
    with safe_open(tmp_path / "out" / "model.safetensors", framework="pt") as handle:
        assert set(handle.keys()) == set(values)
        for name, value in values.items():
            found = handle.get_tensor(name)
            assert (found.dtype, found.shape) == (value.dtype, value.shape)
            assert torch.equal(
                found.reshape(-1).view(torch.uint8), value.contiguous().reshape(-1).view(torch.uint8)
            )


def test_a_name_that_safetensors_keeps_for_itself_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EncodeError, match="tensor '__metadata__': safetensors keeps this name for itself"):
        export_huggingface(tmp_path / "out", [source("__metadata__", torch.zeros(2), "f32")], {})
    assert list(tmp_path.iterdir()) == []


def test_a_header_stays_below_what_the_library_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spqfmt.exporters.huggingface._MAX_HEADER_BYTES", 1000)
    tensors = [source(f"t{i}", torch.full((10,), float(i)), "f32") for i in range(9)]
    export_huggingface(tmp_path / "out", tensors, {})
    sizes = [
        int.from_bytes(file.read_bytes()[:8], "little") for file in (tmp_path / "out").glob("*.safetensors")
    ]
    assert len(sizes) == 3
    assert max(sizes) < 1000
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == {f"t{i}" for i in range(9)}


def test_the_index_lists_every_tensor(tmp_path: Path) -> None:
    tensors = [source(f"t{i}", torch.full((10,), float(i)), "f32") for i in range(5)]
    export_huggingface(tmp_path / "out", tensors, {}, max_shard_bytes=80)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 200
    assert index["weight_map"] == {
        "t0": "model-00001-of-00003.safetensors",
        "t1": "model-00001-of-00003.safetensors",
        "t2": "model-00002-of-00003.safetensors",
        "t3": "model-00002-of-00003.safetensors",
        "t4": "model-00003-of-00003.safetensors",
    }


def test_tied_tensors_are_left_out(tmp_path: Path) -> None:
    value = torch.zeros(2)
    export_huggingface(
        tmp_path / "out", [source("a", value, "f32"), source("b", value, "f32", tied_to="a")], {}
    )
    with safe_open(tmp_path / "out" / "model.safetensors", framework="pt") as handle:
        assert list(handle.keys()) == ["a"]


def test_one_tensor_at_a_time(tmp_path: Path) -> None:
    made: list[weakref.ref[np.ndarray]] = []
    alive: list[int] = []

    def load() -> torch.Tensor:
        alive.append(sum(reference() is not None for reference in made))
        array = np.zeros(1000, np.float32)
        made.append(weakref.ref(array))  # the tensor's storage keeps the array
        return torch.from_numpy(array)

    tensors = [dataclasses.replace(source(f"t{i}", torch.zeros(1000), "f32"), load=load) for i in range(4)]
    export_huggingface(tmp_path / "out", tensors, {})
    assert alive == [0, 0, 0, 0]


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    def fail() -> torch.Tensor:
        raise OSError("disk on fire")

    good = source("a", torch.zeros(2), "f32")
    with pytest.raises(OSError, match="disk on fire"):
        export_huggingface(tmp_path / "out", [good, dataclasses.replace(good, name="b", load=fail)], {})
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    with pytest.raises(FileExistsError, match="not an empty folder"):
        export_huggingface(out, [], {})
    assert (out / "mine.txt").read_text() == "keep"


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    export_huggingface(tmp_path / "out", [source("a", torch.zeros(2), "f32")], {"config.json": b"{}"})
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize(
    "name",
    [
        "../evil",
        "/evil",
        "a/../../evil",
        "",
        "model.safetensors",
        "a\\b",
        "pytorch_model.bin",
        "x.pkl",
        ".git/config",
        "model.PT",
        "model.safetensors.index.json",
        "adapter_config.json",
    ],
)
def test_asset_names_stay_inside(tmp_path: Path, name: str) -> None:
    with pytest.raises(EncodeError):
        export_huggingface(tmp_path / "out", [], {name: b"x"})
    assert list(tmp_path.iterdir()) == []


def test_a_tensor_that_is_not_what_it_says(tmp_path: Path) -> None:
    with pytest.raises(EncodeError, match=r"tensor a came as torch.float32 \(2,\), not f16 \(2,\)"):
        export_huggingface(tmp_path / "out", [source("a", torch.zeros(2), "f16")], {})
