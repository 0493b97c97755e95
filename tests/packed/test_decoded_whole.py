"""Models in the forms of foreign quantizers, packed; and a layer that is decoded whole, with the reason in the plan."""

from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

import spqfmt
from spqfmt.cli.main import main
from spqfmt.codecs.chunks import CodecPolicy
from spqfmt.importers import open_source
from spqfmt.loaders import load_model
from spqfmt.loaders.plan import plan_model
from spqfmt.packing.options import PackOptions
from spqfmt.packing.pack import pack_model
from spqfmt.progress import Silent
from spqfmt.quantize.base import MethodOptions, Weight
from spqfmt.schemes.base import Encoded, Quantized, StreamData
from spqfmt.schemes.dense import Dense
from spqfmt.schemes.group_numbers import GroupValues
from spqfmt.schemes.grouped import Grouped

INPUTS = torch.tensor([[(i * 37 + 11) % 256 for i in range(24)]])


class ByColumns(Dense):
    """Floats stored column after column, which a writer may do."""

    def encode(self) -> Encoded:
        stored = np.ascontiguousarray(self.values.T)
        stream = StreamData("values", self.dtype, stored.reshape(-1), row_elements=stored.shape[1])
        return Encoded("dense", {"orientation": "columns"}, (stream,))


class Mixed:
    """Layers by turns: MXFP4, NF4, tiles, double quantization, FP8; one plain, one not packed."""

    name = "mixed"

    def check(self, options: MethodOptions) -> MethodOptions:
        return options

    def describe(self, weight: Weight, options: MethodOptions) -> str:
        return "mixed" if weight.role == "linear" else ""

    def quantize(self, weight: Weight, value: torch.Tensor, options: MethodOptions) -> Quantized:
        rng = np.random.default_rng(len(weight.name))
        rows, columns = weight.shape
        codes = rng.integers(0, 16, weight.shape).astype(np.uint8)
        groups = (rows, -(-columns // 32))
        scales = rng.uniform(0.01, 0.02, groups).astype(np.float32)
        kind = weight.name.split(".")[-2]
        if kind == "q_proj":
            exponents = GroupValues(rng.integers(118, 121, groups).astype(np.uint8), "f8_e8m0")
            return Grouped(codes, "f4_e2m1", 32, 4, exponents)
        if kind == "k_proj":
            levels = np.linspace(-1, 1, 16, dtype=np.float32)
            return Grouped(codes, "u4", 32, 4, GroupValues(scales, "f32"), levels=levels)
        if kind == "v_proj":
            return Grouped(codes, "u4", 32, 4, GroupValues(scales[: -(-rows // 8)], "f32"), group_rows=8)
        if kind == "o_proj":
            ones = np.ones(groups, np.float32)
            second = GroupValues(codes[:, : groups[1]], "u4", ones, minimums=ones / 8, steps_dtype="f32")
            return Grouped(codes, "u4", 32, 4, second, supergroup=(1, 1))
        if kind == "gate_proj":
            tiles = GroupValues(scales[: -(-rows // 8)], "f32")
            return Grouped(codes << 3, "f8_e4m3", 32, 4, tiles, group_rows=8)
        if kind == "down_proj":
            return ByColumns(value.float().numpy(), "f32")
        return Grouped(codes, "u4", 32, 4, GroupValues(scales, "f32"))


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    tiny.build("llama", tmp_path / "source")
    options = PackOptions(Mixed(), MethodOptions(), CodecPolicy(), None)
    out = tmp_path / "m.spq"
    pack_model(open_source(tmp_path / "source"), out, options, force=True, progress=Silent())
    spqfmt.verify(out)
    return out


REASONS = {"down_proj": "values by columns"}


@pytest.mark.parametrize("memory", [None, "1MiB"])
def test_they_compute_what_the_decoded_model_does(mixed: Path, memory: str | None) -> None:
    decoded, _ = load_model(mixed, packed=False)
    packed, _ = load_model(mixed, packed=True) if memory is None else load_model(mixed, memory=memory)
    with spqfmt.open(mixed) as file:
        weights = decoded.state_dict()
        for name in file:
            if name in weights:
                assert torch.equal(file.read(name), weights[name]), name
    with torch.no_grad():
        assert torch.allclose(packed(INPUTS).logits, decoded(INPUTS).logits, atol=1e-4, rtol=1e-4)
    kinds = {name.split(".")[-1]: type(module).__name__ for name, module in packed.named_modules()}
    packed_kinds = {kind for kind in kinds if kind.endswith("_proj") and kinds[kind] == "PackedLinear"}
    assert packed_kinds == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj"}
    assert kinds["down_proj"] == "Linear"


def test_the_plan_says_why(mixed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    planned = plan_model(mixed)
    assert {name.split(".")[-2]: why for name, why in planned.whole.items()} == REASONS
    assert planned.to_json()["decoded_whole"] == dict(planned.whole)
    with pytest.raises(SystemExit):
        main(["plan", str(mixed)])
    shown = capsys.readouterr().out
    for kind, why in REASONS.items():
        assert f"decoded whole, as products do not take {why}: model.layers.0.mlp.{kind}.weight and" in shown
