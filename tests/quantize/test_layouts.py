"""The layout of codes: what it holds, and that it is worth its place."""

import numpy as np
import pytest

from spqfmt.codecs.rans import CODEC as RANS
from spqfmt.quantize.layouts import choose_layout
from spqfmt.schemes.codes import Layout


def stored_bytes(codes: np.ndarray, layout: Layout) -> int:
    _, (data, *order) = layout.encode(codes, "i8")
    elements = data.elements.view(np.uint8)
    sizes = data.sizes or (elements.size,)
    ends = np.cumsum(sizes)
    chunks = np.split(elements, ends[:-1])
    return sum(len(RANS.encode(chunk)) for chunk in chunks) + sum(2 * o.elements.size for o in order)


def codes_with(row_spread: float, column_spread: float) -> np.ndarray:
    generator = np.random.default_rng(0)
    rows = np.exp(generator.normal(0, row_spread, (256, 1)))
    columns = np.exp(generator.normal(0, column_spread, (1, 320)))
    values = generator.normal(0, 6, (256, 320)) * rows * columns
    return np.clip(np.rint(values), -127, 127).astype(np.int8)


@pytest.mark.parametrize(("spreads", "orientation"), [((0.0, 1.0), "columns"), ((1.0, 0.0), "rows")])
def test_channels_that_differ_are_sorted_into_classes(spreads: tuple[float, float], orientation: str) -> None:
    codes = codes_with(*spreads)
    layout = choose_layout(codes)
    assert layout.orientation == orientation
    assert layout.class_sizes is not None
    assert sum(layout.class_sizes) == codes.shape[orientation == "columns"]
    assert stored_bytes(codes, layout) < 0.97 * stored_bytes(codes, Layout())


def test_what_is_looked_up_by_rows_stays_in_rows() -> None:
    assert choose_layout(codes_with(0, 1), by_rows=True) == Layout()
    assert choose_layout(codes_with(1, 1), by_rows=True).orientation == "rows"


def test_like_channels_stay_as_they_are() -> None:
    assert choose_layout(codes_with(0, 0)) == Layout()


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (3, 2)])
def test_small_matrices(shape: tuple[int, int]) -> None:
    codes = np.arange(shape[0] * shape[1]).reshape(shape).astype(np.int8)
    assert choose_layout(codes) == Layout()
