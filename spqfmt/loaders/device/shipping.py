"""The form in which a part goes to a device, and what is known of it there.

Sent are the stored bytes, but zstd frames apart from each other, or decoded where the device cannot. Checksums are
checked on the host, over the stored bytes as they come from the file; headers too, once: what has the same checksum the
next time has the same header. What goes together, with the records that the kernels decode by: group_shipping.py.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from spqfmt import wire
from spqfmt.cached import cached_property
from spqfmt.codecs.base import Bytes
from spqfmt.codecs.registry import CODECS_BY_ID, decode_into
from spqfmt.codecs.zstd import FRAME_BYTES, frames
from spqfmt.container.planes import check
from spqfmt.errors import FormatError
from spqfmt.kernels.device import READ_AHEAD_BYTES, ChunkJob, chunk_job
from spqfmt.kernels.device.chunks import BLOCK_WORDS, BLOCKS_AT_ONCE, CUMULATIVE_WORDS, TABLE_WORDS
from spqfmt.kernels.device.merging import TILE
from spqfmt.kernels.device.merging import record_words as merge_words
from spqfmt.kernels.device.unfolding import RECORD_WORDS as PATH_WORDS
from spqfmt.kernels.device.unfolding import PathJob, n_programs
from spqfmt.kernels.nvcomp import ZstdFrames
from spqfmt.loaders.device.fused import fused_amounts, fused_words
from spqfmt.residency.groups import ALIGNMENT, aligned
from spqfmt.residency.inventory import Load
from spqfmt.residency.parts import Part

FRAME_ALIGNMENT = 16
"""nvCOMP: "if in doubt, use 16-byte alignment"."""
LEAST_BLOCK_BYTES = 1 << 12
"""Room for records is planned before blocks are seen, for blocks of this size; ours are four times as large."""


class Jobs(NamedTuple):
    """What decodes chunks once they are there: jobs of the kernels, and frames for nvCOMP."""

    chunks: list[ChunkJob]
    zstd: list[ZstdFrames]


class Shipment:
    """One part as it is sent. `zstd_on_device`: the device decodes zstd frames itself."""

    def __init__(self, part: Part, *, zstd_on_device: bool) -> None:
        self.part = part
        self.zstd_on_device = zstd_on_device

    @cached_property
    def as_stored(self) -> bool:
        """Whether the bytes that are sent are the stored ones."""
        return all(CODECS_BY_ID[codec].is_native for codec in np.unique(self.part.jobs[:, 2]).tolist())

    @cached_property
    def jobs(self) -> NDArray[np.int64]:
        """native.DECODE_JOB_COLUMNS: from the sent bytes to the part's decoded or scratch bytes."""
        if self.as_stored:
            return self.part.jobs
        jobs = self.part.jobs.copy()
        at = 0
        for job in jobs:
            if self._is_on_device(int(job[2])):
                job[1] += FRAME_ALIGNMENT * -(-job[5] // FRAME_BYTES)
            elif not CODECS_BY_ID[int(job[2])].is_native:
                job[1], job[2] = job[5], wire.CODEC_RAW
            job[0] = at
            at += aligned(int(job[1]))
        return jobs

    def _is_on_device(self, codec: int) -> bool:
        """Whether the device decodes the frames of a codec that the kernels do not."""
        return codec == wire.CODEC_ZSTD and self.zstd_on_device

    @cached_property
    def payload_bytes(self) -> int:
        """Bytes that are sent, without records."""
        return int(self.jobs[-1, 0] + self.jobs[-1, 1])

    @cached_property
    def n_tables(self) -> int:
        """Decode tables that it needs at most."""
        return int((self.jobs[:, 2] == wire.CODEC_RANS).sum())

    @cached_property
    def record_words(self) -> int:
        """Length of the int32 records that decoding it takes at most."""
        raw = self.jobs[self.jobs[:, 2] == wire.CODEC_RANS, 5]
        n_blocks = int((-(-raw // LEAST_BLOCK_BYTES)).sum())
        # Programs are filled up for each number of groups that occurs: of whole blocks, of each chunk's last one.
        sizes: int = 2 * (wire.RANS_MAX_BLOCK_LOG2 - LEAST_BLOCK_BYTES.bit_length() + 2 + raw.size)
        blocks = self.n_tables * CUMULATIVE_WORDS + (n_blocks + sizes * (BLOCKS_AT_ONCE - 1)) * BLOCK_WORDS
        programs = sum(n_programs(*job[1:]) for job in self.paths(0))
        fused = fused_words(self.part)
        return (blocks if raw.size else 0) + self._merge_words + PATH_WORDS * programs + fused

    def paths(self, decoded: int) -> list[PathJob]:
        """What makes codes of path codes, where the part is decoded to byte `decoded`; nothing where it has codes."""
        part, tiles = self.part, self.part.tiles
        if tiles is None:
            return []
        width = part.record.matrix_shape[1]
        return [
            PathJob(decoded + (some.start - part.first) * width, len(some), width, height)
            for some, height, _ in tiles.pieces(range(part.first, part.stop))
        ]

    @cached_property
    def _merge_words(self) -> int:
        size = wire.DTYPES[self.part.dtype].bits // 8
        tiles = sum(-(-merge.n_bytes // (size * TILE)) for merge in self.part.merges)
        if not self.part.merges:
            # A rans chunk of one symbol is such a plane too: it takes less than its blocks would.
            raw = self.jobs[self.jobs[:, 2] == wire.CODEC_RAW, 5]
            tiles, size = int((-(-raw // TILE)).sum()), 1
        return tiles * merge_words(size)

    @cached_property
    def n_bytes(self) -> int:
        """All that is sent at most, with its share of the records: a multiple of residency.groups.ALIGNMENT."""
        records = aligned(4 * self.record_words) + ALIGNMENT if self.record_words else 0
        return aligned(aligned(self.payload_bytes) + READ_AHEAD_BYTES) + records

    @cached_property
    def load(self) -> Load:
        """What the planner counts with."""
        decode: dict[str, int] = {}
        for _, _, codec, _, _, raw_bytes in self.jobs.tolist():
            # Stored low bytes are read and written with the high ones, which that takes as long as copying them.
            if not self.part.scratch_bytes or codec != wire.CODEC_RAW:
                kind = CODECS_BY_ID[codec].device_rate
                decode[kind] = decode.get(kind, 0) + raw_bytes
        if self.part.scratch_bytes or self.part.tiles is not None:
            decode["move"] = decode.get("move", 0) + self.part.decoded_bytes
        read = {"read": self.part.stored_bytes}
        if not self.as_stored and not self.zstd_on_device:
            of_host = [not CODECS_BY_ID[codec].is_native for codec in self.part.jobs[:, 2].tolist()]
            read["host_decode"] = int(self.part.jobs[of_host, 5].sum())
        part = self.part
        return Load(
            sent_bytes=self.n_bytes,
            table_bytes=self.n_tables * TABLE_WORDS * 4,
            read=read,
            decode=decode,
            fused=fused_amounts(part.record, part.decoded_bytes) if fused_words(part) else None,
        )

    def fill(self, stored: Bytes, out: Bytes, path: Path, at: int, *, known: bool) -> Jobs:
        """Check `stored` (part.stored_bytes) and put it into `out` (payload_bytes); where `as_stored` it is there.

        What decodes it, where `out` lies at byte `at` of all that is sent, to targets counted from the part's first
        byte; nothing where that is `known`. Raises ChecksumError, CorruptError or UnsupportedError that names file and
        tensor.
        """
        found = Jobs([], [])
        for number, (src, size, _, crc32, _, _) in enumerate(self.part.jobs.tolist()):
            try:
                check(stored[src : src + size], crc32)
                self._place(number, stored[src : src + size], out, at, found=found, known=known)
            except FormatError as error:
                self.blame(error, path, number)
                raise
        return found

    def blame(self, error: FormatError, path: Path, number: int = 0) -> None:
        """Name file, tensor and place of chunk plane `number` in an error."""
        if error.offset is None:
            error.offset = self.part.planes[number].offset
        error.args = (f"{path}: tensor {self.part.record.name!r}: {error}",)

    def _place(self, number: int, chunk: Bytes, out: Bytes, base: int, found: Jobs, *, known: bool) -> None:
        at, size, codec, _, out_offset, raw_bytes = self.jobs[number].tolist()
        target = out[at : at + size]
        at += base
        stored_codec = int(self.part.jobs[number, 2])
        if CODECS_BY_ID[stored_codec].is_native:
            if not self.as_stored:
                target[:] = chunk
        elif not self._is_on_device(stored_codec):
            decode_into(stored_codec, chunk, target)
        else:
            begins, ends = frames(chunk, raw_bytes).T
            sizes = ends - begins
            padded = -(-sizes // FRAME_ALIGNMENT) * FRAME_ALIGNMENT
            places = np.cumsum(padded) - padded
            for place, begin, end in zip(places.tolist(), begins.tolist(), ends.tolist(), strict=True):
                target[place : place + end - begin] = chunk[begin:end]
            if not known:
                found.zstd.append(ZstdFrames(np.stack((places + at, sizes), 1), out_offset, raw_bytes))
            return
        if not known:
            found.chunks.append(chunk_job(target, codec, at, out_offset=out_offset, raw_bytes=raw_bytes))
