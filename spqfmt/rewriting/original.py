"""Records of a file's index as they stand in it, for a file that is written again.

A reader ignores keys that it does not know (FORMAT.md 3); whoever knows them shall find them again, so the records are
given to the writer beside the ones that the reader has made of them.
"""

from collections.abc import Sequence
from typing import Literal

from spqfmt import wire
from spqfmt.container.reader import Reader
from spqfmt.container.strict_json import Json, optional, without
from spqfmt.container.writer import Unknown

_ROOT = frozenset(
    {
        "segment_alignment",
        "chunk_alignment",
        "segments",
        "tensors",
        "assets",
        "metadata",
        "partial_plan",
        "shard",
        "content",
        "sources",
    }
)
_KNOWN_OPTIONAL = sum(1 << bit for bit in wire.OPTIONAL_FEATURES.values())


class OriginalRecords:
    """The records of an opened file, by their number in it."""

    def __init__(self, reader: Reader) -> None:
        self._root = reader.index_json()
        self.sources = optional(self._root, "sources", dict, "index")
        self.unknown = Unknown(without(self._root, *_ROOT), reader.trailer.optional & ~_KNOWN_OPTIONAL)

    def record(self, kind: Literal["segments", "tensors", "assets"], number: int) -> Json:
        """One of them."""
        records = self._root[kind]
        assert isinstance(records, list)
        record: Json = records[number]
        return record

    def segment(self, number: int) -> Json:
        """What it holds besides name and number of tensors."""
        return without(self.record("segments", number), "name", "n_tensors")


def unknown_of(originals: Sequence[OriginalRecords]) -> Unknown:
    """Of all files of a model; where two have a key, the first one's."""
    keys: Json = {}
    optional = 0
    for original in originals:
        keys = {**original.unknown.keys, **keys}
        optional |= original.unknown.optional
    return Unknown(keys, optional)
