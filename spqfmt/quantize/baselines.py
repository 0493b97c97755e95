"""The baselines that the papers compare with, each a row: 8 bits and activations per token where they do not say other.

`--pruning`, `--scaling` and the other options combine them: Wanda followed by SmoothQuant is
`--method smoothquant --pruning wanda --sparsity 0.5`.
"""

from spqfmt.quantize.base import MethodOptions
from spqfmt.quantize.integer import SAR_TAKES, TAKES, IntegerMethod

METHOD_ROWS = (
    # SmoothQuant, arXiv 2211.10438.
    IntegerMethod("smoothquant", MethodOptions(alpha=0.5, scaling="smoothquant")),
    # Pruned without scaling: by magnitude, Wanda (arXiv 2306.11695), SparseGPT (arXiv 2301.00774).
    IntegerMethod("magnitude", MethodOptions(pruning="magnitude", sparsity=0.5, activations="float")),
    IntegerMethod("wanda", MethodOptions(pruning="wanda", sparsity=0.5, activations="float")),
    IntegerMethod("sparsegpt", MethodOptions(pruning="sparsegpt", sparsity=0.5, activations="float")),
    # Columns with inputs beyond the threshold keep their dtype (LLM.int8). Their inputs would be kept too, which
    # quantized activations cannot say: float activations.
    IntegerMethod(
        "llm_int8",
        MethodOptions(threshold=6.0, activations="float"),
        takes=TAKES | SAR_TAKES | {"threshold"},
    ),
    # ZeroQuant, arXiv 2206.01861.
    IntegerMethod("zeroquant", MethodOptions(granularity="group", group_size=128)),
)
