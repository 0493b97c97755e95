"""Opens the shards of a model by their index, and checks that they belong together (FORMAT.md section 8)."""

from pathlib import Path

import numpy as np

from spqfmt import wire
from spqfmt.container.located import located
from spqfmt.container.output import INDEX_SUFFIX, shard_path
from spqfmt.container.reader import Reader
from spqfmt.container.source import open_source
from spqfmt.container.source_records import check_sources
from spqfmt.container.strict_json import Json, member, objects, parse
from spqfmt.errors import CorruptError, LimitError, NotSpqError, UnsupportedError
from spqfmt.records import Shard
from spqfmt.stand_ins import BEGIN_BYTES, what_came_instead


def open_shards(path: Path) -> tuple[Reader, ...]:
    """The readers of all shards that an index of shards lists, in order. Raises FormatError, OSError."""
    readers: list[Reader] = []
    try:
        with located(path):
            for number, entry in enumerate(_entries(path), start=1):
                readers.append(_open_shard(path, member(entry, "file", str, "shard")))
                _check(readers[-1], entry, number)
            names = [name for reader in readers for name in reader.index.by_name]
            if len(set(names)) != len(names):
                raise CorruptError("a tensor is in two shards")
            sources = readers[0].index.sources
            if sources is not None:
                check_sources(sources, len(names), sum(reader.file_bytes for reader in readers))
    except BaseException:
        for reader in readers:
            reader.close()
        raise
    return tuple(readers)


def n_bytes_at(path: Path) -> int:
    """The size of a file, here or elsewhere."""
    source = open_source(path)
    source.close()
    return source.n_bytes


def _open_shard(index: Path, name: str) -> Reader:
    try:
        return Reader(index.with_name(name))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            error.errno, f"not there, but {index.name} lists it", error.filename
        ) from None


def _entries(path: Path) -> list[Json]:
    source = open_source(path)
    try:
        if source.n_bytes > wire.MAX_INDEX_RAW_BYTES:
            raise LimitError(f"more than {wire.MAX_INDEX_RAW_BYTES} bytes")
        text = np.empty(source.n_bytes, np.uint8)
        source.read_into(0, text)
    finally:
        source.close()
    data = text.tobytes()
    if instead := what_came_instead(data[:BEGIN_BYTES]):
        raise NotSpqError(instead)
    if not data:
        raise NotSpqError("an empty file, not an index of shards; get it again")
    root = parse(data)
    if root.get("format") != "spq-shards":
        raise CorruptError("not an index of shards")
    version = member(root, "version", int, "shards")
    if version != 1:
        raise UnsupportedError(
            f"shard index version {version}; update spqfmt", f"shard index version {version}"
        )
    entries = objects(member(root, "shards", list, "shards"), "shards")
    target = path.with_name(path.name.removesuffix(INDEX_SUFFIX))
    if not entries:
        raise CorruptError("no shards")
    for number, entry in enumerate(entries, start=1):
        expected = shard_path(target, number, len(entries)).name
        if entry.get("file") != expected:
            raise CorruptError(f"shard {number} is not named {expected}")
    return entries


def _check(reader: Reader, entry: Json, number: int) -> None:
    count = int(reader.path.stem.rsplit("-", 1)[1])
    if reader.index.shard != Shard(number, count):
        raise CorruptError(f"{reader.path.name} is not shard {number} of {count}")
    if entry.get("file_bytes") != reader.file_bytes or entry.get("digest") != reader.trailer.digest.hex():
        raise CorruptError(
            f"{reader.path.name} is not the file that the index of shards lists: it is of another model, or a pack "
            "was stopped while it replaced this one; pack it again, or get all files again"
        )
