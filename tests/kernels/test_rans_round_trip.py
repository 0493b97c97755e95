"""Every backend decodes what every backend encodes, and all encode to the same bytes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spqfmt.errors import CorruptError
from spqfmt.kernels import backend, native

SIZES = [1, 2, 127, 128, 129, 4095, 4096, 4097, 8 * 4096 - 1, 8 * 4096, 8 * 4096 + 1, 9 * 4096 + 77]
LARGE = [65535, 65536, 65537, (1 << 18) - 1, (1 << 18) + 1, 9 * 65536 + 5, (1 << 20) + 3]


def decode(selected, chunk, n):
    # A guard on either side shows a write outside of dst.
    around = np.full(n + 256, 0xA5, np.uint8)
    selected.rans_decode(chunk, around[128 : 128 + n])
    assert (around[:128] == 0xA5).all()
    assert (around[128 + n :] == 0xA5).all()
    return around[128 : 128 + n]


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("block_log2", [0, 7, 9, 16])
def test_round_trip(each_backend, source, n, block_log2):
    data = source(n)
    chunk = native.rans_encode(data, block_log2)
    assert np.array_equal(decode(each_backend, chunk, n), data)


@pytest.mark.parametrize("n", LARGE)
def test_round_trip_of_large_chunks(each_backend, source, n):
    if each_backend.name == "torch" and n > 70000:
        pytest.skip("the oracle takes seconds; smaller chunks take all its paths")
    data = source(n)
    assert np.array_equal(decode(each_backend, native.rans_encode(data), n), data)


@pytest.mark.parametrize("n", [*SIZES, *LARGE])
def test_encoders_agree(source, n):
    data = source(n)
    for block_log2 in (0, 7, 12):
        with backend.use("scalar") as scalar:
            expected = scalar.rans_encode(data, block_log2)
        for name in native.available_kernels():
            with backend.use(name) as other:
                assert other.rans_encode(data, block_log2) == expected, name


@given(
    st.binary(min_size=1, max_size=3000),
    st.integers(1, 6),
    st.sampled_from([0, *range(7, 17)]),
)
def test_any_bytes(data, repeat, block_log2):
    data = data * repeat
    chunks = set()
    for name in native.available_kernels():
        with backend.use(name) as selected:
            chunk = selected.rans_encode(data, block_log2)
            assert decode(selected, chunk, len(data)).tobytes() == data
            chunks.add(chunk)
    assert len(chunks) == 1
    with backend.use("torch") as oracle:
        assert decode(oracle, chunks.pop(), len(data)).tobytes() == data


@given(st.lists(st.integers(0, 12), min_size=2, max_size=256), st.integers(0, 2**32))
def test_any_distribution(log_weights, seed):
    weights = np.exp2(np.array(log_weights, np.float64))
    data = np.random.default_rng(seed).choice(len(weights), 2000, p=weights / weights.sum()).astype(np.uint8)
    for name in native.available_kernels():
        with backend.use(name) as selected:
            assert np.array_equal(decode(selected, selected.rans_encode(data, 8), 2000), data)


def test_a_constant_chunk_is_four_bytes(each_backend):
    assert each_backend.rans_encode(bytes([9]) * 100_000) == bytes([1, 1, 0, 9])


def test_wrong_raw_size(each_backend, source):
    data = source(1000)
    if (data == data[0]).all():
        pytest.skip("a constant chunk fits any size")
    chunk = each_backend.rans_encode(data)
    for n in (871, 896, 1025, 1153, 5000):  # not the groups that were encoded
        with pytest.raises(CorruptError):
            each_backend.rans_decode(chunk, np.empty(n, np.uint8))


@pytest.mark.parametrize(
    ("n", "limit"), [(1 << 20, 1.006), (1 << 18, 1.006), (1 << 17, 1.008), (1 << 16, 1.013)]
)
def test_size_is_near_the_entropy(n, limit):
    data = np.rint(np.random.default_rng(1).normal(0, 16, n)).astype(np.int8).view(np.uint8)
    counts = native.histogram(data)
    counts = counts[counts > 0].astype(float)
    entropy_bytes = -(counts * np.log2(counts / n)).sum() / 8
    assert len(native.rans_encode(data)) <= limit * entropy_bytes


def test_block_size_leaves_four_blocks():
    data = np.arange(1 << 20, dtype=np.uint8)
    for n, block_log2 in [
        (100, 14),
        (1 << 15, 14),
        (1 << 16, 14),
        (1 << 17, 15),
        (1 << 18, 16),
        (1 << 20, 16),
    ]:
        assert native.rans_encode(data[:n])[2] == block_log2


def test_bad_arguments(each_backend):
    with pytest.raises(ValueError, match="at least one symbol"):
        native.rans_encode(b"")
    for block_log2 in (1, 6, 17):
        with pytest.raises(ValueError, match="block_log2"):
            native.rans_encode(b"ab", block_log2)
    chunk = native.rans_encode(b"abc")
    with pytest.raises((ValueError, BufferError)):
        each_backend.rans_decode(chunk, b"xyz")  # not writable
    with pytest.raises((ValueError, BufferError)):
        each_backend.rans_decode(chunk, np.empty(6, np.uint8)[::2])
