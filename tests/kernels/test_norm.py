"""Norms against float64, and their bits for any number of threads and every backend."""

from typing import Any

import pytest
import torch

from spqfmt.kernels import native
from spqfmt.kernels.norm import root_mean_square
from spqfmt.loaders.schemes.matrix import TYPES

DTYPES = sorted(TYPES, key=str)


def normed(x: torch.Tensor, weight: torch.Tensor, *form: Any, n_threads: int = 1) -> torch.Tensor:
    y = torch.full_like(x, float("nan"))
    n_columns = x.shape[1]
    given = x.data_ptr(), TYPES[x.dtype], len(x), n_columns, weight.data_ptr()
    root_mean_square(*given, *form, y.data_ptr(), n_threads)
    return y


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n_columns", [1, 31, 64, 1000])
@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("rounds_first", [False, True])
def test_values(dtype: torch.dtype, n_columns: int, offset: float, rounds_first: bool) -> None:
    x = (torch.randn(5, n_columns) * torch.tensor([1.0, 0.0, 1e-3, 20.0, 1.0])[:, None]).to(dtype)
    weight = torch.randn(n_columns).to(dtype)
    y = normed(x, weight, 1e-5, offset, rounds_first)
    wide = x.double()
    quotient = wide / (wide.square().mean(1, keepdim=True) + 1e-5).sqrt()
    exact = (offset + weight.double()) * quotient
    places = 2 if rounds_first else 1
    assert ((y.double() - exact).abs() <= places * torch.finfo(dtype).eps * exact.abs() + 1e-6).all()
    if n_columns == 1000 and not rounds_first and dtype is not torch.float32:
        assert (y == exact.to(dtype)).float().mean() > 0.98


def test_bits_are_the_same_for_threads_and_backends() -> None:
    x, weight = torch.randn(70, 130).bfloat16(), torch.randn(130).bfloat16()
    expected = normed(x, weight, 1e-6, 0.0, True)
    before = native.active_kernels()
    try:
        for name in native.available_kernels():
            native.select_kernels(name)
            for n_threads in (1, 3):
                assert torch.equal(normed(x, weight, 1e-6, 0.0, True, n_threads=n_threads), expected)
    finally:
        native.select_kernels(before)


def test_what_is_no_number_stays_none() -> None:
    x = torch.ones(2, 40, dtype=torch.bfloat16)
    x[1, 3] = float("nan")
    y = normed(x, torch.ones(40, dtype=torch.bfloat16), 1e-6, 0.0, True)
    assert torch.equal(y[0], x[0])
    assert y[1].isnan().all()


def test_an_unknown_type_is_refused() -> None:
    x = torch.ones(1, 8)
    with pytest.raises(ValueError, match="float type"):
        root_mean_square(x.data_ptr(), 7, 1, 8, x.data_ptr(), 1e-6, 0.0, False, x.data_ptr(), 1)
