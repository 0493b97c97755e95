"""What torch saved and no .spq file can hold, and damaged files, are refused in a line that is true."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

import spqfmt
from spqfmt.errors import ImporterError, SpqError


def refusal(path: Path) -> str:
    with pytest.raises(ImporterError) as caught:
        spqfmt.pack(path, path.with_suffix(".spq"))
    assert "\n" not in str(caught.value)
    assert not path.with_suffix(".spq").exists()
    return str(caught.value)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["csr", "coo", "quantized", "nested"])
def test_tensors_that_are_not_plain(tmp_path: Path, capfd: pytest.CaptureFixture[str], kind: str) -> None:
    plain = torch.eye(4)
    value = {
        "csr": plain.to_sparse_csr,
        "coo": plain.to_sparse,
        "quantized": lambda: torch.quantize_per_tensor(plain, 0.1, 0, torch.qint8),
        "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    }[kind]()
    torch.save({"a": plain, "b": value}, tmp_path / "m.pt")
    capfd.readouterr()
    assert "cannot hold" in refusal(tmp_path / "m.pt") or "cannot be held" in refusal(tmp_path / "m.pt")
    assert "Traceback" not in capfd.readouterr().err


def test_lists_within_themselves(tmp_path: Path) -> None:
    values: list[Any] = [torch.ones(2)]
    values.append(values)
    torch.save(values, tmp_path / "m.pt")
    assert "within themselves" in refusal(tmp_path / "m.pt")


def test_names_that_are_no_text(tmp_path: Path) -> None:
    torch.save({"a\ud800": torch.ones(2)}, tmp_path / "m.pt")
    assert "half of a surrogate pair" in refusal(tmp_path / "m.pt")


def test_dimensions_past_counting(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "U8", "shape": [0, 2**60, 2**60], "data_offsets": [0, 0]}}).encode()
    (tmp_path / "m.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    assert "tensor 'a' has dimensions that no machine" in refusal(tmp_path / "m.safetensors")


@pytest.mark.parametrize("is_zip", [True, False])
def test_damage_anywhere_is_named(tmp_path: Path, is_zip: bool) -> None:
    path = tmp_path / "m.pt"
    torch.save({"a": torch.ones(20, 3), "b": [torch.zeros(4)]}, path, _use_new_zipfile_serialization=is_zip)
    whole = path.read_bytes()
    refused = 0
    for seed in range(150):
        chance = random.Random(seed)
        data = bytearray(whole)
        for _ in range(chance.choice((1, 3))):
            data[chance.randrange(len(data))] = chance.randrange(256)
        path.write_bytes(data)
        try:
            spqfmt.pack(path, tmp_path / "m.spq", force=True)
        except SpqError as error:
            refused += 1
            assert str(path) in str(error)  # noqa: PT017 - any of the package's own errors will do
    assert refused > 10
