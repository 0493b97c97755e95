"""Path codes of a trellis and codes: against a table of states, from any row on, whatever is fed at once."""

import numpy as np
import pytest
from numpy.typing import NDArray

from spqfmt.kernels.backend import Backend
from spqfmt.kernels.trellis import HISTORY_ROWS, fold, unfold

# The state after one whose lowest bit is the code's, by the lowest bit of the path code: what encoders have.
NEXT = np.array([[0, 1], [2, 3], [5, 4], [7, 6], [1, 0], [3, 2], [4, 5], [6, 7]])
SHAPES = [(1, 1), (2, 7), (3, 5), (40, 33), (130, 70), (257, 64), (64, 129)]


def by_table(paths: NDArray[np.int8], height: int) -> NDArray[np.int8]:
    codes, state = np.empty(paths.shape, np.int64), np.empty(0)
    for row, k in enumerate(paths.astype(np.int64)):
        state = np.zeros(len(k), np.int64) if row % height == 0 else state
        codes[row] = 2 * k + state % 2
        state = NEXT[state, k % 2]
    return codes.astype(np.int8)


def paths_of(shape: tuple[int, int], seed: int = 5) -> NDArray[np.int8]:
    return np.random.default_rng(seed).integers(-64, 64, shape).astype(np.int8)


@pytest.mark.parametrize("n_threads", [1, 2])
def test_they_are_those_of_the_table(each_backend: Backend, n_threads: int) -> None:
    for shape in SHAPES:
        paths = paths_of(shape)
        for height in (1, 2, 3, 4, 7, 32, 128, 1 << 40):
            codes, history = paths.copy(), np.full((HISTORY_ROWS, shape[1]), 77, np.int8)
            assert unfold(codes, height, 0, history, n_threads)
            expected = by_table(paths, height)
            assert np.array_equal(codes, expected), (shape, height)
            assert np.array_equal(fold(codes, height), paths)
            passed = (shape[0] - 1) % height + 1
            last = np.zeros((HISTORY_ROWS, shape[1]), np.int8)
            last[:passed] = expected[-passed:][::-1][:HISTORY_ROWS]
            assert np.array_equal(history, last), (shape, height)


def test_large_ones_are_those_of_the_table(each_backend: Backend) -> None:
    """More columns than a block, more work than one thread does alone."""
    for shape, height, first in (((3, 40_000), 2, 1), ((700, 1500), 128, 100), ((300, 3000), 1000, 700)):
        paths = paths_of(shape)
        earlier = paths_of((first, shape[1]), 8)
        expected = by_table(np.concatenate([earlier, paths]), height)
        history = np.zeros((HISTORY_ROWS, shape[1]), np.int8)
        history[:first] = expected[:first][::-1][:HISTORY_ROWS]
        assert unfold(paths, height, first, history, 2)
        assert np.array_equal(paths, expected[first:])
        assert np.array_equal(history[0], expected[-1])


@pytest.mark.parametrize("height", [1, 2, 5, 16, 1000])
def test_from_any_row_on(each_backend: Backend, height: int) -> None:
    paths = paths_of((50, 37))
    expected = by_table(paths, height)
    for sizes in ([1] * 50, [2, 3] * 10, [50], [7, 20, 0, 23], [49, 1]):
        history, found, row = np.zeros((HISTORY_ROWS, 37), np.int8), [], 0
        for size in sizes:
            some = paths[row : row + size].copy()
            assert unfold(some, height, row % height, history)
            found.append(some)
            row += size
        assert np.array_equal(np.concatenate(found), expected), sizes


@pytest.mark.parametrize("wrong", [64, -65, 127, -128])
@pytest.mark.parametrize("place", [(0, 0), (5, 36), (49, 12)])
def test_what_is_no_path_code_is_told(each_backend: Backend, place: tuple[int, int], wrong: int) -> None:
    paths = paths_of((50, 37))
    paths[place] = wrong
    assert not unfold(paths, 8, 0, np.zeros((HISTORY_ROWS, 37), np.int8))


def test_codes_of_no_path_are_not_folded() -> None:
    codes = by_table(paths_of((20, 9)), 8)
    for row in range(20):
        changed = codes.copy()
        changed[row, 4] ^= 1
        with pytest.raises(ValueError, match="no path"):
            fold(changed, 8)
    with pytest.raises(ValueError, match="no path"):
        fold(codes, 7)


def test_buffers_that_do_not_fit_are_refused() -> None:
    codes, history = paths_of((4, 6)), np.zeros((HISTORY_ROWS, 6), np.int8)
    for height, first, before in ((0, 0, history), (3, 3, history), (3, 0, history[:2].copy())):
        with pytest.raises(ValueError, match=r"tile|history"):
            unfold(codes, height, first, before)
