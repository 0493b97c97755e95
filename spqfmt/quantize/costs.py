"""What a calibrated method takes for matrices of any shape, measured on small ones of noise.

Time grows with rows * columns, with rows * columns^2 (feedback, products with Hessians) and with columns^3 (factors).
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from spqfmt.quantize.base import MethodOptions, Weight
from spqfmt.quantize.calibrated import Block, CalibratedMethod, Layer, Site

ROWS, COLUMNS = (128, 512), (512, 1536)
"""Shapes of the noise that is quantized."""
_TIMES = 3
_TOKENS = 1024
"""Tokens of the noise that is gathered."""


@dataclass(frozen=True)
class Costs:
    """Seconds by shape: of a weight, of that for each column of its row, and of an input's columns, also cubed.

    `token_column` and `token_square` are of gathering: of a column of a token's input, and of columns squared.
    """

    weight: float
    weight_column: float
    column: float
    column_cube: float
    token_column: float
    token_square: float

    def quantizing(self, rows: int, columns: int) -> float:
        """Seconds for matrices with so many rows in all that read one input."""
        matrix = rows * columns * (self.weight + self.weight_column * columns)
        return matrix + columns * self.column + self.factoring(columns)

    def factoring(self, columns: int) -> float:
        """Seconds for the factor of an input's Hessian."""
        return self.column_cube * columns**3

    def gathering(self, n_tokens: int, columns: int) -> float:
        """Seconds to take in so many tokens of an input."""
        return n_tokens * columns * (self.token_column + self.token_square * columns)


def costs_of(method: CalibratedMethod, options: MethodOptions) -> Costs:
    """Measure a method, in a second or some."""
    by_weight, by_column, by_token = [], [], []
    for columns in COLUMNS:
        fewer, more = (_quantizing(method, options, rows, columns) for rows in ROWS)
        row = max(0.0, more - fewer) / (ROWS[1] - ROWS[0])
        by_weight.append(row / columns)
        by_column.append(max(0.0, fewer - ROWS[0] * row) / columns)
        by_token.append(_gathering(method, options, columns) / _TOKENS / columns)
    return Costs(*_line(by_weight, 1), *_line(by_column, 2), *_line(by_token, 1))


def least_seconds(call: Callable[[], object]) -> float:
    """Seconds of the quickest of _TIMES calls."""
    seconds = []
    for _ in range(_TIMES):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def _line(found: Sequence[float], power: int) -> tuple[float, float]:
    """Start and slope, both at least 0, of what was found for each of COLUMNS to this power."""
    few, many = (columns**power for columns in COLUMNS)
    slope = max(0.0, (found[1] - found[0]) / (many - few))
    return max(0.0, found[1] - slope * many), slope


def _quantizing(method: CalibratedMethod, options: MethodOptions, rows: int, columns: int) -> float:
    # Statistics are for one time.
    blocks = [_noise(method, options, rows, columns) for _ in range(_TIMES)]
    return least_seconds(lambda: method.quantize_block(blocks.pop(), options))


def _noise(method: CalibratedMethod, options: MethodOptions, rows: int, columns: int) -> Block:
    """Make a block of one layer with the same weights and inputs each time."""
    generator = torch.Generator().manual_seed(0)
    statistics = method.accumulator(columns, options)
    statistics.add(torch.randn(1, 2 * columns, columns, generator=generator))
    matrix = torch.randn(rows, columns, generator=generator)
    layer = Layer(Weight("layer.weight", (rows, columns), "bf16", "linear"), "layer", matrix.clone)
    site = Site((layer,), statistics, lambda: iter(()))
    return Block("block", (site,), torch.nn.Linear(1, 1), {}, run_first=lambda: matrix)


def _gathering(method: CalibratedMethod, options: MethodOptions, columns: int) -> float:
    statistics, inputs = method.accumulator(columns, options), torch.randn(1, _TOKENS, columns)
    return least_seconds(lambda: statistics.add(inputs))
