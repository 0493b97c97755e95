"""Where a pack goes: one file, or shards beside their index (FORMAT.md section 8)."""

import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType
from typing import Self

from spqfmt.codecs.chunks import EncodedChunk
from spqfmt.container.content import content_of_model
from spqfmt.container.strict_json import Json, dump
from spqfmt.container.temporary import (
    discard,
    open_temporary,
    publish_together,
    refuse_existing,
    remove_left_over,
)
from spqfmt.container.writer import NOTHING_UNKNOWN, Sealed, Unknown, Writer
from spqfmt.errors import OptionError
from spqfmt.records import AssetRecord, Shard, TensorRecord
from spqfmt.wire import CHUNK_ALIGNMENT

INDEX_SUFFIX = ".index.json"


def shard_path(path: Path, number: int, count: int) -> Path:
    """Return the path of a shard: m.spq -> m-00001-of-00003.spq."""
    return path.with_name(f"{path.stem}-{number:05d}-of-{count:05d}.spq")


def index_path(path: Path) -> Path:
    """Return the path of the shards' index: m.spq -> m.spq.index.json."""
    return path.with_name(path.name + INDEX_SUFFIX)


def check_name(out: Path) -> None:
    """Raise OptionError unless `out` is a name for a packed model."""
    if out.suffix != ".spq":
        raise OptionError(f"{out}: the name of a packed model ends in .spq")


def check_sharded_name(path: Path) -> None:
    """Raise OptionError for a name that the index of shards cannot hold: one that is not UTF-8 has surrogates."""
    if any("\ud800" <= character <= "\udfff" for character in path.name):
        raise OptionError(f"{path}: the index of shards has only UTF-8 in it; give another name")


class Output:
    """A Writer of one file or of shards: one begins where the next segment might pass `shard_bytes`, or at given ones.

    `shard_starts` are the numbers of the segments that begin a shard, the first among them.
    """

    def __init__(
        self,
        path: Path,
        segment_alignment: int,
        *,
        force: bool,
        chunk_alignment: int = CHUNK_ALIGNMENT,
        shard_bytes: int | None = None,
        shard_starts: Collection[int] = (),
    ) -> None:
        self._path = path
        self._alignment, self._chunk_alignment = segment_alignment, chunk_alignment
        self._force = force
        self._shard_bytes = shard_bytes
        self._shard_starts = shard_starts
        self._is_sharded = bool(shard_bytes or shard_starts)
        self._n_segments = 0
        self._stack = ExitStack()
        self._writers: list[Writer] = []
        if self._is_sharded:
            check_sharded_name(path)
        refuse_existing(index_path(path) if self._is_sharded else path, force)
        remove_left_over(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def begin_segment(
        self, name: str, raw_bytes: int, more: Mapping[str, object] = MappingProxyType({})
    ) -> None:
        """Begin a segment as Writer.begin_segment does, in a further file where it would not fit.

        Encoded the segment's tensors take at most about `raw_bytes`.
        """
        limit = self._shard_bytes
        is_full = bool(limit and self._writers and self._writers[-1].offset + raw_bytes > limit)
        if not self._writers or is_full or self._n_segments in self._shard_starts:
            self._begin_file()
        self._writers[-1].begin_segment(name, more)
        self._n_segments += 1

    def _begin_file(self) -> Writer:
        number = len(self._writers) + 1
        name_now = shard_path(self._path, number, 0) if self._is_sharded else self._path
        writer = Writer(name_now, self._alignment, force=self._force, chunk_alignment=self._chunk_alignment)
        self._writers.append(self._stack.enter_context(writer))
        return writer

    def add_tensor(
        self,
        record: TensorRecord,
        chunks: Iterable[Iterable[EncodedChunk]],
        same_as: Mapping[str, str] = MappingProxyType({}),
        like: Mapping[str, object] = MappingProxyType({}),
    ) -> int:
        """Append a tensor to the file that is written, as Writer.add_tensor does."""
        return self._writers[-1].add_tensor(record, chunks, same_as, like)

    def copy_asset(
        self, asset: AssetRecord, chunks: Iterable[EncodedChunk], like: Mapping[str, object]
    ) -> None:
        """Append an asset as Writer.copy_asset does. Assets go into the first file, which no tensor may follow in."""
        self._first().copy_asset(asset, chunks, like)

    def _first(self) -> Writer:
        return self._writers[0] if self._writers else self._begin_file()  # a model may have no tensors

    def seal_unpublished(
        self, assets: Mapping[str, bytes], metadata: Mapping[str, str], sources: Json | None = None
    ) -> Path:
        """Write assets and index of an output that is one file. It can be read at the path, until the context ends."""
        first = self._first()
        for name, data in assets.items():
            first.add_asset(name, data)
        first.seal(metadata, sources=sources)
        return first.temporary

    def finish(
        self,
        assets: Mapping[str, bytes],
        metadata: Mapping[str, str],
        partial_plan: Json | None = None,
        unknown: Unknown = NOTHING_UNKNOWN,
        sources: Json | None = None,
    ) -> list[Sealed]:
        """Write assets and indexes, `sources` into the first, then publish every file, the shards' index last.

        With `force`, shards of a model that was there under this name and had another number of them are removed.
        """
        first = self._first()
        for name, data in assets.items():
            first.add_asset(name, data)
        content = self._content()
        if not self._is_sharded:
            sealed = [first.seal(metadata, partial_plan, unknown=unknown, content=content, sources=sources)]
            first.publish()
            return sealed
        count = len(self._writers)
        sealed = [
            writer.seal(
                metadata,
                partial_plan,
                Shard(number, count),
                path=shard_path(self._path, number, count),
                unknown=unknown,
                content=content,
                sources=sources if number == 1 else None,
            )
            for number, writer in enumerate(self._writers, start=1)
        ]
        shards = [(writer.temporary, whole) for writer, whole in zip(self._writers, sealed, strict=True)]
        index = publish_shards(self._path, shards, force=self._force)
        return [*sealed, index]

    def _content(self) -> str | None:
        """The model's digest; None where a tensor has none."""
        records = [record for writer in self._writers for record in writer.tensors]
        tied = {r.name: r.tied_to for r in records if r.tied_to is not None}
        digests = {r.name: r.content for r in records if r.content is not None}
        is_known = bool(digests) and len(digests) + len(tied) == len(records)
        return content_of_model(digests, tied) if is_known else None


def publish_shards(path: Path, shards: Sequence[tuple[Path, Sealed]], *, force: bool) -> Sealed:
    """Give whole shards of the model `path` their names, each from a temporary one, and after them their index its own.

    The index's digests tell the shards from some that had these names before. All is published, or nothing. With
    `force`, shards of a model that was there under this name and had another number of them are removed.
    """
    text = dump(
        {
            "format": "spq-shards",
            "version": 1,
            "shards": [
                {"file": s.path.name, "file_bytes": s.file_bytes, "digest": s.digest.hex()} for _, s in shards
            ],
        }
    )
    index = index_path(path)
    temporary, file = open_temporary(index)
    try:
        with file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
            names = [(written, sealed.path) for written, sealed in shards]
            publish_together([*names, (temporary, index)], force=force)
    finally:
        discard(temporary)
    if force:
        _remove_stale(path, {sealed.path for _, sealed in shards})
    return Sealed(index, len(text), b"")


def _remove_stale(path: Path, current: Collection[Path]) -> None:
    """Shards of the model that was replaced, where their number was another."""
    of_this_model = re.compile(rf"{re.escape(path.stem)}-\d{{5}}-of-\d{{5}}{re.escape(path.suffix)}")
    for other in list(path.parent.iterdir()):
        if of_this_model.fullmatch(other.name) and other not in current:
            other.unlink(missing_ok=True)
