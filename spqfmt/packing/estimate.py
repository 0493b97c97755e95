"""What codes of a source would take, by a sample of them: of each form some tensors, of these some chunks."""

from typing import NamedTuple

from spqfmt.container.encode import encode_chunk
from spqfmt.importers.base import SourceModel
from spqfmt.packing.options import PackOptions
from spqfmt.packing.plan import PackPlan, PlannedTensor
from spqfmt.quantize.base import KeepingMethod
from spqfmt.schemes.base import StreamData

_PER_FORM = 4
_MOST_BYTES = 64 << 20
"""Larger tensors are not read for a sample while there are smaller ones."""


class Estimate(NamedTuple):
    """What all tensors would take, by so many of them."""

    tensor_bytes: int
    n_sampled: int


def estimate(model: SourceModel, plan: PackPlan, options: PackOptions) -> Estimate | None:
    """Estimate the bytes of a plan that keeps codes; None for other methods, which must run to know.

    Raises ImporterError as a pack does for the tensors that it reads.
    """
    if not isinstance(options.method, KeepingMethod):
        return None
    forms: dict[str, list[PlannedTensor]] = {}
    other_bytes = 0
    for tensor in plan.tensors:
        if tensor.treatment and tensor.source.stored is not None and tensor.source.tied_to is None:
            forms.setdefault(tensor.source.form, []).append(tensor)
        else:
            other_bytes += tensor.raw_bytes
    total, n_sampled = float(other_bytes), 0
    with model.unchanged():
        for tensors in forms.values():
            sample = _sample(tensors)
            stored = sum(_stored_bytes(tensor, options) for tensor in sample)
            total += stored / sum(tensor.raw_bytes for tensor in sample) * sum(t.raw_bytes for t in tensors)
            n_sampled += len(sample)
    return Estimate(round(total), n_sampled)


def _sample(tensors: list[PlannedTensor]) -> list[PlannedTensor]:
    """Some of one form, as far apart in the model as they can be."""
    small = [tensor for tensor in tensors if tensor.raw_bytes <= _MOST_BYTES]
    found = small or [min(tensors, key=lambda tensor: tensor.raw_bytes)]
    step = max(1, (len(found) - 1) / max(1, _PER_FORM - 1))
    return [found[round(k * step)] for k in range(min(_PER_FORM, len(found)))]


def _stored_bytes(tensor: PlannedTensor, options: PackOptions) -> float:
    assert tensor.source.stored is not None
    return sum(_of_stream(stream, options) for stream in tensor.source.stored().encode().streams)


def _of_stream(stream: StreamData, options: PackOptions) -> float:
    """The first chunk is taken for all."""
    first = next(stream.chunks(), None)
    if first is None:
        return 0.0
    encoded = encode_chunk(first, stream.dtype, options.codec.codec)
    return stream.elements.size / first.size * sum(len(plane.stored) for plane in encoded.planes)
