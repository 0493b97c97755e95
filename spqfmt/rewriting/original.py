"""Records of a file's index as they stand in it, for a file that is written again.

A reader ignores keys that it does not know (FORMAT.md 3); whoever knows them shall find them again, so the records are
copied rather than made anew. What says how a file is stored (chunks, numbers of tensors, shards, the partial plan) is
not copied.
"""

from collections.abc import Sequence

from spqfmt import wire
from spqfmt.container.reader import Reader
from spqfmt.container.strict_json import Json, without
from spqfmt.container.writer import Unknown

_ROOT = frozenset(
    {
        "segment_alignment",
        "segments",
        "tensors",
        "assets",
        "metadata",
        "partial_plan",
        "shard",
        "content",
    }
)
_KNOWN_OPTIONAL = sum(1 << bit for bit in wire.OPTIONAL_FEATURES.values())


class OriginalRecords:
    """The records of an opened file, by their number in it."""

    def __init__(self, reader: Reader) -> None:
        self._root = reader.index_json()
        self.unknown = Unknown(without(self._root, *_ROOT), reader.trailer.optional & ~_KNOWN_OPTIONAL)

    def _record(self, kind: str, number: int) -> Json:
        records = self._root[kind]
        assert isinstance(records, list)
        record: Json = records[number]
        return record

    def segment(self, number: int) -> Json:
        """What it holds besides name and number of tensors."""
        return without(self._record("segments", number), "name", "n_tensors")

    def tensor(self, number: int) -> Json:
        """Without streams; an empty list of them stays."""
        record = self._record("tensors", number)
        return {**record, "streams": []} if "streams" in record else dict(record)

    def streams(self, number: int) -> list[Json]:
        """Those of a tensor, without chunks and what they are the same as."""
        streams = self._record("tensors", number).get("streams", [])
        assert isinstance(streams, list)
        return [without(stream, "chunks", "same_as") for stream in streams]

    def asset(self, number: int) -> tuple[Json, Json]:
        """Its record without the stream, and the stream without chunks."""
        record = self._record("assets", number)
        stream = record["stream"]
        assert isinstance(stream, dict)
        return without(record, "stream"), without(stream, "chunks")


def unknown_of(originals: Sequence[OriginalRecords]) -> Unknown:
    """Of all files of a model; where two have a key, the first one's."""
    keys: Json = {}
    optional = 0
    for original in originals:
        keys = {**original.unknown.keys, **keys}
        optional |= original.unknown.optional
    return Unknown(keys, optional)
