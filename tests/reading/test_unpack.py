"""Unpacked folders hold every tensor of the file, bit for bit, and safetensors reads them."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors import deserialize
from safetensors.torch import load_file, save_file

import spqfmt
from spqfmt import wire
from spqfmt.container.reader import Reader
from spqfmt.errors import OptionError
from spqfmt.kernels.torch_arrays import TORCH_DTYPES, to_numpy
from spqfmt.reading.diff import diff_files
from spqfmt.safetensors_names import to_safetensors
from spqfmt.schemes.dense import DTYPES

SPEC = Path(__file__).resolve().parents[2] / "spec"
VECTORS = SPEC / "vectors" / "valid"
import reference_decoder  # noqa: E402


def bits(tensor: torch.Tensor) -> tuple[torch.dtype, torch.Size, bytes]:
    return tensor.dtype, tensor.shape, to_numpy(tensor).tobytes()


def model_folder(
    folder: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None
) -> Path:
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata=metadata)
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    return folder


def stored(file: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """What safetensors itself reads: dtype, shape and bytes by name."""
    found = deserialize(file.read_bytes())
    return {name: (entry["dtype"], tuple(entry["shape"]), bytes(entry["data"])) for name, entry in found}


@pytest.mark.parametrize("shape", [(0,), (0, 4), (4, 0), (2, 0, 3), (), (1,), (3, 5), (4, 6)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_and_shape_comes_back(tmp_path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    n_bytes, rest = divmod(math.prod(shape) * wire.DTYPES[dtype].bits, 8)
    if rest:
        pytest.skip("safetensors has whole bytes alone")
    values = bytes(37 * k % (2 if dtype == "bool" else 256) for k in range(n_bytes))
    entry = {"dtype": to_safetensors(dtype), "shape": shape, "data_offsets": [0, n_bytes]}
    plain = {"dtype": "F32", "shape": [2], "data_offsets": [n_bytes, n_bytes + 8]}
    header = json.dumps({"odd": entry, "plain": plain}).encode()
    source = model_folder(tmp_path / "source", {})
    file = source / "model.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + values + bytes(8))
    assert stored(file)["odd"] == (to_safetensors(dtype), shape, values)  # the library reads it too
    spqfmt.pack(source, tmp_path / "m.spq", no_identity=True)
    spqfmt.verify(tmp_path / "m.spq")
    new = {"c64": "complex"} | dict.fromkeys(set(wire.SMALL_FLOATS) - {"f8_e4m3", "f8_e5m2"}, "small_floats")
    with Reader(tmp_path / "m.spq") as reader:
        assert reader.trailer.required >> 13 == (
            1 << wire.REQUIRED_FEATURES[new[dtype]] - 13 if dtype in new else 0
        )
    with spqfmt.open(tmp_path / "m.spq") as opened:
        assert opened["odd"].read_bytes() == values
        if wire.DTYPES[dtype].bits >= 8:
            value = opened.read("odd")
            assert bits(value) == (TORCH_DTYPES[dtype], torch.Size(shape), values)
        if dtype == "c64":
            with pytest.raises(OptionError, match="complex"):
                opened.read("odd", dtype=torch.float32)
        else:
            assert opened.read("odd", dtype=torch.float32).shape == shape
    assert reference_decoder.decode((tmp_path / "m.spq").read_bytes()).tensors["odd"].data == values
    spqfmt.unpack(tmp_path / "m.spq", tmp_path / "out")
    found = stored(tmp_path / "out" / "model.safetensors")
    assert found == stored(file)
    spqfmt.repack(tmp_path / "m.spq", tmp_path / "again.spq", partial="every:2")
    assert diff_files(tmp_path / "m.spq", tmp_path / "again.spq", error=True).equal


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
