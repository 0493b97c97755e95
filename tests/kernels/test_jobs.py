"""Many chunks at once: equal for any number of threads, and the lowest bad chunk is the one that is named."""

import zlib

import numpy as np
import pytest

from spqfmt import wire
from spqfmt.errors import ChecksumError, CorruptError, UnsupportedError
from spqfmt.kernels import native

SIZES = [70_000, 1, 0, 4096, 65_536, 33_333, 128, 200_001]
CODECS = [2, 2, 2, 0, 2, 0, 2, 2]


def encoded(data):
    """The chunks of `data`, each at the begin of a slot of its raw size, and the jobs that decode them."""
    stored, jobs, at = np.zeros_like(data), [], 0
    for n, wanted in zip(SIZES, CODECS, strict=True):
        codec, piece = wire.CODEC_RAW, data[at : at + n].tobytes()
        if n and wanted == wire.CODEC_RANS and len(shorter := native.rans_encode(piece)) < n:
            codec, piece = wire.CODEC_RANS, shorter
        stored[at : at + len(piece)] = np.frombuffer(piece, np.uint8)
        jobs.append((at, len(piece), codec, zlib.crc32(piece), at, n))
        at += n
    return stored, np.array(jobs, np.int64)


both_decoders = pytest.mark.parametrize("decode", [native.decode_chunks, native.decode_verified_chunks])


@both_decoders
@pytest.mark.parametrize("n_threads", [1, 2, 5])
def test_round_trip(each_backend, source, n_threads, decode):
    data = source(sum(SIZES))
    stored, jobs = encoded(data)
    out = np.empty_like(data)
    decode(stored, jobs, out, n_threads)
    assert np.array_equal(out, data)


@pytest.mark.parametrize("n_threads", [1, 2])
def test_the_lowest_bad_job_is_named(each_backend, n_threads):
    data = np.random.default_rng(0).integers(0, 9, sum(SIZES), dtype=np.uint8)
    stored, jobs = encoded(data)
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
    stored, jobs = encoded(data)
    for at in (0, 1, 6, 9, 40, 3000, int(jobs[0, 1]) - 1):
        broken = stored.copy()
        broken[at] ^= 0x10
        with pytest.raises(ChecksumError):
            native.decode_chunks(broken, jobs[:1], np.empty_like(data))


@pytest.mark.parametrize("n_threads", [1, 2])
def test_verified_bytes_are_still_checked_for_the_rules(each_backend, n_threads):
    """Whoever wrote the file may have written matching checksums over anything."""
    data = np.random.default_rng(0).integers(0, 9, sum(SIZES), dtype=np.uint8)
    stored, jobs = encoded(data)
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
    stored, jobs = encoded(data)
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
