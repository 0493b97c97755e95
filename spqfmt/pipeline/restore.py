"""Stored tensor -> torch tensor, a few rows at a time so that float32 never exists for all of a large one."""

from typing import TYPE_CHECKING

import numpy as np

from spqfmt.codecs.elements import CARRIERS
from spqfmt.container.reader import Reader
from spqfmt.kernels.torch_arrays import to_torch
from spqfmt.records import TensorRecord
from spqfmt.schemes.floats import Scale

if TYPE_CHECKING:
    import torch

_BLOCK_WEIGHTS = 1 << 22


def restore_rows(
    reader: Reader, record: TensorRecord, first: int, stop: int, dtype: str | None = None
) -> "torch.Tensor":
    """Rows `first` to `stop` of the stored matrix (FORMAT.md 5.1), [rows, columns], in the record's dtype.

    `dtype` f32 gives a quantized tensor's weights before their rounding to the record's dtype.
    """
    record = reader.index.by_name[record.tied_to] if record.tied_to else record
    if record.scheme == "dense":
        rows = reader.read_rows(record, first, stop)
        return to_torch(rows, record.dtype, rows.shape)
    name = dtype or record.dtype
    out = np.empty((stop - first, record.matrix_shape[1]), CARRIERS[name])
    for low, high in _blocks(record, first, stop):
        # binary32 widens to f64 as it is assigned.
        direct = "f32" if name == "f64" else name
        out[low - first : high - first] = reader.read_rows(record, low, high, direct)
    return to_torch(out, name, out.shape)


def restore(reader: Reader, record: TensorRecord, dtype: str | None = None) -> "torch.Tensor":
    """The whole tensor in its own shape and dtype. See `restore_rows`."""
    record = reader.index.by_name[record.tied_to] if record.tied_to else record
    if record.scheme == "dense":
        elements = reader.read_elements(record, "values")
        return to_torch(elements, record.dtype, record.shape)
    matrix = restore_rows(reader, record, 0, record.matrix_shape[0], dtype)
    return matrix.t().contiguous() if record.transposed else matrix.reshape(record.shape)


def column_scale(reader: Reader, record: TensorRecord) -> Scale | None:
    """The column scales of a uniform tensor."""
    stream = record.by_role.get("column_scales")
    if stream is None:
        return None
    values = reader.read_elements(record, "column_scales")
    log8 = record.parameters.get("column_scale_log8")
    # A record that was read has its parameters checked.
    octave_steps, bias = log8 if isinstance(log8, list) else (16, 0)
    return Scale(values, stream.dtype, octave_steps, bias)


def _blocks(record: TensorRecord, first: int, stop: int) -> list[tuple[int, int]]:
    """Row ranges of some million weights that end where chunks of codes do, so that none is decoded twice."""
    columns = record.matrix_shape[1]
    if record.parameters.get("orientation") != "rows" or "channel_order" in record.by_role:
        return [(first, stop)]
    blocks = []
    low = first
    for chunk in record.by_role["codes"].chunks:
        end = chunk.first + chunk.n_elements
        if end % columns == 0 and low + _BLOCK_WEIGHTS // columns <= end // columns < stop:
            blocks.append((low, end // columns))
            low = end // columns
    return [*blocks, (low, stop)]
