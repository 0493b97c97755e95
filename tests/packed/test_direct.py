"""The short way of few tokens: the bits of the general one, and left to that wherever more is wanted."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from encoded_files import write_encoded
from test_linear import COLUMNS, FORMS, ROWS, engine_of

from spqfmt.codecs.threads import jobs
from spqfmt.container.reader import Reader
from spqfmt.loaders.packed import PackedLinear

BF16 = torch.bfloat16


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    encoded = FORMS["levels in bf16"](np.random.default_rng(3)).encode()
    return write_encoded(
        tmp_path_factory.mktemp("direct") / "w.spq", {"w": (encoded, (ROWS, COLUMNS))}, 1 << 20
    )


def layer_of(file: Path, rounds: bool | None = None, bias: bool = True) -> PackedLinear:
    with Reader(file) as reader:
        record = reader.index.by_name["w"]
    own = torch.nn.Parameter(torch.randn(ROWS, dtype=BF16)) if bias else None
    module = PackedLinear(record, BF16, own, int8_activations=rounds)
    module.attach(engine_of(file, None, part_bytes=1 << 20))
    return module


@pytest.fixture(scope="module", params=[None, False], ids=["rounded", "float"])
def layer(file: Path, request: pytest.FixtureRequest) -> Iterator[PackedLinear]:
    module = layer_of(file, request.param)
    yield module
    module.engine.close()


def generally(layer: PackedLinear, x: torch.Tensor) -> torch.Tensor:
    """What the layer's engine computes."""
    return layer.engine.multiply(layer._operand.matrix, x, layer.bias, int8_activations=layer._rounding)


def directly(layer: PackedLinear, x: torch.Tensor) -> torch.Tensor | None:
    assert layer._direct is not None
    return layer._direct(x, layer.bias)


@pytest.mark.parametrize("shape", [(COLUMNS,), (1, COLUMNS), (2, 1, COLUMNS), (4, 8, COLUMNS), (0, COLUMNS)])
def test_it_gives_the_same_bits_without_gaps(layer: PackedLinear, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, dtype=BF16)
    with torch.no_grad():
        for _ in range(2):  # the second is of a shape that is known
            y = directly(layer, x)
            assert y is not None
            assert y.is_contiguous()
            assert torch.equal(y, generally(layer, x))
        assert torch.equal(layer(x), y)


def test_what_is_unusual_takes_the_general_way(layer: PackedLinear) -> None:
    x = torch.randn(2, COLUMNS, dtype=BF16)
    with torch.no_grad():
        for other in (
            x.float(),
            x[:, :-1],
            torch.randn(COLUMNS, 2, dtype=BF16).t(),
            torch.randn(33, COLUMNS, dtype=BF16),
            torch.nn.Parameter(x),
            x.to("meta"),
            torch.tensor(1.0, dtype=BF16),
        ):
            assert directly(layer, other) is None
        with torch.autocast("cpu", BF16):
            assert directly(layer, x) is None
        with jobs(1):
            assert directly(layer, x) is None
            assert torch.equal(layer(x), generally(layer, x))


def test_gradients_go_the_general_way(file: Path) -> None:
    layer = layer_of(file, False)
    x = torch.randn(2, COLUMNS, dtype=BF16)
    assert layer(x).requires_grad  # of the bias
    layer.bias.requires_grad_(False)
    assert not layer(x).requires_grad
    x.requires_grad_()
    layer(x).sum().backward()
    assert x.grad is not None
    layer.engine.close()


def test_inference_and_other_modes_give_their_own_tensors(layer: PackedLinear) -> None:
    x = torch.randn(2, COLUMNS, dtype=BF16)
    with torch.inference_mode():
        inside = directly(layer, x)
    with torch.no_grad():
        outside = directly(layer, x)
    assert inside is not None
    assert outside is not None
    assert inside.is_inference()
    assert not outside.is_inference()


def test_hooks_are_called(file: Path) -> None:
    layer = layer_of(file, bias=False)
    seen = []
    layer.register_forward_hook(lambda module, given, y: seen.append(y.shape))
    with torch.no_grad():
        layer(torch.randn(1, COLUMNS, dtype=BF16))
    assert seen == [(1, ROWS)]
    layer.engine.close()


def test_what_is_done_to_inputs_first_has_no_short_way(file: Path) -> None:
    layer = layer_of(file)
    layer.treatment = torch.nn.Hardtanh()
    layer.attach(layer.engine)
    assert layer._direct is None
    layer.engine.close()
