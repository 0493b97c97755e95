"""Elements -> an encoded chunk: the codec of each plane and its checksum."""

import numpy as np
import zstandard

from spqfmt import wire
from spqfmt.codecs.base import Bytes
from spqfmt.codecs.chunks import EncodedChunk, EncodedPlane
from spqfmt.codecs.elements import Elements, element_bits, order0_bits, to_planes
from spqfmt.codecs.registry import AUTO, CODECS
from spqfmt.codecs.tasks import side_by_side
from spqfmt.codecs.zstd import CODEC as ZSTD
from spqfmt.kernels import native
from spqfmt.records import n_planes

BEST = "rans"
"""What `auto` tries for each plane."""
MIN_SAVING = 0.01
"""A plane that would shrink by less is stored raw: decoding it would cost more time than its bytes are worth."""
_ASSET_CHUNK_BYTES = 1 << 20
MANY_TENSORS = 4000
"""With so many tensors an index takes seconds at zstd's highest level, and more of them the larger it is."""


def encode_chunk(elements: Elements, dtype: str, codec: str) -> EncodedChunk:
    """Encode one run of elements (carrier, contiguous) with a codec's name or auto."""
    if elements.size == 0:
        return EncodedChunk(0, (EncodedPlane(b"", wire.CODEC_RAW, 0, 0.0),) * n_planes(dtype))
    planes = to_planes(elements, dtype)
    encoded = (encode_plane(plane, element_bits(plane, dtype, elements.size), codec) for plane in planes)
    return EncodedChunk(elements.size, tuple(encoded))


def encode_plane(plane: Bytes, entropy_bits: float, codec: str) -> EncodedPlane:
    """Encode one plane with a codec's name or auto. The entropy is that of its elements (`element_bits`)."""
    stored, codec_id = _stored(plane, entropy_bits, codec)
    return EncodedPlane(stored, codec_id, native.crc32(stored), entropy_bits)


def _stored(plane: Bytes, entropy_bits: float, codec: str) -> tuple[bytes, int]:
    """The stored plane and its codec's id, never larger than raw."""
    name, limit = codec, float(plane.size)
    if codec == AUTO:
        name, limit = BEST, plane.size * (1 - MIN_SAVING)
    # Pairs need at most what two single elements do.
    hopeless = CODECS[name].is_order0 and entropy_bits / 8 >= limit
    if name != "raw" and not hopeless:
        stored = CODECS[name].encode(plane)
        if len(stored) < limit:
            return stored, CODECS[name].id
    return plane.tobytes(), wire.CODEC_RAW


def encode_text(raw: Bytes) -> EncodedChunk:
    """One chunk of an asset: zstd at a level for text, raw where that does not help."""
    stored, codec = ZSTD.encode_text(raw), wire.CODEC_ZSTD
    if len(stored) >= raw.size:
        stored, codec = raw.tobytes(), wire.CODEC_RAW
    entropy = order0_bits(raw)
    return EncodedChunk(raw.size, (EncodedPlane(stored, codec, native.crc32(stored), entropy),))


def encode_asset(data: bytes) -> list[EncodedChunk]:
    """Encode the chunks of an asset."""
    raw = np.frombuffer(data, np.uint8)
    return side_by_side(
        encode_text, [raw[i : i + _ASSET_CHUNK_BYTES] for i in range(0, raw.size, _ASSET_CHUNK_BYTES)]
    )


def compress_index(text: bytes, n_tensors: int) -> bytes:
    """A file's index as it is stored: its text, which describes so many tensors, as one zstd frame."""
    return zstandard.ZstdCompressor(level=19 if n_tensors < MANY_TENSORS else 12).compress(text)
