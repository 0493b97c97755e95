"""Fields of blocks moved by words, against the bits one by one."""

import numpy as np
import pytest

from spqfmt.kernels import native

# Runs, bytes of a run, elements of a run, and where which bits are.
FIELDS = [
    (1, 16, 32, [(0, 4, 0, 0), (4, 4, 16, 0)]),
    (4, 1, 8, [(k, 1, k, 4) for k in range(8)]),
    (2, 32, 128, [(2 * k, 2, 32 * k, 4) for k in range(4)]),
    (1, 4, 16, [(0, 6, 0, 0), (6, 2, 4, 4)]),
    (3, 6, 8, [(1, 3, 2, 5)]),
    (1, 8, 8, [(0, 8, 0, 0)]),
]


def numbers(
    block_bytes: int, at: int, field: tuple[int, int, int, list[tuple[int, ...]]], n: int
) -> np.ndarray:
    n_runs, size, span, places = field
    return np.array([block_bytes, at, n_runs, size, span, n, *np.array(places).reshape(-1)], np.int64)


@pytest.mark.parametrize("field", FIELDS)
def test_bits_are_moved_as_one_by_one(field: tuple[int, int, int, list[tuple[int, ...]]]) -> None:
    n_runs, size, span, places = field
    rng = np.random.default_rng(1)
    block_bytes, n = n_runs * size + 5, n_runs * span + 3
    blocks = rng.integers(0, 256, (9, block_bytes), np.uint8)
    elements = np.zeros((9, n), np.uint8)
    expected = elements.copy()
    for run in range(n_runs):
        for bit, bits, first, shift in places:
            for i in range(size):
                found = blocks[:, 2 + run * size + i] >> bit & ((1 << bits) - 1)
                expected[:, run * span + first + i] |= found << shift
    native.take_bits(numbers(block_bytes, 2, field, n), blocks, elements)
    assert np.array_equal(elements, expected)
    again = rng.integers(0, 256, blocks.shape, np.uint8)
    kept = again.copy()
    noise = rng.integers(0, 256, elements.shape, np.uint8)
    native.put_bits(numbers(block_bytes, 2, field, n), noise, again)
    kept[:, 2 : 2 + n_runs * size] = 0
    for run in range(n_runs):
        for bit, bits, first, shift in places:
            for i in range(size):
                found = noise[:, run * span + first + i] >> shift & ((1 << bits) - 1)
                kept[:, 2 + run * size + i] |= found << bit
    assert np.array_equal(again, kept)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (0, 0),
        (0, 15),
        (1, 4),
        (2, 2),
        (3, 0),
        (4, 15),
        (5, 31),
        (6, 5),
        (7, 0),
        (7, 9),
        (8, 17),
        (9, 5),
        (1, -1),
    ],
)
def test_a_field_that_does_not_fit_is_refused(place: int, value: int) -> None:
    field = numbers(18, 2, FIELDS[0], 32)
    field[place] = value
    with pytest.raises(ValueError, match=r"field|blocks"):
        native.take_bits(field, np.zeros(36, np.uint8), np.zeros(64, np.uint8))
    with pytest.raises(ValueError, match=r"field|blocks"):
        native.put_bits(field, np.zeros(64, np.uint8), np.zeros(36, np.uint8))
