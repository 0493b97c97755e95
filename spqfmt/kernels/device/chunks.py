"""Stored chunks as work for a device: parsed and checked on the host, laid out for one launch.

A damaged header is refused here, before anything runs. What only decoding can find ends up in the error word.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from spqfmt import wire
from spqfmt.kernels.native import Buffer
from spqfmt.kernels.rans_header import GROUP, TOTAL, RansHeader, check, read_header

READ_AHEAD_BYTES = 320
"""Readable bytes that a tensor of stored chunks has after its last chunk: a damaged block may be read as far."""
BLOCKS_AT_ONCE = 4
"""Blocks of one program; each has a warp of its own."""
TABLE_WORDS = TOTAL
"""int32 words of one decode table in the `tables` workspace."""
CUMULATIVE_WORDS = 256
BLOCK_WORDS = 7
_ALIGNMENT = 4


@dataclass(frozen=True, eq=False)
class ChunkJob:
    """One plane of a chunk: bytes of the tensor `stored` that become `raw_bytes` bytes of `out`.

    `codec` is wire.CODEC_RAW or wire.CODEC_RANS; `header` is there for rans. With `low` its bytes are the high ones of
    elements of two bytes, whose low ones lie at `low` of `stored`: `out` gets 2 raw_bytes bytes, each element rotated
    right by one bit (FORMAT.md 3.2). That is for rans chunks with blocks, `low` a multiple of 4, `out_offset` of 2.
    """

    codec: int
    stored_offset: int
    stored_bytes: int
    out_offset: int
    raw_bytes: int
    header: RansHeader | None
    low: int | None = None

    @property
    def out_bytes(self) -> int:
        """Bytes of `out` that it fills."""
        return self.raw_bytes if self.low is None else 2 * self.raw_bytes


class Fill(NamedTuple):
    """`n` bytes of `out` from `offset` on are all `symbol`."""

    offset: int
    n: int
    symbol: int


class Copy(NamedTuple):
    """`n` bytes of `stored` from `stored_offset` on go to `out`."""

    stored_offset: int
    offset: int
    n: int


@dataclass(frozen=True, eq=False)
class DecodePlan:
    """The work of one `decode_chunks`.

    `records` is int32, where the kernels run: for each table 256 words, the cumulative frequencies; then for each block
    BLOCK_WORDS words: begin of its states (in 32-bit words of `stored`), end (in 16-bit words), begin in `out` (in
    elements), symbols, number of its table, groups, low bytes (in 32-bit words of `stored`). First come
    `n_word_blocks` of bytes that begin and end at multiples of 4 in `out`, then `n_byte_blocks` of others, which are
    written one by one; then of both kinds those whose elements have two bytes, `n_pair_word_blocks` and
    `n_pair_blocks`. BLOCKS_AT_ONCE blocks after each other have the same number of groups: where there are not as many,
    the last one stands there several times.
    """

    jobs: tuple[ChunkJob, ...]
    records: torch.Tensor
    n_tables: int
    n_word_blocks: int
    n_byte_blocks: int
    n_pair_word_blocks: int
    n_pair_blocks: int
    fills: tuple[Fill, ...]
    copies: tuple[Copy, ...]

    @property
    def n_blocks(self) -> int:
        """Number of block records, of all kinds."""
        return self.n_word_blocks + self.n_byte_blocks + self.n_pair_word_blocks + self.n_pair_blocks

    @property
    def table_words(self) -> int:
        """Length of the int32 workspace `tables` that decoding needs."""
        return self.n_tables * TABLE_WORDS

    def at(self, records: torch.Tensor) -> "DecodePlan":
        """The same plan with its records elsewhere; int32 of the same length."""
        if records.dtype != torch.int32 or records.shape != self.records.shape:
            raise ValueError(f"records are {records.dtype}{list(records.shape)}")
        return replace(self, records=records)


def chunk_job(chunk: Buffer, codec: int, stored_offset: int, out_offset: int, raw_bytes: int) -> ChunkJob:
    """Parse and check a stored chunk whose checksum is right.

    The chunk will lie at `stored_offset` of a tensor, a multiple of 4, and decode to `out_offset` of another.
    CorruptError, UnsupportedError: the chunk breaks the format. ValueError: another codec, a bad offset.
    """
    stored_bytes = np.frombuffer(chunk, np.uint8).size
    if stored_offset % _ALIGNMENT or stored_offset < 0 or out_offset < 0:
        raise ValueError(f"a chunk cannot lie at {stored_offset} and decode to {out_offset}")
    if codec == wire.CODEC_RAW:
        check(stored_bytes == raw_bytes, f"raw chunk of {stored_bytes} bytes, not {raw_bytes}")
        header = None
    elif codec == wire.CODEC_RANS:
        header = read_header(chunk, raw_bytes)
    else:
        raise ValueError(f"the kernels do not decode codec {codec}")
    return ChunkJob(
        codec=codec,
        stored_offset=stored_offset,
        stored_bytes=stored_bytes,
        out_offset=out_offset,
        raw_bytes=raw_bytes,
        header=header,
    )


def plan_chunks(jobs: Sequence[ChunkJob]) -> DecodePlan:
    """Lay out jobs for one launch; `records` is a new tensor on the CPU. ValueError: offsets that int32 cannot hold."""
    ends = [max(job.stored_offset + job.stored_bytes, job.out_offset + job.out_bytes) for job in jobs]
    if max(ends, default=0) > np.iinfo(np.int32).max - READ_AHEAD_BYTES:
        raise ValueError("a launch takes less than 2 GiB of stored and of decoded bytes")
    fills: list[Fill] = []
    copies: list[Copy] = []
    tables: list[NDArray[np.int64]] = []
    blocks: dict[tuple[bool, bool], list[NDArray[np.int64]]] = {kind: [] for kind in _KINDS}
    for job in jobs:
        header = job.header
        if header is None:
            copies.append(Copy(job.stored_offset, job.out_offset, job.raw_bytes))
        elif header.symbol is not None:
            fills.append(Fill(job.out_offset, job.raw_bytes, header.symbol))
        else:
            found = _blocks(job, header, len(tables))
            in_words = (found[:, 2] % 4 == 0) & (found[:, 3] % 4 == 0)
            blocks[job.low is not None, True].append(found[in_words])
            blocks[job.low is not None, False].append(found[~in_words])
            tables.append(np.cumsum(header.frequencies) - header.frequencies)
    programs = [_in_programs(blocks[kind]) for kind in _KINDS]
    records = np.concatenate([*tables, *(own.reshape(-1) for own in programs)]).astype(np.int32)
    words, bytes_, pair_words, pairs = map(len, programs)
    return DecodePlan(
        jobs=tuple(jobs),
        records=torch.from_numpy(records),
        n_tables=len(tables),
        n_word_blocks=words,
        n_byte_blocks=bytes_,
        n_pair_word_blocks=pair_words,
        n_pair_blocks=pairs,
        fills=tuple(fills),
        copies=tuple(copies),
    )


_KINDS = ((False, True), (False, False), (True, True), (True, False))
"""Blocks by what they are written as, in their order: whether as pairs of bytes, whether in whole words."""


def _blocks(job: ChunkJob, header: RansHeader, table: int) -> NDArray[np.int64]:
    n = header.n_symbols
    before = np.cumsum(n) - n
    size = job.out_bytes // job.raw_bytes
    low = np.zeros_like(n) if job.low is None else (job.low + before) // 4
    out = job.out_offset // size + before
    begins, ends = header.begins + job.stored_offset, header.ends + job.stored_offset
    numbers = (begins // 4, ends // 2, out, n, np.full_like(n, table), -(-n // GROUP), low)
    return np.stack(numbers, 1)


def _in_programs(found: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Blocks of the same number of groups side by side, in whole programs; the longest first."""
    if not found:
        return np.empty((0, BLOCK_WORDS), np.int64)
    blocks = np.concatenate(found)
    programs = []
    for n_groups in sorted(set(blocks[:, 5].tolist()), reverse=True):
        alike = blocks[blocks[:, 5] == n_groups]
        missing = -len(alike) % BLOCKS_AT_ONCE
        programs.append(np.concatenate((alike, np.repeat(alike[-1:], missing, 0))))
    return np.concatenate(programs) if programs else blocks
