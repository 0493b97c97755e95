"""Which parts are multiplied straight from their blocks, and the records for that: known from the index alone."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from spqfmt import wire
from spqfmt.kernels.device import ChunkJob
from spqfmt.kernels.device.fusing import (
    FUSED_FLOATS,
    FusedPlan,
    Kind,
    codes_of_a_symbol,
    is_group_size,
    most_record_words,
    plan_fused,
)
from spqfmt.records import TensorRecord
from spqfmt.residency.device_rates import INSTRUCTIONS_PER_32_SYMBOLS
from spqfmt.residency.device_stages import LEAST_FUSED_BLOCK_BYTES
from spqfmt.residency.parts import Part, weights_stream
from spqfmt.schemes.base import parameter_int
from spqfmt.schemes.codes import by_columns
from spqfmt.schemes.group_numbers import FLOAT_DTYPES

_GROUPS_4_INSTRUCTIONS = 42
"""For 32 symbols, of two codes each (docs/gpu-kernels.md); the other forms have about as many as decoding, or fewer."""
_PLAIN_ROLES = {"codes", "channel_order", "permutation", "row_scales", "column_scales", "scales"}
_PLAIN_ROLES |= {"zero_points", "minimums", "outlier_gaps", "outlier_values"}


def fused_codes(record: TensorRecord) -> int | None:
    """Codes (or weights, BF16) of a symbol of a tensor whose products have such kernels; None for any other."""
    if record.scheme == "dense":
        is_plain = record.dtype == "bf16" and record.by_role.keys() == {"values"} and not by_columns(record)
        return codes_of_a_symbol("bf16", record.matrix_shape[1]) if is_plain else None
    if record.scheme not in {"uniform", "grouped"} or by_columns(record):
        return None
    if not record.by_role.keys() <= _PLAIN_ROLES or {"trellis", "group_rows"} & record.parameters.keys():
        return None
    n_columns = record.matrix_shape[1]
    per_symbol = codes_of_a_symbol(weights_stream(record).dtype, n_columns)
    if per_symbol is None or record.scheme == "uniform":
        return per_symbol if per_symbol == 1 else None
    has_values = record.by_role["scales"].dtype in FLOAT_DTYPES
    size = parameter_int(record, "group_size", 1)
    return per_symbol if has_values and is_group_size(size, per_symbol, n_columns) else None


def takes_inputs(record: TensorRecord, dtype: torch.dtype) -> bool:
    """Whether such a tensor is multiplied straight by inputs of a dtype: weights as they are by their own alone."""
    return dtype in FUSED_FLOATS and (record.scheme != "dense" or dtype == torch.bfloat16)


def fused_amounts(record: TensorRecord, n_bytes: int) -> dict[str, int]:
    """What a product with `n_bytes` of such a tensor's codes, decoded, takes of DeviceRates, for one token.

    Rates are those of kernels with as many instructions as decoding has; the form that has more takes longer. Of BF16
    every other byte is a symbol.
    """
    if record.scheme == "dense":
        return {"fused": n_bytes // 2}
    usual = INSTRUCTIONS_PER_32_SYMBOLS
    own = _GROUPS_4_INSTRUCTIONS if fused_codes(record) == Kind.GROUPS_4.per_symbol else usual
    return {"fused": n_bytes * own // usual}


def fused_words(part: Part) -> int:
    """Words that the records of a part take at most; 0 where it has none."""
    if fused_codes(part.record) is None or part.scratch_bytes:
        return 0
    coded = [chunk.planes[-1] for chunk in part.chunks]
    if any(plane.codec != wire.CODEC_RANS for plane in coded):
        return 0
    n_blocks = sum(-(-plane.raw_bytes // LEAST_FUSED_BLOCK_BYTES) for plane in coded)
    return most_record_words(len(coded), n_blocks, part.stop - part.first)


def plan_of_parts(parts: Sequence[Part], jobs: Sequence[Sequence[ChunkJob]]) -> FusedPlan | None:
    """One product for parts of a tensor that lie side by side. `jobs` of each decode to its own first byte on.

    None: it has to be decoded, or its blocks are smaller than there is room for.
    """
    per_symbol = fused_codes(parts[0].record)
    if per_symbol is None or not all(map(fused_words, parts)) or not all(jobs):
        return None
    found, begin = [], 0
    for part, own in zip(parts, jobs, strict=True):
        found += [replace(job, out_offset=begin + job.out_offset) for job in own]
        begin += part.decoded_bytes
    rows = range(parts[0].first, parts[-1].stop)
    plan = plan_fused(found, per_symbol, parts[0].record.matrix_shape[1], rows)
    return None if plan is None or plan.records.numel() > sum(map(fused_words, parts)) else plan
