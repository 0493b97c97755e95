"""Opens a model that is one file or several (FORMAT.md section 8) as one list of readers."""

import os
from collections.abc import Sequence
from pathlib import Path

from spqfmt import wire
from spqfmt.container.located import located
from spqfmt.container.output import INDEX_SUFFIX, shard_path
from spqfmt.container.reader import Reader
from spqfmt.container.source_records import check_sources
from spqfmt.container.strict_json import Json, member, objects, parse
from spqfmt.errors import CorruptError, FormatError, LimitError, UnsupportedError
from spqfmt.records import Shard


def open_readers(path: str | os.PathLike[str]) -> tuple[Reader, ...]:
    """The reader of a .spq file, or those of all shards that a .spq.index.json lists, in order.

    A single file that says that it is one shard of several is opened as it is.
    """
    path = Path(path)
    if not path.name.endswith(INDEX_SUFFIX):
        return (Reader(path),)
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


def refuse_lone_shard(path: str | os.PathLike[str], readers: Sequence[Reader]) -> None:
    """Raise FormatError when the readers are one shard of several, which is not a whole model."""
    shard = readers[0].index.shard
    if shard is not None and len(readers) != shard.count:
        path = Path(path)
        whole = f"{path.name.rsplit('-', 3)[0]}.spq{INDEX_SUFFIX}"
        raise FormatError(f"{path}: only shard {shard.number} of {shard.count}; give {path.with_name(whole)}")


def model_bytes(path: str | os.PathLike[str], readers: Sequence[Reader]) -> int:
    """Bytes of all files of an opened model, the index of its shards among them."""
    path = Path(path)
    shard_index_bytes = path.stat().st_size if path != readers[0].path else 0
    return sum(reader.file_bytes for reader in readers) + shard_index_bytes


def _open_shard(index: Path, name: str) -> Reader:
    try:
        return Reader(index.with_name(name))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            error.errno, f"not there, but {index.name} lists it", error.filename
        ) from None


def _entries(path: Path) -> list[Json]:
    if path.stat().st_size > wire.MAX_INDEX_RAW_BYTES:
        raise LimitError(f"more than {wire.MAX_INDEX_RAW_BYTES} bytes")
    root = parse(path.read_bytes())
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
