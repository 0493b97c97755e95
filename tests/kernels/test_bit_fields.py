"""Blocks taken apart and put together by words, against the bits one by one."""

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
N_BLOCKS = 37
"""More than are moved at once."""


def layout(
    block_bytes: int, at: int, field: tuple[int, int, int, list[tuple[int, ...]]], n: int, *role: int
) -> np.ndarray:
    """One field of one role of `n` elements; `role` is its parts, offset, mask and limit."""
    n_runs, size, span, places = field
    head = [block_bytes, 1, n, *(role or (1, 0, 255, 0))]
    return np.array([*head, 0, at, n_runs, size, span, len(places), *np.array(places).reshape(-1)], np.int64)


@pytest.mark.parametrize("field", FIELDS)
def test_bits_are_moved_as_one_by_one(field: tuple[int, int, int, list[tuple[int, ...]]]) -> None:
    n_runs, size, span, places = field
    rng = np.random.default_rng(1)
    block_bytes, n = n_runs * size + 5, n_runs * span + 3
    blocks = rng.integers(0, 256, (N_BLOCKS, block_bytes), np.uint8)
    elements = np.full((N_BLOCKS, n), 77, np.uint8)
    expected = np.zeros_like(elements)
    for run in range(n_runs):
        for bit, bits, first, shift in places:
            for i in range(size):
                found = blocks[:, 2 + run * size + i] >> bit & ((1 << bits) - 1)
                expected[:, run * span + first + i] |= found << shift
    native.take_blocks(layout(block_bytes, 2, field, n), blocks, [elements])
    assert np.array_equal(elements, expected)
    again = rng.integers(0, 256, blocks.shape, np.uint8)
    kept = again.copy()
    noise = rng.integers(0, 256, elements.shape, np.uint8)
    assert native.put_blocks(layout(block_bytes, 2, field, n), [noise], again) is None
    kept[:, 2 : 2 + n_runs * size] = 0
    for run in range(n_runs):
        for bit, bits, first, shift in places:
            for i in range(size):
                found = noise[:, run * span + first + i] >> shift & ((1 << bits) - 1)
                kept[:, 2 + run * size + i] |= found << bit
    assert np.array_equal(again, kept)


def test_a_role_has_parts_and_an_offset() -> None:
    rng = np.random.default_rng(2)
    blocks = rng.integers(0, 256, (N_BLOCKS, 21), np.uint8)
    first, second = np.empty((2, N_BLOCKS, 16), np.uint8)
    numbers = layout(21, 3, FIELDS[0], 32, 2, 5, 15, 0)
    native.take_blocks(numbers, blocks, [first, second])
    assert np.array_equal(first, (blocks[:, 3:19] & 15) - np.uint8(5))
    assert np.array_equal(second, (blocks[:, 3:19] >> 4) - np.uint8(5))
    again = blocks.copy()
    again[:, 3:19] = 0
    # What is left of an element are the bits of the mask.
    assert native.put_blocks(numbers, [first + np.uint8(16), second], again) is None
    assert np.array_equal(again, blocks)


def test_an_element_past_its_limit_is_named_by_its_role() -> None:
    numbers = layout(21, 3, FIELDS[0], 32, 2, 1, 255, 15)
    parts = np.full((2, N_BLOCKS, 16), 13, np.uint8)
    assert native.put_blocks(numbers, list(parts), np.zeros((N_BLOCKS, 21), np.uint8)) is None
    parts[1, -1, -1] = 14
    assert native.put_blocks(numbers, list(parts), np.zeros((N_BLOCKS, 21), np.uint8)) == 0


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (0, 0),
        (0, 15),
        (1, 0),
        (1, 2),
        (2, 31),
        (3, 0),
        (3, 3),
        (4, 256),
        (5, -1),
        (6, 1 << 21),
        (7, 1),
        (8, 4),
        (9, 2),
        (10, 0),
        (11, 15),
        (12, 0),
        (12, 1),
        (12, 3),
        (13, 5),
        (14, 0),
        (14, 9),
        (15, 17),
        (16, 5),
        (8, -1),
    ],
)
def test_a_layout_that_does_not_fit_is_refused(place: int, value: int) -> None:
    numbers = layout(18, 2, FIELDS[0], 32)
    numbers[place] = value
    blocks, elements = np.zeros(36, np.uint8), np.zeros(64, np.uint8)
    with pytest.raises(ValueError, match=r"field|blocks|layout|parts"):
        native.take_blocks(numbers, blocks, [elements])
    with pytest.raises(ValueError, match=r"field|blocks|layout|parts"):
        native.put_blocks(numbers, [elements], blocks)


def test_a_layout_that_is_cut_off_is_refused() -> None:
    numbers = layout(18, 2, FIELDS[0], 32)
    for n in [*range(7), *range(8, len(numbers))]:
        with pytest.raises(ValueError, match="layout"):
            native.take_blocks(numbers[:n].copy(), np.zeros(36, np.uint8), [np.zeros(64, np.uint8)])


def test_parts_of_other_sizes_are_refused() -> None:
    numbers, elements = layout(18, 2, FIELDS[0], 32), np.zeros(64, np.uint8)
    for parts in ([], [elements, elements], [elements[:63]]):
        with pytest.raises(ValueError, match=r"parts|fit"):
            native.take_blocks(numbers, np.zeros(36, np.uint8), parts)


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("n_bytes", [0, 1, 31, 1000])
def test_elements_are_packed(bits: int, n_bytes: int) -> None:
    elements = np.random.default_rng(3).integers(0, 256, (n_bytes, 8 // bits), np.uint8)
    packed = np.full(n_bytes, 7, np.uint8)
    native.pack_bits(elements, bits, packed)
    low = elements.astype(np.uint32) & ((1 << bits) - 1)
    assert np.array_equal(packed, (low << np.arange(0, 8, bits)).sum(1))


@pytest.mark.parametrize(("bits", "n"), [(3, 8), (8, 4), (4, 7), (4, 10), (2, 8)])
def test_elements_that_are_not_packed(bits: int, n: int) -> None:
    with pytest.raises(ValueError, match=r"bits|dst"):
        native.pack_bits(np.zeros(n, np.uint8), bits, np.zeros(4, np.uint8))
