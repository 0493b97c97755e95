"""Which feature bits an index uses (FORMAT.md 1.1)."""

from collections.abc import Collection, Iterable

from spqfmt import wire
from spqfmt.codecs.registry import CODECS_BY_ID
from spqfmt.records import Index, Stream, TensorRecord
from spqfmt.schemes.registry import scheme_of

ALL_REQUIRED = sum(1 << bit for bit in wire.REQUIRED_FEATURES.values())
_OF_1_0 = ("f8_e4m3", "f8_e5m2")
"""Small floats that a dense tensor of 1.0 may have."""


def tensor_features(tensor: TensorRecord) -> set[str]:
    """Names of the required features that a tensor uses."""
    used = _of_streams(tensor.streams) | _of_dtype(tensor.dtype)
    used |= {"tied"} if tensor.tied_to is not None else scheme_of(tensor.scheme).features(tensor)
    if tensor.transposed and len(tensor.shape if tensor.view is None else tensor.view) > 2:
        used.add("stacked_transposed")
    if tensor.view is not None:
        used.add("view")
    if tensor.activation_clamp is not None:
        used.add("activation_clamp")
    if tensor.activation_quantization is not None:
        used.add("activation_quantization")
    return used


def index_features(index: Index) -> set[str]:
    """Names of the required features that the index uses beside its tensors."""
    used = {"shard"} if index.shard is not None else set()
    used |= {"chunk_alignment"} if index.chunk_alignment is not None else set()
    return used | _of_streams(asset.stream for asset in index.assets)


def _of_streams(streams: Iterable[Stream]) -> set[str]:
    used = set()
    for stream in streams:
        features = (CODECS_BY_ID[codec].feature for codec in stream.chunks.codecs)
        used |= {feature for feature in features if feature is not None}
        if stream.same_as is not None:
            used.add("shared_streams")
        used |= _of_dtype(stream.dtype)
        if stream.dtype in _OF_1_0 and stream.role != "values":
            used.add("small_floats")
    return used


def _of_dtype(dtype: str) -> set[str]:
    if dtype == "c64":
        return {"complex"}
    return {"small_floats"} if dtype in wire.SMALL_FLOATS and dtype not in _OF_1_0 else set()


def optional_features(index: Index) -> set[str]:
    """Names of the optional features that the index uses beside its tensors."""
    used = {"assets"} if index.assets else set()
    used |= {"sources"} if index.sources is not None else set()
    used |= {"content"} if index.content is not None else set()
    return used | ({"partial_plan"} if index.partial_plan is not None else set())


def optional_tensor_features(tensor: TensorRecord) -> set[str]:
    """Names of the optional features that a tensor uses."""
    used = {"content"} if tensor.content is not None else set()
    return used | ({"origin"} if tensor.origin is not None else set())


def required_mask(names: Collection[str]) -> int:
    """The bits of these required features."""
    return sum(1 << wire.REQUIRED_FEATURES[name] for name in names)


def optional_mask(names: Collection[str]) -> int:
    """The bits of these optional features."""
    return sum(1 << wire.OPTIONAL_FEATURES[name] for name in names)
