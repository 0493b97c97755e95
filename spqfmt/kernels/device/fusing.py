"""Products straight from rans blocks: which matrices are such, and the blocks of one as work for a launch.

The kernel is spqfmt/kernels/cuda/fused.cu: a warp to a block, which leaves one sum for each row that it has a share of.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

import numpy as np
import torch

from spqfmt import wire
from spqfmt.kernels.device.chunks import ChunkJob
from spqfmt.kernels.device.matrix import (
    CODE_DTYPES,
    DeviceFloats,
    DeviceGroupValues,
    Matrix,
    UniformScales,
)

MAX_FUSED_TOKENS = 8
"""Tokens that a product takes at most; more are cheaper when codes are decoded first."""
FUSED_FLOATS = (torch.bfloat16, torch.float16)
"""What inputs and outputs of a product may be."""
WARPS = 16
"""Blocks of one program: they share a table, so all are of one chunk."""
BLOCK_WORDS = 8
CUMULATIVE_WORDS = 256
_CHANGES_AT_ONCE = 1 << 16
"""Outliers that are looked at together while loading: a few megabytes of memory that no plan counts."""
_SHARE = wire.RANS_SYMBOLS_PER_LANE
_TURN = wire.RANS_LANES * _SHARE


class Kind(Enum):
    """Which form of the kernel: by what weights are scaled, and the bits of a code; or bfloat16 weights as they are.

    Of those the high bytes are symbols, and the low ones lie beside.
    """

    ROWS_8 = "rows_8"
    COLUMNS_8 = "columns_8"
    GROUPS_8 = "groups_8"
    GROUPS_4 = "groups_4"
    BFLOATS = "bfloats"

    @property
    def per_symbol(self) -> int:
        """Codes of one symbol."""
        return 2 if self is Kind.GROUPS_4 else 1


def codes_of_a_symbol(code_dtype: str, n_columns: int) -> int | None:
    """Codes (or weights, bf16) of a symbol where rows of so many can be multiplied as they are decoded; None where not.

    A row has at least a turn of a warp, and whole shares of a lane.
    """
    per_symbol = {"i8": 1, "u8": 1, "i4": 2, "u4": 2, "bf16": 1}.get(code_dtype)
    if per_symbol is None or n_columns % (_SHARE * per_symbol) or n_columns < _TURN * per_symbol:
        return None
    return per_symbol


def kind_of(matrix: Matrix | DeviceFloats) -> Kind | None:
    """The form that multiplies by a matrix; None: there is none."""
    n_columns = matrix.shape[1]
    if isinstance(matrix, DeviceFloats):
        return None if codes_of_a_symbol("bf16", n_columns) is None else Kind.BFLOATS
    bits, _ = CODE_DTYPES[matrix.code_dtype]
    scales = matrix.scales
    if matrix.by_columns or codes_of_a_symbol(matrix.code_dtype, n_columns) is None:
        return None
    if isinstance(scales, UniformScales):
        kind = Kind.ROWS_8 if scales.column is None else Kind.COLUMNS_8
        if bits != 8:
            return None
    else:
        kind = Kind.GROUPS_8 if bits == 8 else Kind.GROUPS_4
        offset = scales.zero_point or scales.minimum
        if scales.levels is not None or scales.rows != 1 or not _is_plain(scales.scale, torch.float32):
            return None
        if offset is not None and not _is_plain(offset, torch.float32, torch.uint8):
            return None
        if not is_group_size(scales.group_size, kind.per_symbol, n_columns):
            return None
    return kind


def is_group_size(size: int, per_symbol: int, n_columns: int) -> bool:
    """Whether there are kernels for groups of so many columns: a lane's share lies in one."""
    return size >= n_columns or (size & (size - 1) == 0 and size >= _SHARE * per_symbol)


def _is_plain(values: DeviceGroupValues, *more: torch.dtype) -> bool:
    known = values.values.dtype in {torch.float16, torch.bfloat16, *more}
    return known and values.steps is None and values.table is None


@dataclass(frozen=True, eq=False)
class FusedPlan:
    """The blocks of `rows` of a matrix as int32 `records`, where the kernels run.

    They are the cumulative frequencies of each chunk, CUMULATIVE_WORDS; for each of `n_programs` WARPS blocks of
    BLOCK_WORDS (fused.cu, Block), those that are missing without symbols; and for each row, and behind the last, the
    number of its first sum. `jobs` decode the same codes, to bytes counted from the first row's.
    """

    per_symbol: int
    rows: range
    jobs: tuple[ChunkJob, ...]
    records: torch.Tensor
    n_programs: int
    n_slots: int

    @property
    def is_of_bfloats(self) -> bool:
        """Whether symbols are the high bytes of bfloat16 weights."""
        return self.jobs[0].low is not None

    @property
    def blocks_at(self) -> int:
        """Word of the records at which blocks begin."""
        return CUMULATIVE_WORDS * len(self.jobs)

    @property
    def first_slots_at(self) -> int:
        """Word of the records at which the rows' first sums begin."""
        return self.blocks_at + self.n_programs * WARPS * BLOCK_WORDS

    def sum_bytes(self, n_tokens: int) -> int:
        """Scratch memory for float32 sums of so many tokens at a time."""
        return 4 * self.n_slots * n_tokens

    def at(self, records: torch.Tensor) -> "FusedPlan":
        """The same plan with its records elsewhere; int32 of the same length."""
        if records.dtype != torch.int32 or records.shape != self.records.shape:
            raise ValueError(f"records are {records.dtype}{list(records.shape)}")
        return replace(self, records=records)


def plan_fused(jobs: Sequence[ChunkJob], per_symbol: int, n_columns: int, rows: range) -> FusedPlan | None:
    """Lay out the chunks of `rows`, in order, `out_offset` counted from the first row's codes.

    All of them have low bytes beside, or none. None where a chunk is not blocks of rans, or one of its blocks is no
    multiple of a lane's share. ValueError: the chunks are not the rows' codes.
    """
    blocks, tables, rows_of_sums, position, slot = [], [], [], 0, 0
    for number, job in enumerate(jobs):
        header = job.header
        if job.codec != wire.CODEC_RANS or header is None or header.symbol is not None:
            return None
        if (job.low is None) != (jobs[0].low is None) or (header.n_symbols % _SHARE).any():
            return None
        if job.out_offset * per_symbol * job.raw_bytes != position * job.out_bytes:
            raise ValueError("chunks are not one after the other")
        n = header.n_symbols * per_symbol
        at = position + np.cumsum(n) - n
        first_row = at // n_columns
        n_rows = (at + n - 1) // n_columns - first_row + 1
        slots = slot + np.cumsum(n_rows) - n_rows
        own = np.zeros((-(-n.size // WARPS) * WARPS, BLOCK_WORDS), np.int64)
        own[:, 3] = number
        begins, ends = header.begins + job.stored_offset, header.ends + job.stored_offset
        numbers = (begins // 4, ends // 2, header.n_symbols, np.full_like(n, number), slots)
        own[: n.size, :7] = np.stack((*numbers, at % n_columns, rows.start + first_row), 1)
        if job.low is not None:
            own[: n.size, 7] = (job.low + at - position) // 4
        blocks.append(own)
        tables.append(np.cumsum(header.frequencies) - header.frequencies)
        position, slot = position + int(n.sum()), slot + int(n_rows.sum())
        rows_of_sums.append(np.arange(slots[0], slot) + np.repeat(first_row - slots, n_rows))
    if position != len(rows) * n_columns:
        raise ValueError("chunks are not these rows")
    first_slots = np.searchsorted(np.concatenate(rows_of_sums), np.arange(len(rows) + 1))
    of_blocks = np.concatenate(blocks)
    records = np.concatenate((*tables, of_blocks.reshape(-1), first_slots)).astype(np.int32)
    return FusedPlan(
        per_symbol=per_symbol,
        rows=rows,
        jobs=tuple(jobs),
        records=torch.from_numpy(records),
        n_programs=len(of_blocks) // WARPS,
        n_slots=slot,
    )


def most_record_words(n_chunks: int, n_blocks: int, n_rows: int) -> int:
    """Words that the records of a plan take at most."""
    return n_chunks * (CUMULATIVE_WORDS + WARPS * BLOCK_WORDS) + n_blocks * BLOCK_WORDS + n_rows + 1


def put_changes(codes: torch.Tensor, matrix: Matrix, rows: range) -> None:
    """What each outlier of some rows is more than the weight of its code, into the matrix's `outliers.changes`.

    `codes`, uint8, are the rows' as they are decoded. For matrices that have a kind.
    """
    outliers = matrix.outliers
    assert outliers is not None
    assert outliers.changes is not None
    begin, stop = outliers.row_begin[[rows.start, rows.stop]].tolist()
    for first in range(begin, stop, _CHANGES_AT_ONCE):
        inside = slice(first, min(first + _CHANGES_AT_ONCE, stop))
        weight = _weights(codes, matrix, rows, inside)
        torch.sub(outliers.values[inside], weight, out=outliers.changes[inside])


def _weights(codes: torch.Tensor, matrix: Matrix, rows: range, inside: slice) -> torch.Tensor:
    """The weights of the codes, float32, that some outliers replace."""
    outliers = matrix.outliers
    assert outliers is not None
    numbers = torch.arange(inside.start, inside.stop, device=codes.device, dtype=torch.int32)
    row = torch.searchsorted(outliers.row_begin, numbers, right=True) - 1
    column = outliers.columns[inside].long()
    number = (row - rows.start) * matrix.shape[1] + column
    bits, signed = CODE_DTYPES[matrix.code_dtype]
    code = codes[number * bits // 8].int() >> (number * bits % 8) & ((1 << bits) - 1)
    if signed:
        code = (code ^ 1 << (bits - 1)) - (1 << (bits - 1))
    weight, scales = code.float(), matrix.scales
    if isinstance(scales, UniformScales):
        weight *= scales.row[row]
        if scales.column is not None:
            weight *= scales.column[column]
    else:
        group = column // scales.group_size
        if scales.zero_point is not None:
            weight -= scales.zero_point.values[row, group].float()
        weight *= scales.scale.values[row, group].float()
        if scales.minimum is not None:
            weight -= scales.minimum.values[row, group].float()
    return weight
