"""Stored chunks and matrices as the device kernels take them."""

import numpy as np
import torch

from spqfmt import wire
from spqfmt.codecs.registry import decode_into
from spqfmt.kernels import native
from spqfmt.kernels.device import READ_AHEAD_BYTES, chunk_job, plan_chunks
from spqfmt.kernels.device.matrix import DeviceGroupValues, DeviceOutliers, GroupScales, Matrix, UniformScales
from spqfmt.kernels.device.unfolding import plan_paths
from spqfmt.kernels.torch_arrays import to_torch
from spqfmt.loaders.device.shipping import Shipment
from spqfmt.schemes.codes import by_columns
from spqfmt.schemes.group_numbers import n_lines
from spqfmt.schemes.uniform import UniformSides


class Staged:
    """Chunks side by side as in a file, their jobs, and the workspaces that decoding them needs."""

    def __init__(self, chunks, gap=0):
        """`chunks`: (stored bytes, codec, raw_bytes); raw bytes follow each other, `gap` bytes apart."""
        jobs, stored, out = [], bytearray(), 0
        for chunk, codec, raw_bytes in chunks:
            stored += bytes(-len(stored) % 64)
            jobs.append(chunk_job(chunk, codec, len(stored), out, raw_bytes))
            stored += bytes(chunk)
            out += raw_bytes + gap
        self.stored = torch.from_numpy(
            np.frombuffer(bytes(stored) + b"\xa5" * READ_AHEAD_BYTES, np.uint8).copy()
        )
        self.plan = plan_chunks(jobs)
        self.tables = torch.empty(self.plan.table_words, dtype=torch.int32)
        self.error = torch.zeros(1, dtype=torch.int32)
        self.n_raw = out

    def decode(self, kernels):
        """Bytes that the chunks decode to, with what lay between them."""
        out = torch.full((self.n_raw + 7,), 0xEE, dtype=torch.uint8)
        kernels.decode_chunks(self.stored, self.plan, out, self.tables, self.error)
        assert bytes(out[self.n_raw :]) == b"\xee" * 7
        return out[: self.n_raw].numpy()


def unfold(kernels, part, decoded):
    """The codes of a part whose path codes were decoded, in place; codes that are no path codes stay."""
    jobs = Shipment(part, zstd_on_device=False).paths(0)
    error = torch.zeros(1, dtype=torch.int32)
    kernels.prepare_unfold(plan_paths(jobs), decoded, error)()
    assert error.item() == 0
    return decoded


def rans_chunks(raws, block_log2=0):
    return [(native.rans_encode(raw, block_log2), wire.CODEC_RANS, raw.size) for raw in raws]


def stage_part(reader, part):
    """A part of a file: its chunks, without the checksums."""
    chunks = []
    for plane in part.planes:
        codec, stored = plane.codec, reader.read_bytes(plane.offset, plane.stored_bytes)
        if codec == wire.CODEC_ZSTD:  # not these kernels' business
            raw = np.empty(plane.raw_bytes, np.uint8)
            decode_into(codec, np.frombuffer(stored, np.uint8), raw)
            codec, stored = wire.CODEC_RAW, raw.tobytes()
        chunks.append((stored, codec, plane.raw_bytes))
    return Staged(chunks)


def matrix_of(sides, code_dtype):
    """What read_sides found, as tensors."""
    record = sides.record
    columns_first = by_columns(record)
    if isinstance(sides, UniformSides):
        column = None if sides.column is None else torch.from_numpy(sides.column)
        scales = UniformScales(torch.from_numpy(sides.row), column)
    else:
        values = {kind: _group_values(sides, kind) for kind in ("scale", "zero_point", "minimum")}
        levels = None if sides.values_of_codes is None else torch.from_numpy(sides.values_of_codes.copy())
        rows, stacked_rows = sides.group_rows
        scales = GroupScales(sides.group_size, **values, levels=levels, rows=rows, stacked_rows=stacked_rows)
    outliers = order = places = permutation = None
    if sides.outliers is not None:
        outliers = DeviceOutliers(*(torch.from_numpy(np.ascontiguousarray(a)) for a in (
            sides.outliers.row_begin.astype(np.int32),
            sides.outliers.columns.astype(np.int32),
            sides.outliers.values,
        )))  # fmt: skip
    if sides.order is not None and columns_first:
        order = torch.from_numpy(sides.order.astype(np.int32))
        places = torch.empty_like(order)
        places[order.long()] = torch.arange(len(order), dtype=torch.int32)
    if sides.permutation is not None and not columns_first:
        permutation = torch.from_numpy(sides.permutation.astype(np.int32))
    return Matrix(
        record.matrix_shape, code_dtype, scales, outliers, columns_first, order, places, permutation
    )


def _group_values(sides, kind):
    record = sides.record
    stream = record.by_role.get(f"{kind}_codes") or record.by_role.get(f"{kind}s")
    if stream is None:
        return None
    _, columns = record.matrix_shape
    if kind in sides.groups:  # widened and put into stored order
        return DeviceGroupValues(torch.from_numpy(np.ascontiguousarray(sides.groups[kind])))
    groups = -(-columns // sides.group_size)
    values = _tensor(sides, stream, (n_lines(record), groups))
    table = sides.table_of(stream.role)
    table = None if table is None else torch.from_numpy(table.copy())
    if not stream.role.endswith("_codes"):
        return DeviceGroupValues(values, table=table)
    tile = record.parameters["supergroup"]["rows"], record.parameters["supergroup"]["groups"]
    tiles = -(-n_lines(record) // tile[0]), -(-groups // tile[1])
    streams = {what: record.by_role.get(f"{kind}_{what}") for what in ("steps", "zeros", "minimums")}
    second = {what: None if s is None else _tensor(sides, s, tiles) for what, s in streams.items()}
    return DeviceGroupValues(values, supergroup=tile, table=table, **second)


def _tensor(sides, stream, shape):
    dtype = dict.fromkeys(("u2", "u4", *wire.SMALL_FLOATS), "u8").get(stream.dtype, stream.dtype)
    return to_torch(sides.groups[stream.role], dtype, shape)
