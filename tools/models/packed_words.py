"""Layers in the arrays of GPTQ and AWQ, laid out as AutoGPTQ 0.7.1 and AutoAWQ 0.2.9 pack them, word for word."""

from __future__ import annotations

import torch

Arrays = dict[str, torch.Tensor]
GROUP = 64
"""Inputs of a group, where none is named."""
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def in_words(codes: torch.Tensor, bits: int, word_bits: int = 32) -> torch.Tensor:
    """Pack codes [n, m] along the first dimension, the first in the lowest bits; n * bits fills words."""
    n, m = codes.shape
    single = codes.long()[:, None] >> torch.arange(bits)[:, None] & 1
    words = (single.reshape(n * bits // word_bits, word_bits, m) << torch.arange(word_bits)[:, None]).sum(1)
    if word_bits < 64:
        words = torch.where(words >= 1 << (word_bits - 1), words - (1 << word_bits), words)
    return words.to({8: torch.int8, 16: torch.int16, 32: torch.int32, 64: torch.int64}[word_bits])


def grid(
    weight: torch.Tensor, of_column: torch.Tensor, bits: int, *, symmetric: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Scales f16 and zero points [groups, out] of a weight [out, in], and its codes [in, out], rounded to nearest.

    `of_column` is the group of each column. Scales and zero points are those that AutoGPTQ's quantizer finds.
    """
    largest = (1 << bits) - 1
    groups = int(of_column.max()) + 1
    parts = [weight.float()[:, of_column == k] for k in range(groups)]
    low = torch.stack([part.amin(1) for part in parts]).clamp(max=0)
    high = torch.stack([part.amax(1) for part in parts]).clamp(min=0)
    if symmetric:
        high = torch.maximum(high, -low)
        low = -high
    empty = (low == 0) & (high == 0)
    low[empty], high[empty] = -1, 1
    scales = ((high - low) / largest).half().clamp(min=2.0**-24)
    zeros = torch.full_like(low, (largest + 1) / 2) if symmetric else (-low / scales.float()).round()
    zeros = zeros.clamp(0, largest)
    spread_scales, spread_zeros = scales.float()[of_column], zeros[of_column]
    codes = (weight.float().T / spread_scales + spread_zeros).round().clamp(0, largest)
    return scales, zeros.long(), codes.long()


def gptq_arrays(
    name: str,
    codes: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor,
    *,
    bits: int,
    version: int = 1,
    of_column: torch.Tensor | None = None,
    word_bits: int = 32,
) -> Arrays:
    """The arrays of GPTQ of codes [in, out], scales and zero points [groups, out]; version 1 stores these less one."""
    stored = zeros - 1 & (1 << bits) - 1 if version == 1 else zeros
    arrays = {
        f"{name}.qweight": in_words(codes, bits, word_bits),
        f"{name}.qzeros": in_words(stored.T, bits, word_bits).T.contiguous(),
        f"{name}.scales": scales,
    }
    return arrays if of_column is None else arrays | {f"{name}.g_idx": of_column.int()}


def awq_arrays(name: str, codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor) -> Arrays:
    """The arrays of AWQ, version gemm, of codes [in, out], scales and zero points [groups, out]."""

    def turned(numbers: torch.Tensor) -> torch.Tensor:
        return in_words(numbers.reshape(len(numbers), -1, 8)[..., AWQ_ORDER].flatten(1).T, 4).T.contiguous()

    return {f"{name}.qweight": turned(codes), f"{name}.qzeros": turned(zeros), f"{name}.scales": scales}


def gptq(name: str, weight: torch.Tensor, bits: int = 4) -> Arrays:
    """Make symmetric codes with a scale for every 64."""
    if len(weight) * bits % 32:
        return {f"{name}.weight": weight}
    groups = torch.arange(weight.shape[1]) // GROUP
    scales, zeros, codes = grid(weight, groups, bits, symmetric=True)
    return gptq_arrays(name, codes, scales, zeros, bits=bits, of_column=groups)


def gptq_act_order(name: str, weight: torch.Tensor) -> Arrays:
    """Make codes of four bits whose groups are of columns by their size, the largest first."""
    groups = torch.empty(weight.shape[1], dtype=torch.long)
    groups[weight.float().square().sum(0).argsort(descending=True)] = torch.arange(weight.shape[1]) // GROUP
    scales, zeros, codes = grid(weight, groups, 4, symmetric=False)
    return gptq_arrays(name, codes, scales, zeros, bits=4, version=2, of_column=groups)


def awq(name: str, weight: torch.Tensor) -> Arrays:
    """Make codes of four bits with a scale and a zero point for every 64."""
    scales, zeros, codes = grid(weight, torch.arange(weight.shape[1]) // GROUP, 4, symmetric=False)
    return awq_arrays(name, codes, scales, zeros)
