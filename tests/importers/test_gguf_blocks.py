"""Blocks of ggml as codes and numbers: the values that the gguf package gives, and the same bytes from them again."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import tiny_gguf

from spqfmt.importers._gguf_codes import grouped_codes, stays_below
from spqfmt.importers._gguf_reader import BLOCKS, FORMS, GgufTensor
from spqfmt.importers._source_file import SourceFile
from spqfmt.kernels.ggml_blocks import put_together, take_apart
from spqfmt.kernels.ggml_types import BLOCK_TYPES

Kind = gguf.GGMLQuantizationType
NUMBERS = ["0x0000", "0x8000", "0x0001", "0x8001", "0x7bff", "0xfbff", "0x7c00", "0xfc00", "0x7e01", "0xfd01"]
"""Of float16: zeros, the smallest, the largest, infinities, NaN."""


def tensor_of(kind: str, rows: int, columns: int) -> GgufTensor:
    n_elements, n_bytes = gguf.GGML_QUANT_SIZES[Kind[kind]]
    return GgufTensor(
        file=SourceFile(Path(__file__)),
        name="w",
        shape=(rows, columns),
        ggml_type=int(Kind[kind]),
        offset=0,
        n_bytes=rows * columns // n_elements * n_bytes,
    )


def same(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """In every bit, but for those of a NaN."""
    both_nan = np.isnan(ours) & np.isnan(theirs)
    return bool((both_nan | (ours.view(np.uint32) == theirs.view(np.uint32))).all())


def test_every_type_of_the_table_is_ggmls() -> None:
    for name, kind in BLOCK_TYPES.items():
        assert (kind.n_elements, kind.n_bytes) == gguf.GGML_QUANT_SIZES[Kind[name]] == BLOCKS[Kind[name]]
    # Of the other kinds ggml looks values up in a book of vectors.
    assert set(FORMS.values()) - set(BLOCK_TYPES) == {
        "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S",
    }  # fmt: skip


@pytest.mark.parametrize("kind", BLOCK_TYPES)
def test_values_are_those_of_ggml_in_every_bit(kind: str) -> None:
    per_row = 1536 // BLOCK_TYPES[kind].n_elements
    blocks = tiny_gguf.random_blocks(Kind[kind], 7 * per_row)
    codes = grouped_codes(tensor_of(kind, 7, 1536), blocks)
    theirs = gguf.quants.dequantize(blocks.reshape(7, -1), Kind[kind])
    assert same(codes.dequantize(), theirs)
    assert stays_below(codes, 65504)
    assert not stays_below(codes, float(np.abs(theirs).max()))
    assert np.abs(theirs).max() > 1e-3


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("kind", [kind for kind in BLOCK_TYPES if kind != "MXFP4"])
def test_odd_numbers_are_ggmls_too(kind: str, number: str) -> None:
    blocks = tiny_gguf.random_blocks(Kind[kind], 30)
    places = tiny_gguf.FLOATS_AT[kind]
    for k, at in enumerate(places):
        blocks[k :: len(places) + 1, at : at + 2] = np.array([int(number, 16)], "<u2").view(np.uint8)
    codes = grouped_codes(tensor_of(kind, 30, BLOCK_TYPES[kind].n_elements), blocks)
    with np.errstate(all="ignore"):
        theirs = gguf.quants.dequantize(blocks, Kind[kind])
    assert same(codes.dequantize(), theirs)
    assert not (stays_below(codes, 65504) and not np.isfinite(theirs).all())
    assert np.array_equal(put_together(BLOCK_TYPES[kind], take_apart(BLOCK_TYPES[kind], blocks)), blocks)


def test_every_scale_of_mxfp4_but_the_last_is_ggmls() -> None:
    blocks = tiny_gguf.random_blocks(Kind.MXFP4, 256)
    blocks[:, 0] = np.arange(256)
    with np.errstate(all="ignore"):
        theirs = gguf.quants.dequantize(blocks, Kind.MXFP4)
        ours = grouped_codes(tensor_of("MXFP4", 256, 32), blocks).dequantize()
    assert same(ours[:255], theirs[:255])
    # OCP calls it NaN, ggml 2^128.
    assert np.isnan(ours[255]).all()
    assert not stays_below(grouped_codes(tensor_of("MXFP4", 256, 32), blocks), 65504)


@pytest.mark.parametrize("kind", BLOCK_TYPES)
def test_blocks_are_put_together_again(kind: str) -> None:
    """More of them than are turned at once."""
    blocks = tiny_gguf.random_blocks(Kind[kind], 2500)
    if kind not in {"TQ1_0", "TQ2_0"}:
        blocks[1000:1200] = np.random.default_rng(1).integers(0, 256, blocks[1000:1200].shape, np.uint8)
    assert np.array_equal(put_together(BLOCK_TYPES[kind], take_apart(BLOCK_TYPES[kind], blocks)), blocks)


@pytest.mark.parametrize("kind", BLOCK_TYPES)
def test_no_blocks_are_none(kind: str) -> None:
    parts = take_apart(BLOCK_TYPES[kind], np.empty((0, BLOCK_TYPES[kind].n_bytes), np.uint8))
    assert put_together(BLOCK_TYPES[kind], parts).shape == (0, BLOCK_TYPES[kind].n_bytes)


@pytest.mark.parametrize(
    ("kind", "role", "code"),
    [
        *[(kind, "codes", 32) for kind in ("Q5_1", "Q5_K")],
        *[(kind, "codes", code) for kind, n in (("Q5_0", 16), ("Q3_K", 4), ("Q6_K", 32)) for code in (n, -n - 1)],
        *[("TQ1_0", "codes", code) for code in (2, -2)],
        *[(kind, "scale_codes", 64) for kind in ("Q4_K", "Q5_K")],
        *[(kind, "minimum_codes", 64) for kind in ("Q4_K", "Q5_K")],
        *[(kind, "scale_codes", code) for kind in ("Q3_K", "IQ4_XS") for code in (32, -33)],
    ],
)  # fmt: skip
def test_an_element_past_its_place_is_refused(kind: str, role: str, code: int) -> None:
    parts = take_apart(BLOCK_TYPES[kind], tiny_gguf.random_blocks(Kind[kind], 3))
    parts[role][2, -1] = code
    with pytest.raises(ValueError, match=f"past {kind}"):
        put_together(BLOCK_TYPES[kind], parts)
