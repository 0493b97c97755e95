"""Unpacked folders hold every tensor of the file, bit for bit, and safetensors reads them."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import spqfmt
from spqfmt.kernels.torch_arrays import TORCH_DTYPES, to_numpy
from spqfmt.schemes.dense import DTYPES

VECTORS = Path(__file__).resolve().parents[2] / "spec" / "vectors" / "valid"


def bits(tensor: torch.Tensor) -> tuple[torch.dtype, torch.Size, bytes]:
    return tensor.dtype, tensor.shape, to_numpy(tensor).tobytes()


def model_folder(
    folder: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None
) -> Path:
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata=metadata)
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    return folder


@pytest.mark.parametrize("shape", [(0,), (0, 4), (4, 0), (2, 0, 3), (), (1,), (3, 5)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_and_shape_comes_back(tmp_path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    n_bytes = torch.Size(shape).numel() * TORCH_DTYPES[dtype].itemsize
    pattern = torch.arange(n_bytes).mul(37).remainder(2 if dtype == "bool" else 256).to(torch.uint8)
    value = pattern.view(TORCH_DTYPES[dtype]).reshape(shape)
    source = model_folder(tmp_path / "source", {"odd": value, "plain": torch.ones(2, 2)})
    spqfmt.pack(source, tmp_path / "m.spq")
    spqfmt.verify(tmp_path / "m.spq")
    with spqfmt.open(tmp_path / "m.spq") as file:
        assert bits(file.read("odd")) == bits(value)
    spqfmt.unpack(tmp_path / "m.spq", tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found.keys() == {"odd", "plain"}
    assert bits(found["odd"]) == bits(value)


@pytest.mark.parametrize(
    "vector", sorted(path.stem for path in VECTORS.glob("*.spq") if "-of-" not in path.stem)
)
def test_every_valid_vector_becomes_a_folder(tmp_path: Path, vector: str) -> None:
    path = VECTORS / f"{vector}.spq"
    spqfmt.unpack(path, tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    with spqfmt.open(path) as file:
        assert found.keys() == {name for name in file if name not in file.tied}
        for name, value in found.items():
            assert bits(value) == bits(file.read(name)), name
