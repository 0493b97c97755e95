"""Models whose layers are stored as path codes of a trellis: the logits of the decoded model, whatever holds them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import transformers
from device_support import RATES, loaded_onto_device, logits_of
from probe import build, distance, model_classes, near
from probe_inputs import inputs_for, outputs

import spqfmt
from spqfmt.codecs.chunks import CodecPolicy
from spqfmt.container.reader import Reader
from spqfmt.importers import open_source
from spqfmt.kernels import backend
from spqfmt.kernels.narrow import narrow
from spqfmt.kernels.trellis import HISTORY_ROWS, unfold
from spqfmt.loaders.packed.experts import PackedExperts
from spqfmt.loaders.plan import plan_for_device, plan_model
from spqfmt.packing.options import PackOptions
from spqfmt.packing.pack import pack_model
from spqfmt.progress import Silent
from spqfmt.quantize.base import MethodOptions, Weight
from spqfmt.residency.decode import decode_part
from spqfmt.residency.parts import cut
from spqfmt.schemes.base import Quantized
from spqfmt.schemes.codes import Layout
from spqfmt.schemes.floats import Scale
from spqfmt.schemes.trellis import tiles_of, unfold_rows
from spqfmt.schemes.uniform import Uniform

INPUTS = torch.tensor([[(i * 37 + 11) % 256 for i in range(24)]])
TILE_ROWS = 24
Write = Callable[..., Path]


class Paths:
    """Each weight's path code by itself, with the lowest bit that this makes; some layers in another order."""

    name = "paths"

    def __init__(self, *, as_paths: bool) -> None:
        self._as_paths = as_paths

    def check(self, options: MethodOptions) -> MethodOptions:
        return options

    def describe(self, weight: Weight, options: MethodOptions) -> str:
        return "paths" if weight.role in {"linear", "embedding"} else ""

    def quantize(self, weight: Weight, value: torch.Tensor, options: MethodOptions) -> Quantized:
        matrix = value.float().numpy().reshape(-1, value.shape[-1])
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
        for some, height, place in tiles_of(TILE_ROWS, value.shape[-2], layout.class_sizes).pieces(
            range(rows)
        ):
            assert unfold(codes[some.start : some.stop], height, place, history)
        stored = np.empty_like(codes)
        stored[slice(None) if layout.channel_order is None else layout.channel_order] = codes
        scale = Scale(scales.astype(np.float32), "f32")
        tile_rows = TILE_ROWS if self._as_paths else None
        return Uniform(stored, step, row_scale=scale, layout=layout, trellis_rows=tile_rows)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("paths")
    tiny.build("llama", folder / "source")
    return folder / "source"


def made(source: Path, *, as_paths: bool) -> Path:
    options = PackOptions(Paths(as_paths=as_paths), MethodOptions(), CodecPolicy(), None)
    out = source.parent / f"{as_paths}.spq"
    pack_model(open_source(source), out, options, force=True, progress=Silent())
    spqfmt.verify(out, content=True)
    return out


@pytest.fixture(scope="module")
def packed(source: Path) -> Path:
    return made(source, as_paths=True)


@pytest.fixture(scope="module")
def plain(source: Path) -> Path:
    """The same codes, stored as such."""
    return made(source, as_paths=False)


def logits(path: Path, **options: object) -> torch.Tensor:
    model, _ = spqfmt.load_model(path, dtype="float32", **options)
    with torch.inference_mode():
        return model(INPUTS).logits


@pytest.mark.parametrize("kernels", ["scalar", "native"])
def test_logits_are_those_of_the_same_codes_stored_plainly(packed: Path, plain: Path, kernels: str) -> None:
    """To the bit, decoded, compressed and on disk; and near those of the decoded model."""
    with backend.use(kernels):
        whole = logits(plain, packed=True)
        assert torch.isfinite(whole).all()
        assert torch.equal(logits(packed, packed=True), whole)
        for memory in (
            "64MiB",
            plan_model(packed).plan.smallest_bytes,
            plan_model(packed).plan.smallest_bytes + 40_000,
        ):
            assert torch.equal(logits(packed, memory=memory), logits(plain, memory=memory)), memory
        assert torch.allclose(whole, logits(packed, packed=False), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("spread", "is_narrow"), [(0.9, True), (1.5, True), (1.9, False)])
def test_codes_of_low_entropy_have_room_as_narrow_ones(
    write_tensor: Write, spread: float, is_narrow: bool
) -> None:
    """Room for their escapes is counted with a bit more than path codes have: these codes find it."""
    paths = np.rint(np.random.default_rng(4).normal(0, spread, (512, 600))).astype(np.int8)
    unfold_rows(tiles_of(128, 512, None), 0, paths)
    path = write_tensor(Uniform(paths, np.float32(0.1), trellis_rows=128).encode(), (512, 600))
    with Reader(path) as reader:
        for part in cut(reader.index.by_name["w"]):
            assert (part.narrow_bytes > 0) == is_narrow
            stored, out = np.empty(part.stored_bytes, np.uint8), np.empty(part.decoded_bytes, np.uint8)
            reader.read_into(part.offset, stored)
            decode_part(part, stored, np.empty(0, np.uint8), out, path, checked=False)
            assert np.array_equal(out.view(np.int8).reshape(-1, 600), paths[part.first : part.stop])
            if is_narrow:
                assert narrow(out, np.empty(part.narrow_bytes, np.uint8))


def test_logits_on_a_device_are_those_of_the_same_codes_stored_plainly(packed: Path, plain: Path) -> None:
    """To the bit: all on the device, and as little there and on the host as can be."""
    assert not plan_for_device(packed, dtype="float32", rates=RATES).whole
    for streamed in (False, True):
        found = []
        for path in (packed, plain):
            plan = plan_for_device(path, dtype="float32", rates=RATES).plan
            ceilings = (plan.smallest_bytes, plan.on_host.smallest_bytes) if streamed else (None, None)
            found.append(logits_of(loaded_onto_device(path, *ceilings, dtype="float32")[0], INPUTS))
        assert torch.equal(*found)
        assert torch.allclose(found[0], logits(packed, packed=False), atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["mixtral", "granitemoehybrid"])
def test_experts_by_themselves_and_in_stacks_stay_packed(tmp_path: Path, family: str) -> None:
    model = build(model_classes(transformers.CONFIG_MAPPING[family])[0], torch.float32)
    model.save_pretrained(tmp_path / "source")
    path = made(tmp_path / "source", as_paths=True)
    decoded, _ = spqfmt.load_model(path, packed=False)
    wanted = outputs(decoded, given := inputs_for(model))
    assert not plan_model(path).whole
    for options in ({"packed": True}, {"memory": plan_model(path).plan.smallest_bytes}):
        loaded, _ = spqfmt.load_model(path, **options)
        assert any(isinstance(module, PackedExperts) for module in loaded.modules())
        assert near(got := outputs(loaded, given), wanted), distance(got, wanted)


def test_the_plan_keeps_them_packed(packed: Path) -> None:
    plan = plan_model(packed)
    assert not plan.whole
    parts = [planned.item.part for planned in plan.plan.parts if planned.item.part.record.scheme == "uniform"]
    assert len(parts) > 7
    assert all(part.tiles is not None for part in parts)
