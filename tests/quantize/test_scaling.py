"""Scales of input channels, and norms that take them in."""

from collections.abc import Callable, Iterator

import pytest
import torch

from spqfmt.quantize.base import MethodOptions, Weight
from spqfmt.quantize.calibrated import Block, Layer, Site
from spqfmt.quantize.inputs import InputStatistics
from spqfmt.quantize.scaling import as_column_scale, channel_scale, fold

DTYPES = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}
N = 48


def test_scale_of_double_compression() -> None:
    largest = torch.tensor([1.0, 16.0, 4.0])
    scale = channel_scale(largest, torch.ones(3), "activation", 0.5)
    assert scale is not None
    torch.testing.assert_close(scale / scale[0], torch.tensor([1.0, 4.0, 2.0]))
    torch.testing.assert_close(scale.log().mean(), torch.tensor(0.0), atol=1e-6, rtol=0)


def test_scale_of_smoothquant() -> None:
    scale = channel_scale(torch.tensor([1.0, 16.0]), torch.tensor([4.0, 1.0]), "smoothquant", 0.75)
    assert scale is not None
    # 1 / 4^(1/4) and 16^(3/4).
    torch.testing.assert_close(scale[1] / scale[0], torch.tensor(8 * 4**0.25))


def test_columns_without_input_get_the_least_scale() -> None:
    scale = channel_scale(torch.tensor([0.0, 4.0, 1.0]), torch.ones(3), "activation", 1.0)
    assert scale is not None
    assert scale[0] == scale[2] < scale[1]


@pytest.mark.parametrize("form", ["none", "activation", "smoothquant"])
def test_no_scale_where_there_is_nothing_to_scale_by(form: str) -> None:
    inputs = torch.ones(3) if form == "none" else torch.zeros(3)
    assert channel_scale(inputs, torch.ones(3), form, 0.5) is None


def test_stored_scale_is_the_one_that_is_used() -> None:
    scale = torch.exp(torch.randn(200, generator=torch.Generator().manual_seed(0)))
    stored, used = as_column_scale(scale)
    torch.testing.assert_close(torch.from_numpy(stored.to_float32()) * used, torch.ones(200))
    assert ((used / scale).log2().abs() <= 1 / 32 + 1e-5).all()


class Rms(torch.nn.Module):
    """A norm as Llama's, or as Gemma's, which multiplies by 1 + weight."""

    def __init__(self, offset: float) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(N) * 0.2 + 1 - offset)
        self.offset = offset

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)
        return (normed * (self.offset + self.weight.float())).to(x.dtype)


class Squared(Rms):
    """Not what it looks like: the output is no multiple of the weight."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = super().forward(x)
        return output * self.weight


class Small(torch.nn.Module):
    """A block with a norm, two layers behind it, and maybe a reader of the norm that is no module."""

    def __init__(self, norm: torch.nn.Module, *, read_twice: bool = False) -> None:
        super().__init__()
        self.norm = norm
        self.up = torch.nn.Linear(N, 64)
        self.gate = torch.nn.Linear(N, 64)
        self.down = torch.nn.Linear(64, N)
        self.read_twice = read_twice

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = self.norm(x)
        y = self.down(self.up(normed) * torch.sigmoid(self.gate(normed)))
        return y + (normed if self.read_twice else x)


def block_of(module: Small, dtype: torch.dtype) -> tuple[Block, Site, torch.Tensor]:
    module = module.to(dtype).requires_grad_(False)
    inputs = torch.randn(2, 20, N, generator=torch.Generator().manual_seed(3)).to(dtype)
    inputs[..., 5] *= 1000

    def no_inputs() -> Iterator[torch.Tensor]:
        return iter(())

    def reader(name: str) -> Callable[[], torch.Tensor]:
        return lambda: module.get_parameter(name).clone()

    layers = tuple(
        Layer(Weight(f"b.{name}.weight", (64, N), DTYPES[dtype], "linear"), name, reader(f"{name}.weight"))
        for name in ("up", "gate")
    )
    statistics = InputStatistics(N, MethodOptions())
    statistics.add(module.norm(inputs))
    site = Site(layers, statistics, no_inputs, "norm")
    tensors = {
        f"norm.{name}": (Weight(f"b.norm.{name}", (N,), DTYPES[dtype], "other"), reader(f"norm.{name}"))
        for name, _ in module.norm.named_parameters()
    }
    return Block("b", (site,), module, tensors, lambda: module(inputs)), site, inputs


def layer_norm() -> torch.nn.Module:
    norm = torch.nn.LayerNorm(N)
    with torch.no_grad():
        norm.weight.add_(torch.randn(N) * 0.2)
        norm.bias.add_(torch.randn(N))
    return norm


NORMS = {"llama": lambda: Rms(0.0), "gemma": lambda: Rms(1.0), "layer_norm": layer_norm}


@pytest.mark.parametrize("dtype", list(DTYPES))
@pytest.mark.parametrize("norm", list(NORMS))
def test_a_fold_leaves_the_float_block_as_it_was(norm: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    module = Small(NORMS[norm]())
    block, site, inputs = block_of(module, dtype)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    scale = torch.exp(torch.linspace(-1.5, 1.5, N))
    found = fold(block, site, scale)
    # The weight of Gemma's norm is a difference from 1, which 8 bits of mantissa may hold badly.
    if norm == "gemma" and dtype != torch.float32 and found is None:
        return
    assert found is not None
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name])
    # Computed in float32, so that only the fold is seen.
    module.float()
    expected = module(inputs.float())
    for name, tensor in found.tensors.items():
        module.get_parameter(name).copy_(tensor.float())
    for name in ("up", "gate"):
        module.get_parameter(f"{name}.weight").mul_(found.scale)
    # A bias is rounded again to the dtype; a weight is not lost on rounding, s is taken from what it became.
    tolerance = 4 * torch.finfo(dtype).eps if norm == "layer_norm" else 1e-5
    error = (module(inputs.float()) - expected).norm() / (expected - inputs.float()).norm()
    assert error < tolerance
    assert not torch.equal(found.tensors["norm.weight"], before["norm.weight"])


def test_a_norm_that_something_else_reads_is_left_alone() -> None:
    torch.manual_seed(0)
    scale = torch.exp(torch.linspace(-1, 1, N))
    block, site, _ = block_of(Small(Rms(0.0), read_twice=True), torch.float32)
    assert fold(block, site, scale) is None
    shared = Site(site.layers, site.statistics, site.inputs, "norm", shared=True)
    block, _, _ = block_of(Small(Rms(0.0)), torch.float32)
    assert fold(block, shared, scale) is None


@pytest.mark.parametrize("norm", [lambda: Squared(0.0), lambda: torch.nn.Linear(N, N), torch.nn.Tanh])
def test_what_is_no_norm_is_left_alone(norm: Callable[[], torch.nn.Module]) -> None:
    torch.manual_seed(0)
    block, site, _ = block_of(Small(norm()), torch.float32)
    assert fold(block, site, torch.exp(torch.linspace(-1, 1, N))) is None


def test_a_norm_whose_tensors_are_not_the_files_own_is_left_alone() -> None:
    torch.manual_seed(0)
    block, site, _ = block_of(Small(Rms(0.0)), torch.float32)
    bare = Block(block.name, block.sites, block.module, {}, block.run_first)
    assert fold(bare, site, torch.exp(torch.linspace(-1, 1, N))) is None
