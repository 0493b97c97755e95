"""Many chunks at once: equal for any number of threads, and the lowest bad chunk is the one that is named."""

import zlib

import numpy as np
import pytest

from spqfmt import wire
from spqfmt.errors import ChecksumError, CorruptError, UnsupportedError
from spqfmt.kernels import native

SIZES = [70_000, 1, 0, 4096, 65_536, 33_333, 128, 200_001]
CODECS = [2, 2, 2, 0, 2, 0, 2, 2]


def encoded(data, n_threads=1):
    offsets = np.concatenate(([0], np.cumsum(SIZES)[:-1]))
    jobs = np.column_stack((offsets, SIZES, CODECS, offsets)).astype(np.int64)
    stored = np.zeros_like(data)
    results = native.encode_chunks(data, jobs, stored, n_threads=n_threads)
    used = np.zeros(len(data), bool)
    for offset, n in zip(offsets, results[:, 1], strict=True):
        used[offset : offset + n] = True
    stored[~used] = 0  # what a slot does not use is unspecified
    columns = (offsets, results[:, 1], results[:, 0], results[:, 2], offsets, SIZES)
    return stored, results, np.column_stack(columns).astype(np.int64)


both_decoders = pytest.mark.parametrize("decode", [native.decode_chunks, native.decode_verified_chunks])


@both_decoders
@pytest.mark.parametrize("n_threads", [1, 2, 5])
def test_round_trip(each_backend, source, n_threads, decode):
    data = source(sum(SIZES))
    stored, results, jobs = encoded(data, n_threads)
    out = np.empty_like(data)
    decode(stored, jobs, out, n_threads)
    assert np.array_equal(out, data)
    one_thread = encoded(data)
    assert np.array_equal(stored, one_thread[0])
    assert np.array_equal(results, one_thread[1])


def test_results_describe_the_slots(source):
    data = source(sum(SIZES))
    stored, results, jobs = encoded(data)
    for (offset, n, codec, crc, _, raw_bytes), (_, _, wanted) in zip(jobs, results, strict=True):
        piece, raw = stored[offset : offset + n], data[offset : offset + raw_bytes]
        assert crc == wanted == zlib.crc32(piece)
        if codec == wire.CODEC_RAW:
            assert np.array_equal(piece, raw)
        else:
            assert n < raw_bytes
            assert piece.tobytes() == native.rans_encode(raw)


def test_what_does_not_shrink_is_raw():
    noise = np.random.default_rng(0).integers(0, 256, 300_000, dtype=np.uint8)
    assert len(native.rans_encode(noise)) > len(noise)
    jobs = np.array([[0, len(noise), wire.CODEC_RANS, 0]])
    assert native.encode_chunks(noise, jobs, np.empty_like(noise))[0, :2].tolist() == [
        wire.CODEC_RAW,
        len(noise),
    ]


@pytest.mark.parametrize("n_threads", [1, 2])
def test_the_lowest_bad_job_is_named(each_backend, n_threads):
    data = np.random.default_rng(0).integers(0, 9, sum(SIZES), dtype=np.uint8)
    stored, _, jobs = encoded(data)
    bad = jobs.copy()
    bad[[4, 6], 3] ^= 1
    with pytest.raises(ChecksumError) as caught:
        native.decode_chunks(stored, bad, np.empty_like(data), n_threads)
    assert caught.value.job == 4

    cut = jobs.copy()  # a chunk that breaks a rule, with a checksum that fits
    cut[4, 1] -= 4
    cut[4, 3] = zlib.crc32(stored[cut[4, 0] : cut[4, 0] + cut[4, 1]])
    with pytest.raises(CorruptError) as caught:
        native.decode_chunks(stored, cut, np.empty_like(data), n_threads)
    assert not isinstance(caught.value, ChecksumError)
    assert caught.value.job == 4


def test_damage_is_a_checksum_error(each_backend):
    """Also where the damaged bytes break a rule of the codec first."""
    data = np.random.default_rng(0).integers(0, 9, sum(SIZES), dtype=np.uint8)
    stored, _, jobs = encoded(data)
    for at in (0, 1, 6, 9, 40, 3000, int(jobs[0, 1]) - 1):
        broken = stored.copy()
        broken[at] ^= 0x10
        with pytest.raises(ChecksumError):
            native.decode_chunks(broken, jobs[:1], np.empty_like(data))


@pytest.mark.parametrize("n_threads", [1, 2])
def test_verified_bytes_are_still_checked_for_the_rules(each_backend, n_threads):
    """Whoever wrote the file may have written matching checksums over anything."""
    data = np.random.default_rng(0).integers(0, 9, sum(SIZES), dtype=np.uint8)
    stored, _, jobs = encoded(data)
    begin, n_bytes = jobs[7, :2]
    for at in (0, 6, 9, 40, n_bytes // 2, n_bytes - 1):
        broken = stored.copy()
        broken[begin + at] ^= 0x10
        with pytest.raises((CorruptError, UnsupportedError)) as caught:
            native.decode_verified_chunks(broken, jobs, np.empty_like(data), n_threads)
        assert caught.value.job == 7


@both_decoders
@pytest.mark.parametrize(
    ("column", "value"),
    [
        (0, -1),
        (0, 1 << 40),
        (1, -1),
        (1, 1 << 62),
        (2, 1),
        (2, 3),
        (4, -1),
        (4, 1 << 40),
        (5, -4),
        (5, 1 << 62),
    ],
)
def test_jobs_must_fit_their_buffers(column, value, decode):
    data = np.zeros(sum(SIZES), np.uint8)
    stored, _, jobs = encoded(data)
    jobs[3, column] = value
    with pytest.raises(ValueError, match="job 3"):
        decode(stored, jobs, data)


@both_decoders
def test_a_raw_chunk_has_its_raw_size(decode):
    data = np.arange(10, dtype=np.uint8)
    job = np.array([[0, 9, wire.CODEC_RAW, zlib.crc32(data[:9]), 0, 10]])
    with pytest.raises(CorruptError, match="another size"):
        decode(data, job, np.empty(10, np.uint8))


def test_jobs_are_a_matrix_of_int64():
    for jobs in (np.zeros((1, 5), np.int64), np.zeros((1, 6), np.int32), np.zeros(6, np.int64)):
        with pytest.raises(ValueError, match="int64"):
            native.decode_chunks(b"", jobs, bytearray())


def test_no_more_threads_than_usable():
    assert native.usable_threads() >= 1
