"""Checkpoints of every shape packed and unpacked: SHA-256 of each file."""

import hashlib
from pathlib import Path

import pytest
import torch
from checkpoints import CHECKPOINTS, normal

import spqfmt
from spqfmt.errors import ImporterError
from spqfmt.packing.options import PackArguments


def digests(source: Path) -> dict[str, str]:
    """SHA-256 of each file by its name in a folder; of one file by its own."""
    folder = source if source.is_dir() else source.parent
    files = source.rglob("*") if source.is_dir() else [source]
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(files)
        if file.is_file()
    }


ASKED: PackArguments = {"method": "lossless"}
DAMAGED = {"gptq, its shapes at odds": ASKED, "bitsandbytes": ASKED, "mxfp4": ASKED}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_every_file_comes_back(tmp_path: Path, name: str) -> None:
    source = CHECKPOINTS[name](tmp_path / "source")
    path = tmp_path / "m.spq"
    # What contradicts itself is packed as it is where that is asked for.
    report = spqfmt.pack(source, path, **DAMAGED.get(name, {}))
    assert not report.left_out
    spqfmt.verify(path, content=True)
    report = spqfmt.unpack(path, tmp_path / "out", with_code=True)
    assert report.identical
    assert digests(tmp_path / "out") == digests(source)
    assert not report.left_out
    # What is no tensor's is not stored twice.
    with spqfmt.open(path) as file:
        assert "source.literals" not in file.assets


def test_an_adapter_names_its_base(tmp_path: Path) -> None:
    spqfmt.pack(CHECKPOINTS["adapter"](tmp_path / "source"), tmp_path / "m.spq")
    with spqfmt.open(tmp_path / "m.spq") as file:
        assert file.metadata["base_model"] == "owner/base"


def test_each_part_of_a_pipeline_is_read_by_name(tmp_path: Path) -> None:
    source = CHECKPOINTS["pipeline of diffusers"](tmp_path / "source")
    spqfmt.pack(source, tmp_path / "m.spq")
    with spqfmt.open(tmp_path / "m.spq") as file:
        assert {name.partition("/")[0] for name in file} == {"text_encoder", "unet", "vae"}
        assert file.read("unet/conv_in.weight").equal(normal(8, 4, 3, 3))
        assert "unet/config.json" in file.assets
        assert {name: handle.shape for name, handle in file.part("vae").items()} == {
            "conv_in.weight": (8, 4, 3, 3),
            "vae.bias": (8,),
        }
        with pytest.raises(KeyError):
            file.part("scheduler")


def test_what_torch_saves_is_read_as_torch_reads_it(tmp_path: Path) -> None:
    source = CHECKPOINTS["training state of torch"](tmp_path / "source")
    spqfmt.pack(source, tmp_path / "m.spq")
    state = torch.load(source, weights_only=True)
    expected = {f"model.{name}": value for name, value in state["model"].items()}
    expected |= {f"optimizer.{k}": value for k, value in enumerate(state["optimizer"])}
    with spqfmt.open(tmp_path / "m.spq") as file:
        assert set(file) == set(expected)
        assert all(torch.equal(file.read(name), value) for name, value in expected.items())
        assert file.tied == {"model.again": "model.a"}


def test_without_code_torch_files_become_safetensors_and_are_named(tmp_path: Path) -> None:
    source = CHECKPOINTS["pytorch_model.bin"](tmp_path / "source")
    spqfmt.pack(source, tmp_path / "m.spq")
    report = spqfmt.unpack(tmp_path / "m.spq", tmp_path / "out")
    assert not report.identical
    assert "--with-code" in report.left_out["pytorch_model.bin"]
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_a_file_of_an_older_torch_is_read_but_does_not_come_back(tmp_path: Path) -> None:
    torch.save({"x": normal(4, 4)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    spqfmt.pack(tmp_path / "old.pt", tmp_path / "m.spq")
    with spqfmt.open(tmp_path / "m.spq") as file:
        assert file.read("x").equal(normal(4, 4))
    report = spqfmt.unpack(tmp_path / "m.spq", tmp_path / "out")
    assert not report.identical


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"x": torch.zeros(1, 1, 1, 1, 1, 1, 1, 1, 2)}, "'x' has 9 dimensions, and .spq holds at most 8"),
        ({"y" * 1025: torch.zeros(2)}, "^tensor 'yyyyy.* has a name of 1025 bytes, and .spq holds 1 to 1024"),
        (
            {"n\0m": torch.zeros(2)},
            r"^tensor 'n\\x00m' has a name of 3 bytes, and .* without U\+0000; rename it",
        ),
        (
            {"n\ud800m": torch.zeros(2)},
            r"^tensor 'n\\ud800m' has a name with half of a surrogate pair; rename it",
        ),
    ],
)
def test_what_no_file_can_hold_is_refused_in_one_line(
    tmp_path: Path, tensors: dict[str, torch.Tensor], words: str
) -> None:
    torch.save(tensors, tmp_path / "x.pt")
    with pytest.raises(ImporterError, match=words) as refused:
        spqfmt.pack(tmp_path / "x.pt", tmp_path / "m.spq")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "m.spq").exists()
