"""The codecs by name and by wire id."""

from collections.abc import Mapping
from types import MappingProxyType

import spqfmt.codecs as package
from spqfmt import wire
from spqfmt.codecs.base import Bytes, Codec
from spqfmt.errors import CorruptError
from spqfmt.registry import find

CODECS: Mapping[str, Codec] = MappingProxyType({c.name: c for c in find(package, "CODEC")})
CODECS_BY_ID: Mapping[int, Codec] = MappingProxyType(
    {number: CODECS[name] for name, number in wire.CODECS.items()}
)


def decode_into(codec_id: int, stored: Bytes, out: Bytes) -> None:
    """Decode one chunk plane into `out`, which has its exact raw size. Raises CorruptError."""
    codec = CODECS_BY_ID.get(codec_id)
    if codec is None:
        raise CorruptError(f"unknown codec {codec_id}")
    codec.decode(stored, out)
