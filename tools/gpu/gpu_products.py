"""How fast are products straight from codes, and what others do with the same matrices where they are installed."""

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from gpu_decode import of_memory
from gpu_lines import NotHereError, Options
from gpu_machine import Check, open_check

from spqfmt.kernels.device import MAX_TOKENS, Matrix, UniformScales

TOKENS = (1, 2, 8, MAX_TOKENS)
PEER_TOKENS = (1, MAX_TOKENS, 512)


def products(options: Options) -> None:
    """Products of INT8 codes with a scale for each row."""
    check = open_check(options)
    for n_tokens in TOKENS:
        check.case(f"int8 codes, {n_tokens} tokens", partial(_product, check, n_tokens))


def _product(check: Check, n_tokens: int) -> None:
    edge, n = check.sizes.edge, check.sizes.n_matrices
    matrix = Matrix((edge, edge), "i8", UniformScales(torch.ones(edge, device=check.device)))
    codes = [torch.randint(0, 256, (edge * edge,), dtype=torch.uint8, device=check.device) for _ in range(n)]
    x = torch.randn(n_tokens, edge, device=check.device).bfloat16()
    y = torch.empty(n_tokens, edge, device=check.device)

    def run() -> None:
        for each in codes:
            check.kernels.multiply(x, each, matrix, rows=range(edge), y=y)

    rate = n * edge * edge / check.seconds(run)
    if n_tokens == 1:
        check.figure("compute", rate)
    check.add(f"int8 codes, {n_tokens} tokens", rate / 1e9, unit="GB/s of codes", note=of_memory(check, rate))


def peers(options: Options) -> None:
    """The same edge and number of matrices by torch and bitsandbytes; ANS and zstd by nvCOMP's own coders."""
    check = open_check(options)
    for n_tokens in PEER_TOKENS:
        check.case(f"torch BF16, {n_tokens} tokens", partial(_torch_bf16, check, n_tokens))
    # torch takes no fewer than 17 rows there.
    for n_tokens in (32, 512):
        check.case(f"torch._int_mm, {n_tokens} tokens", partial(_int_mm, check, n_tokens))
    for n_tokens in PEER_TOKENS:
        check.case(f"bitsandbytes NF4, {n_tokens} tokens", partial(_bitsandbytes, check, n_tokens))
    for algorithm in ("ANS", "Zstd"):
        check.case(f"nvCOMP {algorithm}", partial(_nvcomp, check, algorithm))


def peer(name: str) -> Any:
    """Import a peer's module. Raises NotHereError."""
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise NotHereError(f"{name} does not import: {' '.join(str(error).split())[:200]}") from error


def _timed(check: Check, what: str, weight_bytes: float, run: Callable[[], object]) -> None:
    """One product with each of the matrices, in bytes of their own weights."""
    seconds = check.seconds(run)
    weights = check.sizes.n_matrices * check.sizes.edge**2
    note = f"{weights / seconds / 1e9:.3g} G weights a second"
    check.add(what, weight_bytes * weights / seconds / 1e9, unit="GB/s of codes", note=note)


def _torch_bf16(check: Check, n_tokens: int) -> None:
    edge = check.sizes.edge
    matrices = [
        torch.randn(edge, edge, device=check.device).bfloat16() for _ in range(check.sizes.n_matrices)
    ]
    x = torch.randn(n_tokens, edge, device=check.device).bfloat16()
    _timed(check, f"torch BF16, {n_tokens} tokens", 2, lambda: [x @ each.t() for each in matrices])


def _int_mm(check: Check, n_tokens: int) -> None:
    edge, int_mm = check.sizes.edge, torch._int_mm

    def codes(n_rows: int) -> torch.Tensor:
        return torch.randint(-127, 128, (n_rows, edge), dtype=torch.int8, device=check.device)

    matrices = [codes(edge) for _ in range(check.sizes.n_matrices)]
    x = codes(n_tokens)
    _timed(check, f"torch._int_mm, {n_tokens} tokens", 1, lambda: [int_mm(x, each.t()) for each in matrices])


def _bitsandbytes(check: Check, n_tokens: int) -> None:
    bnb, edge = peer("bitsandbytes"), check.sizes.edge
    weights = (torch.randn(edge, edge, device=check.device) for _ in range(check.sizes.n_matrices))
    matrices = [bnb.functional.quantize_4bit(each.bfloat16(), quant_type="nf4") for each in weights]
    x = torch.randn(n_tokens, edge, device=check.device).bfloat16()
    _timed(
        check,
        f"bitsandbytes NF4, {n_tokens} tokens",
        0.5,
        lambda: [bnb.matmul_4bit(x, codes.t(), quant_state=state) for codes, state in matrices],
    )


def _nvcomp(check: Check, algorithm: str) -> None:
    """nvCOMP's own stream of the same bytes, decoded in one go."""
    nvcomp = peer("nvidia.nvcomp")
    if not check.on_gpu:
        raise NotHereError("nvCOMP's coders are for a GPU")
    n_bytes = check.sizes.decode_bytes
    raw = np.random.default_rng(0).normal(0, 25, n_bytes).clip(-127, 127).astype(np.int8).view(np.uint8)
    codec = nvcomp.Codec(algorithm=algorithm)
    coded = codec.encode(nvcomp.as_array(torch.from_numpy(raw).to(check.device)))
    found = torch.as_tensor(codec.decode(coded, data_type="|u1"), device=check.device)
    right = torch.equal(found.cpu(), torch.from_numpy(raw))
    rate = n_bytes / check.seconds(lambda: codec.decode(coded, data_type="|u1"))
    check.add(f"nvCOMP {algorithm}", rate / 1e9, unit="GB/s", ok=right)
