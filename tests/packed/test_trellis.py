"""Models whose layers are stored as path codes of a trellis: the logits of the decoded model, whatever holds them."""

from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from device_support import loaded_onto_device, logits_of

import spqfmt
from spqfmt.codecs.chunks import CodecPolicy
from spqfmt.importers import open_source
from spqfmt.kernels.trellis import HISTORY_ROWS, unfold
from spqfmt.loaders.plan import plan_model
from spqfmt.packing.options import PackOptions
from spqfmt.packing.pack import pack_model
from spqfmt.progress import Silent
from spqfmt.quantize.base import MethodOptions, Weight
from spqfmt.schemes.base import Quantized
from spqfmt.schemes.codes import Layout
from spqfmt.schemes.floats import Scale
from spqfmt.schemes.trellis import tiles_of
from spqfmt.schemes.uniform import Uniform

INPUTS = torch.tensor([[(i * 37 + 11) % 256 for i in range(24)]])
TILE_ROWS = 24


class Paths:
    """Each weight's path code by itself, with the lowest bit that this makes; some layers in another order."""

    name = "paths"

    def check(self, options: MethodOptions) -> MethodOptions:
        return options

    def describe(self, weight: Weight, options: MethodOptions) -> str:
        return "paths" if weight.role in {"linear", "embedding"} else ""

    def quantize(self, weight: Weight, value: torch.Tensor, options: MethodOptions) -> Quantized:
        matrix = value.float().numpy()
        rows, columns = matrix.shape
        layout = Layout()
        if "k_proj" in weight.name or "down_proj" in weight.name:
            order = np.random.default_rng(rows).permutation(rows)
            layout = Layout("rows", order, (rows // 3, rows - rows // 3))
        scales = np.abs(matrix).max(1) + 1e-6
        step = np.float32(1 / 40)
        k = np.rint(matrix / (2 * step * scales[:, None])).astype(np.int8)
        codes = k if layout.channel_order is None else k[layout.channel_order]
        history = np.zeros((HISTORY_ROWS, columns), np.int8)
        for some, height, place in tiles_of(TILE_ROWS, rows, layout.class_sizes).pieces(range(rows)):
            assert unfold(codes[some.start : some.stop], height, place, history)
        stored = np.empty_like(codes)
        stored[slice(None) if layout.channel_order is None else layout.channel_order] = codes
        scale = Scale(scales.astype(np.float32), "f32")
        return Uniform(stored, step, row_scale=scale, layout=layout, trellis_rows=TILE_ROWS)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("paths")
    tiny.build("llama", folder / "source")
    options = PackOptions(Paths(), MethodOptions(), CodecPolicy(), None)
    pack_model(open_source(folder / "source"), folder / "m.spq", options, force=True, progress=Silent())
    spqfmt.verify(folder / "m.spq", content=True)
    return folder / "m.spq"


def logits(path: Path, **options: object) -> torch.Tensor:
    model, _ = spqfmt.load_model(path, dtype="float32", **options)
    with torch.inference_mode():
        return model(INPUTS).logits


@pytest.mark.parametrize("options", [{"packed": True}, {"memory": "64MiB"}, {"memory": "2MiB"}])
def test_logits_are_those_of_the_decoded_model(packed: Path, options: dict[str, object]) -> None:
    expected = logits(packed, packed=False)
    assert torch.isfinite(expected).all()
    assert torch.allclose(logits(packed, **options), expected, atol=1e-4, rtol=1e-4)


def test_logits_on_a_device_are_those_of_the_decoded_model(packed: Path) -> None:
    model, _ = loaded_onto_device(packed, None, None, dtype="float32")
    expected = logits(packed, packed=False)
    assert torch.allclose(logits_of(model, INPUTS), expected, atol=1e-4, rtol=1e-4)


def test_the_plan_says_that_they_are_decoded_whole(packed: Path) -> None:
    whole = plan_model(packed).whole
    assert len(whole) > 6
    assert set(whole.values()) == {"path codes of a trellis"}
