"""rans and raw chunks on a device, byte for byte what the native decoder gives; damage ends in the error word."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from staged import Staged, rans_chunks

from spqfmt import wire
from spqfmt.errors import CorruptError, UnsupportedError
from spqfmt.kernels import native
from spqfmt.kernels.device import chunk_job, plan_chunks, raise_fault
from spqfmt.kernels.torch_rans import FAULTS


def gaussian(n, seed=0, width=16):
    codes = np.rint(np.random.default_rng(seed).normal(0, width, n))
    return np.clip(codes, -127, 127).astype(np.int8).view(np.uint8)


def assert_decodes(kernels, raws, staged):
    assert np.array_equal(staged.decode(kernels), np.concatenate(raws))
    assert staged.error.item() == 0


def test_blocks_of_one_chunk_several_to_a_program(kernels):
    raws = [gaussian(17_000)]
    staged = Staged(rans_chunks(raws, 12))
    assert staged.plan.n_word_blocks == 8  # four of 32 groups, and 616 symbols in a program of their own
    assert_decodes(kernels, raws, staged)


@pytest.mark.parametrize("n", [1, 3, 127, 128, 129, 130, 1000])
def test_one_block_of_any_size(kernels, n):
    raws = [gaussian(n, n)]
    raws[0][0] = raws[0][-1] + 1  # two symbols, as far as there are two
    assert_decodes(kernels, raws, Staged(rans_chunks(raws, 10)))


def test_a_row_of_32769_columns(kernels):
    raws = [gaussian(32_769, width=2)]
    assert_decodes(kernels, raws, Staged(rans_chunks(raws, 13)))


def test_pairs_of_4_bit_codes(kernels):
    codes = np.clip(np.rint(np.random.default_rng(1).normal(8, 2, 6000)), 0, 15).astype(np.uint8)
    raws = [codes[0::2] | codes[1::2] << 4]
    assert_decodes(kernels, raws, Staged(rans_chunks(raws, 10)))


def test_chunks_of_every_kind_in_one_plan(kernels):
    raws = [gaussian(513, 1), np.full(77, 9, np.uint8), gaussian(130, 2), gaussian(1001, 3), gaussian(640, 4)]
    chunks = rans_chunks(raws, 8)
    chunks[2] = (raws[2].tobytes(), wire.CODEC_RAW, 130)
    staged = Staged(chunks)
    assert len(staged.plan.fills) == len(staged.plan.copies) == 1
    assert staged.plan.n_word_blocks
    assert staged.plan.n_byte_blocks
    assert_decodes(kernels, raws, staged)


def test_what_lies_between_the_chunks_of_a_plan_stays(kernels):
    raws = [gaussian(257, 1), gaussian(303, 2)]
    out = Staged(rans_chunks(raws, 8), gap=5).decode(kernels)
    assert bytes(out[257:262]) == bytes(out[565:]) == b"\xee" * 5


def test_only_frequent_and_rare_symbols(kernels):
    rare = np.where(np.random.default_rng(0).random(2000) < 0.002, 255, 0).astype(np.uint8)
    raws = [rare, np.random.default_rng(1).integers(0, 256, 2000, np.uint8)]
    assert_decodes(kernels, raws, Staged(rans_chunks(raws, 9)))


def test_no_chunks_are_no_work(kernels):
    assert Staged([]).decode(kernels).size == 0


@settings(max_examples=6)
@given(data=st.data())
def test_any_chunk_decodes_as_natively(kernels, data):
    symbols = data.draw(st.lists(st.integers(0, 255), min_size=1, max_size=40))
    n = data.draw(st.integers(1, 900))
    raw = np.resize(np.array(symbols, np.uint8), n)
    assert_decodes(kernels, [raw], Staged(rans_chunks([raw], data.draw(st.integers(7, 9)))))


def one_block(n=600):
    [(chunk, _, _)] = rans_chunks([gaussian(n)], 10)
    return bytearray(chunk)


def damaged(position, value):
    chunk = one_block()
    header = chunk_job(chunk, wire.CODEC_RANS, 0, 0, 600).header
    at = header.begins[0] + position if position >= 0 else len(chunk) + position
    chunk[at : at + len(value)] = value
    return chunk


@pytest.mark.parametrize(
    "chunk",
    [
        damaged(0, bytes(4)),
        damaged(128, b"\xff\xff"),
        damaged(4, b"\x00\x00\x01\x00"),
        damaged(-4, b"\x12\x34"),
    ],
    ids=["first state", "first word", "a state", "last words"],
)
def test_a_block_that_the_native_decoder_refuses_sets_the_error_word(kernels, chunk):
    with pytest.raises(CorruptError):
        native.rans_decode(bytes(chunk), np.empty(600, np.uint8))
    staged = Staged([(chunk, wire.CODEC_RANS, 600)])
    staged.decode(kernels)
    with pytest.raises(CorruptError, match=r"^layer 3: "):
        raise_fault(staged.error.item(), "layer 3")


def with_a_word_behind(word):
    """A block of 128 equal symbols but one takes few words; `word` and a padding word stand behind them."""
    raw = np.full(128, 7, np.uint8)
    raw[5] = 9
    chunk = bytearray(native.rans_encode(raw, 7))
    job = chunk_job(chunk, wire.CODEC_RANS, 0, 0, 128)
    directory = job.header.begins[0] - 4
    chunk += word
    chunk[directory : directory + 4] = len(chunk).to_bytes(4, "little")
    return Staged([(chunk, wire.CODEC_RANS, 128)])


def test_words_that_no_symbol_takes_are_a_fault(kernels):
    staged = with_a_word_behind(bytes(4))
    staged.decode(kernels)
    assert FAULTS[(staged.error.item() & -staged.error.item()).bit_length() - 1].endswith("after its symbols")


def test_the_error_word_keeps_what_was_found_before(kernels):
    staged = Staged(rans_chunks([gaussian(200)], 8))
    staged.error[0] = 64
    staged.decode(kernels)
    assert staged.error.item() == 64


def test_a_damaged_header_is_refused_before_a_launch():
    chunk = one_block()
    chunk[2] = 99
    with pytest.raises(CorruptError, match="block_log2"):
        chunk_job(chunk, wire.CODEC_RANS, 0, 0, 600)
    with pytest.raises(CorruptError, match="raw chunk of 5 bytes, not 6"):
        chunk_job(b"12345", wire.CODEC_RAW, 0, 0, 6)
    chunk[0] = 7
    with pytest.raises(UnsupportedError):
        chunk_job(chunk, wire.CODEC_RANS, 0, 0, 600)


def test_plans_that_do_not_fit_are_refused(kernels):
    with pytest.raises(ValueError, match="cannot lie at 2"):
        chunk_job(b"123456", wire.CODEC_RAW, 2, 0, 6)
    with pytest.raises(ValueError, match="codec 1"):
        chunk_job(b"123456", wire.CODEC_ZSTD, 0, 0, 6)
    with pytest.raises(ValueError, match="2 GiB"):
        plan_chunks([chunk_job(b"1234", wire.CODEC_RAW, 2**31 - 8, 0, 4)])
    staged = Staged(rans_chunks([gaussian(200)], 8))
    out = torch.empty(200, dtype=torch.uint8)
    for stored, to, tables in (
        (staged.stored[:-1], out, staged.tables),
        (staged.stored, out[:-1], staged.tables),
        (staged.stored, out, staged.tables[:-1]),
    ):
        with pytest.raises(ValueError, match=r"less than|pass the end|too small"):
            kernels.decode_chunks(stored, staged.plan, to, tables, staged.error)
    with pytest.raises(ValueError, match="records are"):
        staged.plan.at(staged.plan.records[1:])
