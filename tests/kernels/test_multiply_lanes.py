"""Products with codes of ggml's "K" blocks, whose scales are bytes times steps: sums of integers for each group."""

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from spqfmt.kernels import native
from spqfmt.kernels.dequantize import FLOATS, dequantize_grouped
from spqfmt.kernels.multiply import NO_BIAS, CodeMatrix, GroupNumbers, Groups

SUPER = 256
IQ4 = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)


class Kind(NamedTuple):
    """Codes, columns of a group, the bytes of scales and of minimums, values of codes."""

    codes: str
    size: int
    scales: str
    minimums: str | None = None
    values: Any = None


KINDS = {
    "Q2_K": Kind("u2", 16, "u8", "u8"),
    "Q3_K": Kind("i4", 16, "i8"),
    "Q4_K": Kind("u4", 32, "u8", "u8"),
    "Q6_K": Kind("i8", 16, "i8"),
    "IQ4_XS": Kind("u4", 32, "i8", values=IQ4),
    "bytes": Kind("u8", 16, "u8", "i8"),
    "levels": Kind("u4", 16, "u8", values=IQ4 / 64),
}
"""Those of ggml that take lanes, and what a file may have besides."""


class Numbers(NamedTuple):
    """Numbers of groups as they are stored, and what they are, float32 [rows, groups]."""

    stored: GroupNumbers
    values: Any


def numbers(
    generator: np.random.Generator, rows: int, columns: int, size: int, dtype: str, *, hostile: bool
) -> Numbers:
    groups = (rows, columns // size)
    if hostile:
        extremes = [255, 255] if dtype == "u8" else [-128, 127]
        values = generator.choice(np.array(extremes, np.uint8 if dtype == "u8" else np.int8), groups)
    else:
        values = (
            generator.integers(0, 256, groups).astype(np.uint8).view(np.uint8 if dtype == "u8" else np.int8)
        )
    steps = generator.normal(0, 1, (rows, columns // SUPER)).astype(np.float16)
    steps[0] = 2**-20  # a subnormal half
    stored = GroupNumbers(values, dtype, steps.reshape(-1), "f16", tile=(1, SUPER // size))
    wide = np.repeat(steps.astype(np.float32), SUPER // size, 1) * values.astype(np.float32)
    return Numbers(stored, wide)


class Case(NamedTuple):
    """A matrix, its codes, and its weights as they are dequantized."""

    matrix: CodeMatrix
    codes: Any
    weights: Any
    magnitudes: Any
    """Of what is added and subtracted apart, at least."""


def made(kind: Kind, rows: int, columns: int, *, hostile: bool) -> Case:
    generator = np.random.default_rng(3)
    bits = int(kind.codes[1])
    codes = generator.integers(0, 256, rows * columns * bits // 8, np.uint8)
    if hostile:
        codes = generator.choice(np.array([0x80, 0x7F, 0xFF, 0], np.uint8), codes.size)
    scale = numbers(generator, rows, columns, kind.size, kind.scales, hostile=hostile)
    minimum = None
    if kind.minimums:
        minimum = numbers(generator, rows, columns, kind.size, kind.minimums, hostile=hostile)
    groups = Groups(kind.size, scale.stored, minimum=None if minimum is None else minimum.stored)
    matrix = CodeMatrix((rows, columns), kind.codes, groups=groups, values=kind.values)
    weights = np.empty((rows, columns), np.float32)
    dequantize_grouped(
        codes,
        kind.codes,
        kind.size,
        scale.values,
        weights,
        "f32",
        minimum=None if minimum is None else minimum.values,
        values=kind.values,
    )
    apart = np.abs(weights) + (1 << bits) * np.abs(np.repeat(scale.values, kind.size, 1))
    if minimum is not None:
        apart += 2 * np.abs(np.repeat(minimum.values, kind.size, 1))
    return Case(matrix, codes, weights, apart)


def rounded(x: Any, size: int) -> Any:
    """Activations in units of 1/8192 of the largest of each group, as these products take them."""
    wide = x.reshape(len(x), -1, size)
    largest = np.abs(wide).max(-1, keepdims=True)
    factor = np.divide(np.float32(8192), largest, out=np.zeros_like(largest), where=largest > 0)
    return (np.rint(wide * factor).astype(np.float64) * (largest / np.float32(8192))).reshape(x.shape)


def every_product(case: Case, x: torch.Tensor, counts: tuple[int, ...], *, rounds: bool = True) -> list[Any]:
    """Outputs of the first so many tokens by every instruction set and number of threads."""
    found, before = [], native.active_kernels()
    try:
        for kernels in native.available_kernels():
            native.select_kernels(kernels)
            for n_threads in (1, 2):
                for n in counts:
                    y = torch.full((n, case.matrix.shape[0]), torch.nan, dtype=x.dtype)
                    there = (x.data_ptr(), FLOATS["f16" if x.dtype == torch.half else "bf16"][0], n)
                    case.matrix.multiply(
                        case.codes, 0, case.matrix.shape[0], *there, y.data_ptr(), *NO_BIAS, n_threads, rounds
                    )
                    found.append(y)
    finally:
        native.select_kernels(before)
    return found


# One supergroup, an odd number (two make a block of groups of 32), and more than are read at a time.
@pytest.mark.parametrize("columns", [256, 768, 4352])
@pytest.mark.parametrize("hostile", [False, True])
@pytest.mark.parametrize("name", KINDS)
def test_products_are_those_of_rounded_activations(name: str, columns: int, hostile: bool) -> None:
    """Hostile ones have the largest codes and scales that there are, and activations of one size: the largest sums."""
    rows, tokens = 7, 6
    case = made(KINDS[name], rows, columns, hostile=hostile)
    x = torch.randn(tokens, columns, generator=torch.Generator().manual_seed(5)).bfloat16()
    if hostile:
        x = x.sign()
    x[1] = 0
    used = rounded(x.float().numpy(), KINDS[name].size)
    due = used @ case.weights.T.astype(np.float64)
    bound = np.abs(used) @ case.magnitudes.T.astype(np.float64)
    found = every_product(case, x, (1, tokens))
    for y in found:
        n = len(y)
        assert (np.abs(y.double().numpy() - due[:n]) <= 2**-8 * np.abs(due[:n]) + 3e-6 * bound[:n]).all()
        # The same bits from every instruction set, for any number of threads and of other tokens.
        assert torch.equal(y, found[1][:n])


def test_activations_are_as_exact_as_bfloat16_has_them() -> None:
    """Where one of a group is far larger than the others, too: these lose what is below 1/16384 of it."""
    case = made(KINDS["Q4_K"], 9, 512, hostile=False)
    x = torch.randn(1, 512, generator=torch.Generator().manual_seed(6)).half()
    x[0, ::32] *= 20
    x *= 1e-3
    due = x.double().numpy() @ case.weights.T.astype(np.float64)
    y = every_product(case, x, (1,))[0].double().numpy()
    largest = x.double().abs().view(1, -1, 32).amax(-1).repeat_interleave(32, 1).numpy()
    allowed = (largest / 16384) @ np.abs(case.weights).T + 2**-11 * np.abs(due)
    assert (np.abs(y - due) <= allowed).all()
    assert not np.array_equal(y, every_product(case, x, (1,), rounds=False)[0].double().numpy())


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_token_that_is_no_number_spoils_no_other(value: float) -> None:
    case = made(KINDS["Q6_K"], 5, 512, hostile=False)
    x = torch.randn(5, 512, generator=torch.Generator().manual_seed(7)).bfloat16()
    whole = every_product(case, x, (5,))[0]
    x[1, 300] = value
    spoiled = every_product(case, x, (5,))[0]
    assert not spoiled[1].isfinite().any()
    assert torch.equal(spoiled[[0, 2, 3, 4]], whole[[0, 2, 3, 4]])


def test_runs_of_rows_give_the_bits_of_all() -> None:
    """Also where they begin within codes, which lie anywhere in memory."""
    case = made(KINDS["Q4_K"], 11, 768, hostile=False)
    x = torch.randn(2, 768, generator=torch.Generator().manual_seed(8)).bfloat16()
    whole, apart = every_product(case, x, (2,))[0], torch.full((2, 11), torch.nan).bfloat16()
    for first, stop in ((0, 3), (3, 4), (4, 11)):
        part = np.empty((stop - first) * 384 + 1, np.uint8)[1:]
        part[:] = case.codes[first * 384 : stop * 384]
        there = (x.data_ptr(), FLOATS["bf16"][0], 2, apart.data_ptr())
        case.matrix.multiply(part, first, stop - first, *there, *NO_BIAS, 1, True)
    assert torch.equal(apart, whole)
