"""Method dc: Double Compression (arXiv 2502.15443).

Input channels scaled by s_j = max|X_j|^alpha (`--scaling smoothquant` divides by max|W_j|^(1 - alpha)), one step a
tensor, 8 bits, the share `--sparsity` with the least |W_ij| max|X_j| cut, W8A8 with activations per token. The scaling
makes most codes small; the entropy coder, the paper's second compression, does the rest.
"""

from spqfmt.quantize.base import MethodOptions
from spqfmt.quantize.integer import IntegerMethod

METHOD = IntegerMethod(
    "dc", MethodOptions(alpha=0.8, scaling="activation", granularity="tensor", pruning="linf", sparsity=0.0)
)
