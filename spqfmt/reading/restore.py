"""Stored tensor -> torch tensor. torch is imported when the first one is made."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from spqfmt.codecs.elements import Elements
from spqfmt.container.reader import Reader
from spqfmt.reading.rows import Room, dtype_of, heap, holder, read_block, read_first, read_tensor
from spqfmt.records import TensorRecord
from spqfmt.schemes.floats import Scale, small_float_values

if TYPE_CHECKING:
    import torch


def restore_first(
    reader: Reader, record: TensorRecord, first: int, stop: int, dtype: str | None = None
) -> "torch.Tensor":
    """`read_first` as a tensor: elements `first` to `stop` of the first dimension."""
    record = holder(reader, record)
    elements = read_first(reader, record, first, stop=stop, dtype=dtype)
    return _tensor(elements, dtype_of(record, dtype), elements.shape)


def restore_block(
    reader: Reader, record: TensorRecord, block: Sequence[range], dtype: str | None = None
) -> "torch.Tensor":
    """`read_block` as a tensor: some elements of each dimension."""
    record = holder(reader, record)
    elements = read_block(reader, record, block, dtype)
    return _tensor(elements, dtype_of(record, dtype), elements.shape)


def restore(
    reader: Reader, record: TensorRecord, dtype: str | None = None, room: Room = heap
) -> "torch.Tensor":
    """`read_tensor` as a tensor: all of it in its own shape and, where `dtype` is None, its own dtype."""
    record = holder(reader, record)
    return _tensor(read_tensor(reader, record, dtype, room), dtype_of(record, dtype), record.shape)


def numbers_of(codes: "torch.Tensor", dtype: str) -> "torch.Tensor":
    """What floats of less than 8 bits, as uint8 one a byte, stand for: float32 of the same shape; exact."""
    return _tensor(small_float_values(dtype)[codes.numpy()], "f32", codes.shape)


def _tensor(elements: Elements, dtype: str, shape: Sequence[int]) -> "torch.Tensor":
    from spqfmt.kernels.torch_arrays import to_torch

    return to_torch(elements, dtype, shape)


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
