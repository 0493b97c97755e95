"""The size of a file's rans blocks, which a device decodes side by side: what launches take depends on it."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from spqfmt import wire
from spqfmt.container.reader import Reader
from spqfmt.records import PlaneChunk
from spqfmt.residency.device_rates import DeviceRates
from spqfmt.residency.parts import weights_stream
from spqfmt.schemes.registry import SCHEMES

_HEADER_BYTES = 4


def with_blocks_of(rates: DeviceRates, readers: Sequence[Reader]) -> DeviceRates:
    """The rates for blocks as the files have them: those of the largest tensor that has some, read from its header."""
    planes = ((plane, reader) for reader in readers for plane in _coded(reader))
    largest = max(planes, key=lambda found: found[0].raw_bytes, default=None)
    if largest is None:
        return rates
    plane, reader = largest
    _, kind, block_log2, _ = reader.read_bytes(plane.offset, _HEADER_BYTES)
    is_known = wire.RANS_MIN_BLOCK_LOG2 <= block_log2 <= wire.RANS_MAX_BLOCK_LOG2
    if kind != wire.RANS_KIND_BLOCKS or not is_known:
        return rates
    return replace(rates, block_bytes=1 << block_log2)


def _coded(reader: Reader) -> Iterator[PlaneChunk]:
    """The first rans plane of each tensor's weights."""
    for record in reader.index.tensors:
        if record.tied_to is None and record.scheme in SCHEMES and record.n_weights:
            coded = weights_stream(record).chunks.coded
            planes = coded[0].planes if len(coded) else ()
            yield from [
                plane for plane in planes if plane.codec == wire.CODEC_RANS and plane.stored_bytes >= 4
            ][:1]
