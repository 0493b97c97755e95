"""Records of a file's index as they stand in it, for a file that is written again.

A reader ignores keys that it does not know (FORMAT.md 3); whoever knows them shall find them again, so the records are
given to the writer beside the ones that the reader has made of them.
"""

import json
from collections.abc import Sequence
from typing import Literal

import numpy as np

from spqfmt import wire
from spqfmt.container.reader import Reader
from spqfmt.container.strict_json import Json, optional, without
from spqfmt.container.writer import Unknown
from spqfmt.kernels.json_text import project_json

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
_LISTS = ("segments", "tensors", "assets")
_KNOWN_OPTIONAL = sum(1 << bit for bit in wire.OPTIONAL_FEATURES.values())


class OriginalRecords:
    """The records of an opened file, by their number in it."""

    def __init__(self, reader: Reader) -> None:
        self._text = reader.index_text()
        found = project_json(self._text, 0, len(self._text), dict.fromkeys(_LISTS, wire.MAX_TENSORS))
        assert isinstance(found, dict)
        self._spans = {kind: np.frombuffer(found[kind], np.int64).reshape(-1, 2) for kind in _LISTS}
        root = self._root()
        self.sources = optional(root, "sources", dict, "index")
        self.unknown = Unknown(without(root, *_ROOT), reader.trailer.optional & ~_KNOWN_OPTIONAL)

    def _root(self) -> Json:
        """The index without what its lists hold."""
        kept, at = [], 0
        for spans in sorted((s for s in self._spans.values() if len(s)), key=lambda s: int(s[0][0])):
            kept.append(self._text[at : int(spans[0][0])])
            at = int(spans[-1][1])
        root: Json = json.loads(b"".join((*kept, self._text[at:])))
        return root

    def record(self, kind: Literal["segments", "tensors", "assets"], number: int) -> Json:
        """One of them, without the chunks of its streams."""
        begin, end = self._spans[kind][number].tolist()
        record: Json = json.loads(self._text[begin:end])
        streams = record.get("streams", [record.get("stream")])
        for stream in streams if isinstance(streams, list) else ():
            if isinstance(stream, dict):
                stream.pop("chunks", None)
        return record

    def segment(self, number: int) -> Json:
        """What it holds besides name and number of tensors."""
        return without(self.record("segments", number), "name", "n_tensors")


def unknown_of(originals: Sequence[OriginalRecords]) -> Unknown:
    """Collect the unknown keys of all files of a model; where two have a key, the first one's."""
    keys: Json = {}
    optional = 0
    for original in originals:
        keys = {**original.unknown.keys, **keys}
        optional |= original.unknown.optional
    return Unknown(keys, optional)
