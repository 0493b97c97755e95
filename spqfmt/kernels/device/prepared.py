"""What is prepared once for a matrix and then called for every token: checked, bound, compiled. Calls check nothing."""

from collections.abc import Callable
from typing import TypeAlias

import torch

Product: TypeAlias = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, int], None]
"""(x, codes, y, n): rows of y = x W^T + bias for n tokens straight from codes, in the dtype that `x` and `y` have.

`x` is [..., columns], `y` [..., rows of the matrix], both contiguous.
"""
RowsByNumber: TypeAlias = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, int], None]
"""(codes, ids, out, n): n rows by number, int64, into `out` [n, columns]; NaN for what is no number of a row."""
Decode: TypeAlias = Callable[[], None]
"""The chunks of a plan, from where they were when it was prepared to where they were to go."""
ALIGNMENT = 16
"""What the address of each tensor that a prepared call is given must be a multiple of."""
