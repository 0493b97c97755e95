"""A packed model, one file or several (FORMAT.md section 8): opened once, parsed once, closed once."""

import os
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Self, TypeAlias

from spqfmt.address import Address
from spqfmt.cached import cached_property
from spqfmt.container.output import INDEX_SUFFIX
from spqfmt.container.reader import Reader
from spqfmt.container.shards import n_bytes_at, open_shards
from spqfmt.errors import FormatError, NotSpqError
from spqfmt.records import Index, Segment, TensorRecord
from spqfmt.stand_ins import given_place, no_file

Held: TypeAlias = tuple[Reader, TensorRecord]
"""A tensor and the file that it is in."""


class OpenModel:
    """What all files of a model hold together. `readers` are of the files in order; a lone shard is opened as it is."""

    def __init__(self, path: Path, readers: tuple[Reader, ...]) -> None:
        self.path = path
        self.readers = readers
        self.tensors: Mapping[str, TensorRecord] = _Tensors(readers)
        """Records by name, in the order of execution, each made when it is asked for."""
        self._is_given_away = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all files that were not given away; later reads raise ValueError."""
        if not self._is_given_away:
            for reader in self.readers:
                reader.close()

    def give_away(self) -> tuple[Reader, ...]:
        """The readers, which whoever takes them closes."""
        self._is_given_away = True
        return self.readers

    @property
    def index(self) -> Index:
        """The first file's, which says what is said of the model: metadata, content digest, partial plan."""
        return self.readers[0].index

    @property
    def n_bytes(self) -> int:
        """Bytes of all files, the index of its shards among them."""
        shard_index_bytes = n_bytes_at(self.path) if self.path != self.readers[0].path else 0
        return sum(reader.file_bytes for reader in self.readers) + shard_index_bytes

    def reader_of(self, name: str) -> Reader:
        """The file that a tensor is in. KeyError where there is none of that name."""
        for reader in self.readers:
            if name in reader.index.by_name:
                return reader
        raise KeyError(name)

    def held(self, name: str) -> Held:
        """A tensor, whose record is made now. Raises KeyError, FormatError."""
        reader = self.reader_of(name)
        return reader, reader.index.by_name[name]

    def segments(self) -> Iterator[tuple[Reader, Segment]]:
        """The segments of all files, in order."""
        return ((reader, segment) for reader in self.readers for segment in reader.index.segments)

    @cached_property
    def asset_holders(self) -> dict[str, Reader]:
        """The files that hold assets, by an asset's name."""
        return {asset.name: reader for reader in self.readers for asset in reader.index.assets}

    @property
    def asset_names(self) -> list[str]:
        """The model's small files, among which literals of its source's files are not (FORMAT.md 7.2)."""
        sources = self.index.sources
        return [n for n in self.asset_holders if sources is None or n != sources.literals]

    def read_asset(self, name: str) -> bytes:
        """The bytes of an asset. KeyError where there is none of that name."""
        return self.asset_holders[name].read_asset(name)

    @property
    def is_whole(self) -> bool:
        """Whether this is more than one shard of several."""
        shard = self.index.shard
        return shard is None or len(self.readers) == shard.count

    def refuse_lone_shard(self) -> None:
        """Raise FormatError when this is one shard of several, which is not a whole model."""
        shard = self.index.shard
        if shard is not None and not self.is_whole:
            whole = self.path.with_name(f"{self.path.name.rsplit('-', 3)[0]}.spq{INDEX_SUFFIX}")
            raise FormatError(f"{self.path}: only shard {shard.number} of {shard.count}; give {whole}")


class _Tensors(Mapping[str, TensorRecord]):
    def __init__(self, readers: tuple[Reader, ...]) -> None:
        self._indexes = [reader.index.by_name for reader in readers]

    def __getitem__(self, name: str) -> TensorRecord:
        return next((index for index in self._indexes if name in index), self._indexes[0])[name]

    def __iter__(self) -> Iterator[str]:
        return chain.from_iterable(self._indexes)

    def __len__(self) -> int:
        return sum(map(len, self._indexes))

    def __contains__(self, name: object) -> bool:
        return any(name in index for index in self._indexes)


def is_packed(path: Path) -> bool:
    """Whether `path` is to be read as a packed model, by its name; a folder is none, whatever its name.

    At an address there are no other models.
    """
    return isinstance(path, Address) or (
        path.name.endswith((".spq", f".spq{INDEX_SUFFIX}")) and not path.is_dir()
    )


def open_model(path: str | os.PathLike[str]) -> OpenModel:
    """Open a .spq file, or all shards that a .spq.index.json lists. Raises FormatError, OptionError, OSError."""
    path = given_place(path)
    if not isinstance(path, Address) and (instead := no_file(path)):
        raise NotSpqError(f"{path}: {instead}")
    is_sharded = path.name.endswith(INDEX_SUFFIX)
    return OpenModel(path, open_shards(path) if is_sharded else (Reader(path),))
