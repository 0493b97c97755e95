"""Files that the package writes, read by the reference decoder: the same weights, bit for bit."""

import numpy as np
import pytest
import reference_decoder
import torch
from spec_support import READERS

import spqfmt
from spqfmt.codecs.chunks import CodecPolicy
from spqfmt.importers.base import Asset, SourceModel, SourceTensor
from spqfmt.packing.options import PackOptions, pack_options
from spqfmt.packing.pack import pack_model
from spqfmt.progress import Silent
from spqfmt.quantize.base import MethodOptions
from spqfmt.schemes.codes import Layout
from spqfmt.schemes.floats import Scale, narrow, to_log8
from spqfmt.schemes.group_numbers import GroupValues
from spqfmt.schemes.grouped import Grouped
from spqfmt.schemes.outliers import Outliers
from spqfmt.schemes.uniform import Uniform

RANDOM = np.random.default_rng(7)
ROWS, COLUMNS = 24, 70


def tensor(name, value, **options):
    names = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16", torch.int64: "i64"}
    of_layer = {"segment": "layer", "role": "linear", "transposed": False, "tied_to": None, **options}
    return SourceTensor(name, tuple(value.shape), names[value.dtype], load=lambda: value, **of_layer)


def model(dtype=torch.bfloat16):
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(ROWS, COLUMNS, generator=generator).mul(0.05).to(dtype)
    tensors = (
        tensor("embed", weight, segment="embed", role="embedding"),
        tensor("norm", torch.full((COLUMNS,), -0.0).to(dtype), role="other"),
        tensor("up", weight * 3),
        tensor("down", weight.t().contiguous(), transposed=True),
        tensor("count", torch.tensor(-7), role="other"),
        tensor("none", torch.empty(0, 4, dtype=dtype), role="other"),
        tensor("head", weight, segment="head", role="head", tied_to="embed"),
    )
    return SourceModel(tensors, (Asset("config.json", b"{}"), Asset("empty.txt", b"")), "None", "memory")


def written(source, path, options):
    pack_model(source, path, options, force=True, progress=Silent())
    data = path.read_bytes()
    assert data[8:12] == (b"\1\0\1\0" if options.identity else b"\1\0\0\0")
    content = READERS["reference"](path)
    assert content == READERS["product"](path)
    return content


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("codec", ["auto", "raw", "zstd", "rans"])
def test_lossless(codec, dtype, tmp_path):
    source = model(dtype)
    content = written(source, tmp_path / "m.spq", pack_options(codec=codec))
    for given in source.tensors:
        shape, _, data = content.tensors[given.name]
        value = given.load()
        assert shape == tuple(value.shape)
        assert data == (
            value.contiguous().flatten().view(torch.uint8).numpy().tobytes() if value.numel() else b""
        )
    assert content.assets == {"config.json": b"{}", "empty.txt": b""}


def test_without_identity_nothing_of_1_1_is_used(tmp_path):
    path = tmp_path / "m.spq"
    written(model(), path, pack_options(no_identity=True))
    with spqfmt.open(path) as file:
        assert file.content is None
    assert spqfmt.verify(path, content=True) == reference_decoder.decode(path.read_bytes()).content


@pytest.mark.parametrize(
    "options",
    [
        {"bits": 8, "granularity": "tensor"},
        {"bits": 4, "granularity": "row"},
        {"bits": 2, "granularity": "row", "partial": "every:2"},
        {"bits": 3, "granularity": "row", "partial": "speed:50%"},
        {"bits": 4, "granularity": "group", "group_size": 16},
        {"bits": 3, "granularity": "group", "group_size": 32, "codec": "zstd"},
    ],
    ids=str,
)
def test_rtn(options, tmp_path):
    written(model(), tmp_path / "m.spq", pack_options(method="rtn", **options))


class Given:
    """A method that hands over what a test made."""

    name = "given"

    def __init__(self, made):
        self._made = made

    def check(self, options):
        return options

    def describe(self, weight, options):
        return "as given"

    def quantize(self, weight, value, options):
        return self._made[weight.name]


def values(dtype, *shape):
    return narrow(RANDOM.uniform(0.01, 0.2, shape).astype(np.float32), dtype)


def outliers(dtype):
    places = np.sort(RANDOM.choice(ROWS * COLUMNS, 15, replace=False)).astype(np.int64)
    rows, columns = np.divmod(places, COLUMNS)
    return Outliers(rows, columns, narrow(RANDOM.normal(0, 9, 15).astype(np.float32), dtype), dtype)


def test_every_part_of_the_schemes(tmp_path):
    small = RANDOM.integers(-8, 8, (ROWS, COLUMNS)).astype(np.int8)
    unsigned = RANDOM.integers(0, 8, (ROWS, COLUMNS)).astype(np.uint8)
    scales = [np.exp(RANDOM.normal(0, 1, n)).astype(np.float32) for n in (ROWS, COLUMNS)]
    second = [RANDOM.integers(0, 16, (ROWS, 5)).astype(np.uint8) for _ in range(3)]

    def coded(number, tiles, zeros):
        steps = values("f16", *tiles)
        return GroupValues(second[number], "u4", steps, values("f16", *tiles) if zeros else None)

    order = RANDOM.permutation(COLUMNS)
    made = {
        "log8": Uniform(small, np.float32(0.01), "i4", to_log8(scales[0], 8), to_log8(scales[1], 16), outliers("f16")),
        "columns": Uniform(
            small, np.float32(0.5), "i8", Scale(narrow(scales[0], "bf16"), "bf16"), None,
            layout=Layout("columns", order, (30, 40)),
        ),
        "spqr": Grouped(
            unsigned, "u4", 16, 3, coded(0, (2, 5), True), coded(1, (2, 5), True), supergroup=(16, 1),
            permutation=order.astype(np.int64), outliers=outliers("bf16"),
        ),
        "gguf": Grouped(
            unsigned, "u4", 16, 4, coded(0, (ROWS, 1), False), minimum=coded(2, (ROWS, 1), False), supergroup=(1, 8)
        ),
        "plain": Grouped(unsigned, "u4", 16, 4, GroupValues(values("f32", ROWS, 5), "f32"), outliers=outliers("f32")),
    }  # fmt: skip
    for dtype in (torch.float32, torch.bfloat16):
        tensors = tuple(tensor(name, torch.zeros(ROWS, COLUMNS, dtype=dtype)) for name in made)
        options = PackOptions(Given(made), MethodOptions(), CodecPolicy(), None)
        content = written(SourceModel(tensors, (), "", ""), tmp_path / "m.spq", options)
        for name, quantized in made.items():
            weights = torch.from_numpy(quantized.dequantize()).to(dtype)
            assert content.tensors[name][2] == weights.contiguous().view(torch.uint8).numpy().tobytes(), name
