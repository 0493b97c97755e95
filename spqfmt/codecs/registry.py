"""The codecs by name and by wire id."""

from collections.abc import Mapping
from types import MappingProxyType

import spqfmt.codecs as package
from spqfmt.codecs.base import Bytes, Codec
from spqfmt.errors import CorruptError
from spqfmt.registry import find

CODECS: Mapping[str, Codec] = MappingProxyType(
    {codec.name: codec for codec in sorted(find(package, "CODEC"), key=lambda codec: codec.id)}
)
CODECS_BY_ID: Mapping[int, Codec] = MappingProxyType({codec.id: codec for codec in CODECS.values()})

AUTO = "auto"
"""In place of a codec's name: the best one for each chunk."""
CHOICES = (AUTO, *CODECS)
"""What a user may ask for."""


def decode_into(codec_id: int, stored: Bytes, out: Bytes) -> None:
    """Decode one chunk plane into `out`, which has its exact raw size. Raises CorruptError."""
    codec = CODECS_BY_ID.get(codec_id)
    if codec is None:
        raise CorruptError(f"unknown codec {codec_id}")
    codec.decode(stored, out)


def unknown_codec(name: str) -> str:
    """What to say of a name that is no codec's."""
    return f"unknown codec {name!r}; there are {', '.join(CHOICES[:-1])} and {CHOICES[-1]}"
