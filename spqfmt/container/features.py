"""Which feature bits an index uses (FORMAT.md 1.1)."""

from collections.abc import Collection, Iterable

from spqfmt import wire
from spqfmt.records import Index, Stream
from spqfmt.schemes.registry import SCHEMES

_CODEC_NAMES = {wire.CODEC_ZSTD: "zstd", wire.CODEC_RANS: "rans"}


def required_features(index: Index) -> set[str]:
    """Names of the required features in use."""
    used = {"shard"} if index.shard is not None else set()
    streams: list[Stream] = [asset.stream for asset in index.assets]
    for tensor in index.tensors:
        streams += tensor.streams
        used |= {"tied"} if tensor.tied_to else SCHEMES[tensor.scheme].features(tensor)
        if tensor.activation_clamp is not None:
            used.add("activation_clamp")
        if tensor.activation_quantization is not None:
            used.add("activation_quantization")
    if any(stream.same_as is not None for stream in streams):
        used.add("shared_streams")
    return used | _codecs(streams)


def _codecs(streams: Iterable[Stream]) -> set[str]:
    ids = {plane.codec for s in streams for chunk in s.chunks for plane in chunk.planes}
    return {name for codec, name in _CODEC_NAMES.items() if codec in ids}


def optional_features(index: Index) -> set[str]:
    """Names of the optional features in use."""
    used = {"assets"} if index.assets else set()
    return used | ({"partial_plan"} if index.partial_plan is not None else set())


def required_mask(names: Collection[str]) -> int:
    """The bits of these required features."""
    return sum(1 << wire.REQUIRED_FEATURES[name] for name in names)


def optional_mask(names: Collection[str]) -> int:
    """The bits of these optional features."""
    return sum(1 << wire.OPTIONAL_FEATURES[name] for name in names)
