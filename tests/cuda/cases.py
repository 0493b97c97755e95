"""Products straight from blocks on the emulator: what it is given, and the stated order of additions."""

from dataclasses import dataclass

import numpy as np
import torch
from emulated import EmulatedDriver
from numpy.typing import NDArray

from spqfmt.kernels.cuda.launches import prepare_fused
from spqfmt.kernels.device import DeviceFloats, Matrix, UniformScales
from spqfmt.kernels.device.fusing import FusedPlan

Floats = NDArray[np.float32]
F32 = np.float32


@dataclass
class Case:
    """A matrix, its codes or weights [rows, columns] as numbers, and its chunks as they are stored."""

    matrix: Matrix | DeviceFloats
    codes: NDArray[np.int64] | Floats
    stored: torch.Tensor
    plan: FusedPlan


def product(
    driver: EmulatedDriver,
    given: Case,
    x: torch.Tensor,
    bias: torch.Tensor | None = None,
) -> tuple[torch.Tensor, int]:
    """What the kernels make of it, and what they say is wrong."""
    y = torch.zeros(len(x), given.matrix.shape[0], dtype=x.dtype)
    sums = torch.full((given.plan.n_slots, 8), torch.nan)
    error = torch.zeros(1, dtype=torch.int32)
    driver.give([given.stored, given.plan.records, x, y, sums, error, bias, *_of_matrix(given.matrix)])
    run = prepare_fused(
        driver,
        given.stored,
        given.plan,
        given.matrix,
        x.dtype,
        bias=bias,
        sums=sums,
        error=error,
        is_one=len(x) == 1,
    )
    run(x, given.stored, y, len(x))
    return y, int(error)


def _of_matrix(matrix: Matrix | DeviceFloats) -> list[torch.Tensor | None]:
    if isinstance(matrix, DeviceFloats):
        return []
    scales, outliers = matrix.scales, matrix.outliers
    of_scales = (
        [scales.row, scales.column]
        if isinstance(scales, UniformScales)
        else [v.values for v in (scales.scale, scales.zero_point, scales.minimum) if v is not None]
    )
    of_outliers = [] if outliers is None else [outliers.row_begin, outliers.columns, outliers.changes]
    return [*of_scales, *of_outliers]


def ints(n_tokens: int, n_columns: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """Inputs with which all sums are exact."""
    generator = torch.Generator().manual_seed(n_tokens)
    return torch.randint(-4, 5, (n_tokens, n_columns), generator=generator).to(dtype)


def exact(given: Case, weights: NDArray[np.float64], x: torch.Tensor) -> torch.Tensor:
    """Sums that no rounding changes, in x's dtype."""
    assert weights.shape == given.matrix.shape
    return (x.double() @ torch.from_numpy(weights).t()).to(x.dtype)


def fused(a: Floats, b: Floats, c: Floats) -> Floats:
    """a * b + c, rounded once."""
    found: Floats = (a.astype(np.float64) * b + c).astype(F32)
    return found


def in_order(weights: Floats, x: Floats, block: int) -> Floats:
    """Lanes' shares, turn by turn; lanes of a warp by halves; blocks of a row one after the other."""
    n_rows, n_columns = weights.shape
    codes = weights.reshape(-1)
    y = np.zeros((len(x), n_rows), F32)
    for token, inputs in enumerate(x):
        total = np.zeros(n_rows, F32)
        for begin in range(0, codes.size, block):
            stop = min(begin + block, codes.size)
            for row in range(begin // n_columns, (stop - 1) // n_columns + 1):
                lanes = np.zeros(32, F32)
                for at in range(max(begin, row * n_columns), min(stop, (row + 1) * n_columns), 4):
                    c, i = codes[at : at + 4], inputs[at % n_columns : at % n_columns + 4]
                    dot = F32(c[0] * i[0])
                    for k in range(1, 4):
                        dot = fused(c[k], i[k], dot)
                    lanes[(at - begin) % 128 // 4] += dot
                for half in (16, 8, 4, 2, 1):
                    lanes = lanes + lanes[np.arange(32) ^ half]
                total[row] += lanes[0]
        y[token] = total
    return y
