"""Input columns whose weights are not rounded, because their inputs are large (LLM.int8, arXiv 2208.07339)."""

import numpy as np
import torch

from spqfmt.kernels.torch_arrays import TORCH_DTYPES, to_numpy
from spqfmt.schemes.outliers import DTYPES, Outliers


def keep_columns(matrix: torch.Tensor, columns: torch.Tensor, dtype: str) -> Outliers | None:
    """The weights of the `columns` (bool [in]) of `matrix` [out, in] as outliers; `matrix` has 0 there afterwards.

    They are kept in `dtype`, the tensor's own, or in f32 where that cannot hold outliers.
    """
    chosen = torch.nonzero(columns)[:, 0]
    if not chosen.numel():
        return None
    kind = dtype if dtype in DTYPES else "f32"
    values = matrix[:, chosen].to(TORCH_DTYPES[kind])
    matrix[:, chosen] = 0
    n_rows = matrix.shape[0]
    return Outliers(
        np.repeat(np.arange(n_rows, dtype=np.int64), chosen.numel()),
        np.tile(chosen.numpy(), n_rows),
        to_numpy(values.reshape(-1)),
        kind,
    )
