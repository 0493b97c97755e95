"""Damaged chunks: an error that says why, or the right bytes; never anything else."""

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spqfmt.errors import CorruptError, UnsupportedError
from spqfmt.kernels import backend, native

N = 300
DATA = np.random.default_rng(5).choice(6, N, p=[0.5, 0.2, 0.1, 0.1, 0.05, 0.05]).astype(np.uint8)
CHUNK = native.rans_encode(DATA, 8)  # two blocks, the last one with a group that is not full
DIRECTORY = 8 + -(-struct.unpack_from("<H", CHUNK, 6)[0] // 4) * 4
FIRST_BLOCK = DIRECTORY + 4 * 2
OUT_GUARD = 0xA5


def outcome(selected, chunk, n=N):
    """The bytes, or None for an error."""
    around = np.full(n + 512, OUT_GUARD, np.uint8)
    try:
        selected.rans_decode(chunk, around[256 : 256 + n])
    except (CorruptError, UnsupportedError):
        return None
    finally:
        assert (around[:256] == OUT_GUARD).all()
        assert (around[256 + n :] == OUT_GUARD).all()
    return around[256 : 256 + n].tobytes()


def changed(offset, value):
    chunk = bytearray(CHUNK)
    chunk[offset : offset + len(value)] = value
    return bytes(chunk)


def test_every_truncation(each_backend):
    for n_bytes in range(len(CHUNK)):
        assert outcome(each_backend, CHUNK[:n_bytes]) is None, n_bytes


def test_every_extension(each_backend):
    for n_bytes in (1, 2, 4, 128, 400):
        assert outcome(each_backend, CHUNK + bytes(n_bytes)) is None


def test_every_bit_flip(each_backend):
    for bit in range(8 * len(CHUNK)):
        chunk = bytearray(CHUNK)
        chunk[bit // 8] ^= 1 << bit % 8
        got = outcome(each_backend, bytes(chunk))
        assert got is None or got == DATA.tobytes(), bit


def test_every_flip_of_a_constant_chunk(each_backend):
    chunk = native.rans_encode(bytes([7]) * N)
    for bit in range(24):
        assert (
            outcome(each_backend, (int.from_bytes(chunk, "little") ^ 1 << bit).to_bytes(4, "little")) is None
        )


@given(st.binary(max_size=600), st.integers(1, 700))
def test_noise(chunk, n):
    for name in backend.available():
        with backend.use(name) as selected:
            outcome(selected, chunk, n)


@given(st.data())
def test_noise_in_the_blocks(data):
    """Past the header all words are noise: every backend refuses it, or all read the same."""
    chunk = bytearray(CHUNK)
    begin = data.draw(st.integers(FIRST_BLOCK, len(chunk) - 1))
    noise = data.draw(st.binary(min_size=1, max_size=len(chunk) - begin))
    chunk[begin : begin + len(noise)] = noise
    results = set()
    for name in backend.available():
        with backend.use(name) as selected:
            results.add(outcome(selected, bytes(chunk)))
    assert len(results) == 1


@pytest.mark.parametrize(
    ("offset", "value", "reason"),
    [
        (1, b"\x02", "kind"),
        (2, b"\x06", "block_log2"),
        (2, b"\x11", "block_log2"),
        (3, b"\x01", "reserved"),
        (4, b"\x05", "first_symbol"),
        (6, b"\xff\xff", "table"),
        (6, b"\x01\x00", "table"),
        (DIRECTORY - 1, b"\xff", "zero"),
        (DIRECTORY, struct.pack("<I", FIRST_BLOCK + 2), "multiple of 4"),
        (DIRECTORY, struct.pack("<I", FIRST_BLOCK + 124), "shorter"),
        (DIRECTORY, struct.pack("<I", 2**32 - 4), "block"),
        (FIRST_BLOCK, struct.pack("<I", 65535), "first state"),
    ],
)
def test_reasons(each_backend, offset, value, reason):
    with pytest.raises(CorruptError, match=reason):
        each_backend.rans_decode(changed(offset, value), np.empty(N, np.uint8))


def test_an_unknown_coder_is_unsupported(each_backend):
    with pytest.raises(UnsupportedError) as caught:
        each_backend.rans_decode(changed(0, b"\x02"), np.empty(N, np.uint8))
    assert caught.value.feature == "rans coder 2"


def test_words_of_the_next_block_do_not_help(each_backend):
    """A block that is cut short must not borrow the words behind it, even where they are the right ones."""
    chunk = bytearray(CHUNK)
    end = struct.unpack_from("<I", chunk, DIRECTORY)[0]
    struct.pack_into("<I", chunk, DIRECTORY, end - 4)
    assert outcome(each_backend, bytes(chunk)) is None


def test_a_huge_raw_size_allocates_nothing(each_backend):
    """The raw size must be covered by the directory before anything is decoded: checked by an error at once."""
    if each_backend.name != "torch":
        with pytest.raises(CorruptError):
            each_backend.rans_decode(CHUNK, np.empty(1 << 28, np.uint8))


def test_of_two_damages_all_native_kernels_name_the_same():
    """However many blocks they decode at once: a first state is refused before a last one."""
    chunk = bytearray(native.rans_encode(np.tile(DATA, 4)[:1000], 8))
    directory = 8 + -(-struct.unpack_from("<H", chunk, 6)[0] // 4) * 4
    ends = struct.unpack_from("<4I", chunk, directory)
    chunk[directory + 16] ^= 1  # block 0, which ends in other states then
    chunk[ends[1] : ends[1] + 4] = bytes(4)
    said = set()
    for name in backend.available():
        with backend.use(name) as selected:
            if selected.rans_decode is native.rans_decode:
                with pytest.raises(CorruptError) as caught:
                    selected.rans_decode(bytes(chunk), np.empty(1000, np.uint8))
                said.add(str(caught.value))
    assert said == {"rans block 2: a first state is below 2^16"}
