"""A whole file that gets another index, and assets behind its tensors: the chunks stay where they are.

Each shard of a model says what the whole model holds, which is known when the last of them is made.
"""

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

from spqfmt import wire
from spqfmt.container.alignment import align
from spqfmt.container.reader import Reader
from spqfmt.container.strict_json import Json
from spqfmt.container.writer import Writer


class Reopened(Writer):
    """A sealed file that is sealed again, its assets left out. It keeps its place.

    Leaving the context with an error puts it back as it was.
    """

    def __init__(self, path: Path) -> None:
        """Raises FormatError for a file that is not sound, OSError."""
        with Reader(path) as reader:
            root = json.loads(reader.index_text())
            offset = align(reader.index.segments[-1].end, wire.CHUNK_ALIGNMENT)
            self._before = reader.read_bytes(0, wire.HEADER_BYTES)
            self._tail = reader.read_bytes(offset, reader.file_bytes - offset)
            own = (s for t in reader.index.tensors for s in t.streams if s.same_as is None)
            self._raw_bytes = sum(stream.raw_bytes for stream in own)
        self.path = self._temporary = path
        self._force = True
        self._alignment = int(root["segment_alignment"])
        self._chunk_alignment = int(root.get("chunk_alignment", wire.CHUNK_ALIGNMENT))
        self._offset = self._offset_of_index = offset
        self._new_segment = False
        self._segments = list(root["segments"])
        self._stored: list[Json] = root["tensors"]
        self._assets = []
        self._file = path.open("r+b")

    def __enter__(self) -> Self:
        self._file.seek(self._offset)
        self._file.truncate()
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is not None:
            with suppress(OSError, ValueError):
                self._file.seek(0)
                self._file.write(self._before)
                self._file.seek(self._offset_of_index)
                self._file.truncate()
                self._file.write(self._tail)
                self._file.flush()
                os.fsync(self._file.fileno())
        with suppress(OSError):
            self._file.close()

    def _tensor_json(self) -> Sequence[Json]:
        return self._stored
