"""Products and lookups on a simulated device, for every form of a tensor and at every ceiling."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from device_support import engine_of
from test_linear import COLUMNS, FORMS, ROWS

from spqfmt.container.reader import Reader
from spqfmt.models.treatments import quantize_tokens
from spqfmt.reading.restore import restore
from spqfmt.residency.sides import read_sides


@pytest.fixture(params=sorted(FORMS))
def stored(request: pytest.FixtureRequest, write_tensors: Callable[..., Path], generator: Any) -> Path:
    return write_tensors({"w": (FORMS[request.param](generator).encode(), (ROWS, COLUMNS))})


@pytest.mark.parametrize("residency", ["decoded", "compressed", "host", "disk"])
def test_products_are_those_of_the_dequantized_matrix(stored: Path, residency: str) -> None:
    with Reader(stored) as reader:
        record = reader.index.by_name["w"]
        matrix = restore(reader, record, None if record.scheme == "dense" else "f32").double()
    engine, _ = engine_of(stored, residency)
    for dtype in (torch.float32, torch.bfloat16):
        bias = torch.randn(ROWS, dtype=dtype)
        for shape in ((COLUMNS,), (2, 1, COLUMNS), (3, 11, COLUMNS), (0, COLUMNS)):
            x = torch.randn(shape).to(dtype)
            y = engine.multiply("w", x, bias, int8_activations=False)
            assert y.dtype == dtype
            assert y.shape == (*shape[:-1], ROWS)
            exact = x.double() @ matrix.t() + bias.double()
            size = x.double().abs() @ matrix.abs().t() + bias.double().abs()
            assert ((y.double() - exact).abs() <= max(3 * torch.finfo(dtype).eps, 3e-6) * size + 1e-6).all()
    engine.close()


@pytest.mark.parametrize("residency", ["decoded", "disk"])
def test_transposed_products_are_those_of_the_dequantized_matrix(stored: Path, residency: str) -> None:
    with Reader(stored) as reader:
        record = reader.index.by_name["w"]
        matrix = restore(reader, record, None if record.scheme == "dense" else "f32").double()
    engine, _ = engine_of(stored, residency)
    for dtype in (torch.float32, torch.bfloat16):
        for shape in ((ROWS,), (2, 1, ROWS), (3, 11, ROWS), (0, ROWS)):
            y = torch.randn(shape).to(dtype)
            x = engine.multiply_transposed("w", y)
            assert (x.dtype, x.shape) == (dtype, (*shape[:-1], COLUMNS))
            exact, size = y.double() @ matrix, y.double().abs() @ matrix.abs()
            assert ((x.double() - exact).abs() <= max(3 * torch.finfo(dtype).eps, 3e-6) * size + 1e-6).all()
    engine.close()


@pytest.mark.parametrize("residency", ["decoded", "disk"])
def test_the_values_are_those_of_the_dequantized_matrix(stored: Path, residency: str) -> None:
    with Reader(stored) as reader:
        record = reader.index.by_name["w"]
        matrix = restore(reader, record, None if record.scheme == "dense" else "f32")
    engine, _ = engine_of(stored, residency)
    assert torch.equal(engine.values("w"), matrix.to(torch.bfloat16))
    engine.close()


@pytest.mark.parametrize("name", [name for name in FORMS if name.startswith("i")])
def test_products_of_integer_activations(
    name: str, write_tensors: Callable[..., Path], generator: Any
) -> None:
    path = write_tensors({"w": (FORMS[name](generator).encode(), (ROWS, COLUMNS))})
    with Reader(path) as reader:
        record = reader.index.by_name["w"]
        matrix = restore(reader, record, "f32").double()
        column = read_sides(reader, record).column
    engine, _ = engine_of(path, "disk")
    for tokens in (1, 19):
        x = torch.randn(tokens, COLUMNS)
        x[0] = 0 if tokens > 1 else x[0]
        scale = torch.ones(COLUMNS) if column is None else torch.from_numpy(column)
        rounded = quantize_tokens(x * scale)[2] / scale
        exact = rounded.double() @ matrix.t()
        y = engine.multiply("w", x, None, int8_activations=True)
        assert torch.allclose(y.double(), exact, rtol=1e-4, atol=1e-4 * float(exact.abs().max()))
    engine.close()
