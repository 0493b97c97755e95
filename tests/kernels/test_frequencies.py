"""The frequency table against a slow exact normalizer."""

import heapq
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spqfmt import wire
from spqfmt.kernels import native

TOTAL = 1 << wire.RANS_FREQUENCY_BITS


def table_of(chunk):
    """Read the frequencies of a chunk of blocks, field by field."""
    n_bytes = int.from_bytes(chunk[6:8], "little")
    bits = int.from_bytes(chunk[8 : 8 + n_bytes], "little")
    frequencies = {}
    for symbol in range(chunk[4], chunk[5] + 1):
        length = bits & 15
        bits >>= 4
        low = max(length - 1, 0)
        frequencies[symbol] = ((1 << length) >> 1) + (bits & ((1 << low) - 1))
        bits >>= low
    assert bits == 0
    return frequencies


def best_frequencies(counts):
    """Exact: start at one slot each and give every other slot where it saves most (the gains only ever fall)."""
    frequencies = dict.fromkeys(counts, 1)
    gains = [(-count, symbol) for symbol, count in counts.items()]
    heapq.heapify(gains)
    for _ in range(TOTAL - len(counts)):
        _, symbol = heapq.heappop(gains)
        frequencies[symbol] += 1
        f = frequencies[symbol]
        if f < wire.RANS_MAX_FREQUENCY:
            heapq.heappush(gains, (-counts[symbol] * math.log2((f + 1) / f), symbol))
    return frequencies


def cost(counts, frequencies):
    return sum(count * (wire.RANS_FREQUENCY_BITS - math.log2(frequencies[s])) for s, count in counts.items())


def check(data):
    counts = {int(s): int(n) for s, n in zip(*np.unique(data, return_counts=True), strict=True)}
    frequencies = table_of(native.rans_encode(data))
    assert sum(frequencies.values()) == TOTAL
    assert {s for s, f in frequencies.items() if f > 0} == set(counts)
    assert max(frequencies.values()) <= wire.RANS_MAX_FREQUENCY
    assert cost(counts, frequencies) <= 1.001 * cost(counts, best_frequencies(counts)) + 1e-9


def test_common_data(source):
    data = source(100_000)
    if len(np.unique(data)) > 1:
        check(data)


@pytest.mark.parametrize("n_rare", [1, 2, 100, 255])
def test_rare_symbols(n_rare):
    check(np.concatenate([np.zeros(1 << 20, np.uint8), np.arange(1, n_rare + 1, dtype=np.uint8)]))


def test_many_symbols_just_below_a_slot():
    counts = [5_000_000] + [900] * 255
    check(np.repeat(np.arange(256, dtype=np.uint8), counts))


@given(st.lists(st.integers(0, 3000), min_size=2, max_size=256))
def test_any_counts(counts):
    data = np.repeat(np.arange(len(counts), dtype=np.uint8), counts)
    if len(np.unique(data)) > 1:
        check(data)


@given(st.lists(st.floats(0, 18), min_size=2, max_size=40))
def test_steep_counts(log_counts):
    check(np.repeat(np.arange(len(log_counts), dtype=np.uint8), np.exp2(log_counts).astype(np.int64)))
