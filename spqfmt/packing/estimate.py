"""What a file would take where nothing is quantized, by a sample: of each form some tensors, of these some chunks."""

from collections.abc import Iterable
from math import prod
from typing import NamedTuple

from spqfmt.container.encode import encode_asset, encode_chunk
from spqfmt.importers.base import SourceModel, SourceTensor
from spqfmt.kernels.torch_arrays import to_numpy
from spqfmt.packing.options import PackOptions
from spqfmt.packing.plan import PackPlan, PlannedTensor
from spqfmt.packing.target import KEEPING
from spqfmt.quantize.base import KeepingMethod
from spqfmt.records import dense_bytes
from spqfmt.schemes.base import Encoded, StreamData
from spqfmt.schemes.dense import Dense

_PER_FORM = 4
_MOST_BYTES = 64 << 20
"""Larger tensors are not read for a sample while there are smaller ones."""
_LARGE_SHARE = 0.2
"""A tensor that is so much of its form is read, whatever else is."""
_MOST_LITERALS = 16 << 20
_AROUND_TENSOR = 540
"""Bytes of index and padding for a tensor, as SmolLM2's file has them."""


class Estimate(NamedTuple):
    """The bytes of all tensors, by so many of them, and of the file with its small files and index."""

    tensor_bytes: int
    n_sampled: int
    file_bytes: int


def estimate(model: SourceModel, plan: PackPlan, options: PackOptions) -> Estimate | None:
    """Estimate the bytes of a plan that keeps codes or values; None for other methods, which must run to know.

    Raises ImporterError as a pack does for the tensors that it reads.
    """
    if not (isinstance(options.method, KeepingMethod) or options.method.name == KEEPING):
        return None
    forms: dict[str, list[PlannedTensor]] = {}
    planned = list(plan.tensors)
    for tensor in planned:
        if tensor.source.tied_to is None and tensor.raw_bytes:
            as_codes = tensor.treatment and tensor.source.stored is not None
            forms.setdefault(tensor.source.form if as_codes else f" {tensor.source.dtype}", []).append(tensor)
    total, n_sampled = 0.0, 0
    with model.unchanged():
        for tensors in forms.values():
            whole = sum(tensor.raw_bytes for tensor in tensors)
            large = [tensor for tensor in tensors if tensor.raw_bytes > _LARGE_SHARE * whole]
            others = [tensor for tensor in tensors if tensor.raw_bytes <= _LARGE_SHARE * whole]
            sample = _sample(others) if others else []
            total += sum(_stored_bytes(tensor, options) for tensor in large)
            if sample:
                stored = sum(_stored_bytes(tensor, options) for tensor in sample)
                total += stored / sum(t.raw_bytes for t in sample) * sum(t.raw_bytes for t in others)
            n_sampled += len(large) + len(sample)
        around = _around_bytes(model)
    return Estimate(round(total), n_sampled, round(total + around + _AROUND_TENSOR * len(planned)))


def _sample(tensors: list[PlannedTensor]) -> list[PlannedTensor]:
    """Some of one form, as far apart in the model as they can be."""
    small = [tensor for tensor in tensors if tensor.raw_bytes <= _MOST_BYTES]
    found = small or [min(tensors, key=lambda tensor: tensor.raw_bytes)]
    step = max(1, (len(found) - 1) / max(1, _PER_FORM - 1))
    return [found[round(k * step)] for k in range(min(_PER_FORM, len(found)))]


def _stored_bytes(tensor: PlannedTensor, options: PackOptions) -> float:
    return sum(_of_stream(stream, options) for stream in _encoded(tensor).streams)


def _encoded(tensor: PlannedTensor) -> Encoded:
    if tensor.treatment and tensor.source.stored is not None:
        return tensor.source.stored().encode()
    return Dense(to_numpy(tensor.source.load()), tensor.source.dtype).encode()


def _of_stream(stream: StreamData, options: PackOptions) -> float:
    """The first chunk is taken for all."""
    first = next(stream.chunks(), None)
    if first is None:
        return 0.0
    encoded = encode_chunk(first, stream.dtype, options.codec.codec)
    return stream.elements.size / first.size * sum(len(plane.stored) for plane in encoded.planes)


def _around_bytes(model: SourceModel) -> int:
    """What the small files take, and of the source's own what is no tensor's: the header, for nearly all of it."""
    places: dict[str, list[int]] = {}
    for tensor in () if model.is_dequantized else model.tensors:
        for name, offset in _places(tensor):
            places.setdefault(name, []).append(offset)
    headers = [
        bytes(model.named_files[name].read(0, min(_MOST_LITERALS, *offsets)))
        for name, offsets in places.items()
    ]
    return sum(map(_packed_bytes, [*(asset.data for asset in model.assets), *headers]))


def _places(tensor: SourceTensor) -> Iterable[tuple[str, int]]:
    if tensor.place is not None and dense_bytes(tensor.dtype, prod(tensor.shape)):
        yield tensor.place
    for part in tensor.parts:
        yield part.place


def _packed_bytes(data: bytes) -> int:
    return sum(len(plane.stored) for chunk in encode_asset(data) for plane in chunk.planes)
