"""Records of source files: how the files that a model was packed from are made again (FORMAT.md 7.2)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from spqfmt import wire
from spqfmt.asset_names import is_source_name
from spqfmt.container.strict_json import Json, hex_digest, member, optional
from spqfmt.errors import CorruptError, LimitError
from spqfmt.kernels.json_text import Wanted, project_json

SOURCES: Wanted = {"literals": "scalar", "files": wire.MAX_INDEX_RAW_BYTES}
_FILE: Wanted = {"name": "scalar", "file_bytes": "scalar", "sha256": "scalar", "pieces": "lists"}
_LENGTHS = (1, 3, 5)


class Piece(NamedTuple):
    """Some literals, then part `part` of tensor `tensor`, or `n_bytes` of it from byte `first` on."""

    literal_bytes: int
    tensor: int | None = None
    part: int = 0
    first: int = 0
    n_bytes: int | None = None

    def to_json(self) -> list[int]:
        """Return the piece as it stands in the index."""
        if self.tensor is None:
            return [self.literal_bytes]
        some = [] if self.n_bytes is None else [self.first, self.n_bytes]
        return [self.literal_bytes, self.tensor, self.part, *some]


class Pieces(Sequence[Piece]):
    """The pieces of a file, in order, as arrays: an index may list millions."""

    def __init__(self, integers: NDArray[np.int64], lengths: NDArray[np.int64]) -> None:
        """`lengths` of the lists that `integers` are, one after the other; each 1, 3 or 5."""
        self._integers, self._lengths = integers, lengths
        self._begins = np.cumsum(lengths) - lengths

    def __len__(self) -> int:
        return len(self._lengths)

    def __getitem__(self, at: int) -> Piece:  # type: ignore[override]  # no slices
        begin = int(self._begins[at])
        return Piece(*self._integers[begin : begin + int(self._lengths[at])].tolist())

    def __iter__(self) -> Iterator[Piece]:
        return map(self.__getitem__, range(len(self)))

    @property
    def literal_bytes(self) -> int:
        """Bytes of the literals of all pieces."""
        return sum(self._integers[self._begins].tolist())

    @property
    def last_tensor(self) -> int:
        """The largest number of a tensor; -1 where there is none."""
        return int(self._integers[self._begins[self._lengths > 1] + 1].max(initial=-1))


@dataclass(frozen=True)
class SourceFileRecord:
    """A file that the model was packed from. Without pieces it is an asset, was left out, or changed."""

    name: str
    file_bytes: int
    sha256: str
    pieces: Sequence[Piece] | None = None

    def to_json(self) -> Json:
        """Return the record as it stands in the index."""
        record: Json = {"name": self.name, "file_bytes": self.file_bytes, "sha256": self.sha256}
        if self.pieces is not None:
            record["pieces"] = [piece.to_json() for piece in self.pieces]
        return record


@dataclass(frozen=True)
class Sources:
    """The source files, and the name of the asset that holds the literals."""

    literals: str | None
    files: tuple[SourceFileRecord, ...]

    def to_json(self) -> Json:
        """Return the records as they stand in the index."""
        literals: Json = {} if self.literals is None else {"literals": self.literals}
        return literals | {"files": [file.to_json() for file in self.files]}


def parse_sources(root: Json, text: bytes, assets: dict[str, int]) -> Sources | None:
    """The record of an index, checked but for what the tensors decide; `assets` have these lengths."""
    record = optional(root, "sources", dict, "index")
    if record is None:
        return None
    literals = optional(record, "literals", str, "sources")
    if literals is not None and literals not in assets:
        raise CorruptError(f"sources: no asset {literals[:80]!r}")
    spans = np.frombuffer(member(record, "files", bytes, "sources"), np.int64).reshape(-1, 2)
    files = [_file(project_json(text, begin, end, _FILE)) for begin, end in spans.tolist()]
    if len({file.name for file in files}) < len(files):
        raise CorruptError("sources: a file is there twice")
    made = [file for file in files if file.pieces is not None]
    _check_names(assets, [file.name for file in made])
    due = sum(file.pieces.literal_bytes for file in made if isinstance(file.pieces, Pieces))
    if due != (0 if literals is None else assets[literals]):
        raise CorruptError("sources: the pieces do not use up the literals")
    return Sources(literals, tuple(files))


def check_sources(sources: Sources, n_tensors: int, spq_bytes: int) -> None:
    """Raise FormatError for pieces of tensors that are not there, and for files that are too large for a model."""
    made = [file for file in sources.files if isinstance(file.pieces, Pieces)]
    if sum(file.file_bytes for file in made) > wire.EXPANSION_RATIO * spq_bytes + wire.EXPANSION_SLACK_BYTES:
        raise LimitError(f"sources: {spq_bytes} bytes cannot hold these files")
    for file in made:
        assert isinstance(file.pieces, Pieces)
        if file.pieces.last_tensor >= n_tensors:
            raise CorruptError(f"source file {file.name!r}: no tensor {file.pieces.last_tensor}")


def _file(record: object) -> SourceFileRecord:
    if not isinstance(record, dict):
        raise CorruptError("sources: a file is not an object")
    name = member(record, "name", str, "sources: a file")
    where = f"source file {name[:80]!r}"
    if not name:
        raise CorruptError("sources: a file without a name")
    if len(name.encode()) > wire.MAX_NAME_BYTES:
        raise LimitError(f"{where}: a name has more than {wire.MAX_NAME_BYTES} bytes")
    sha256 = hex_digest(record, "sha256", where)
    if sha256 is None:
        raise CorruptError(f"{where}: no sha256")
    pieces = _pieces(record["pieces"], where) if "pieces" in record else None
    if pieces is not None and not is_source_name(name):
        raise CorruptError(f"{where}: no relative path")
    return SourceFileRecord(name, member(record, "file_bytes", int, where), sha256, pieces)


def _pieces(found: object, where: str) -> Pieces:
    if not isinstance(found, tuple):
        raise CorruptError(f"{where}: pieces are not lists of integers")
    integers, lengths = (np.frombuffer(part, np.int64) for part in found)
    if not np.isin(lengths, _LENGTHS).all() or (integers < 0).any():
        raise CorruptError(f"{where}: a piece is not 1, 3 or 5 integers of at least 0")
    return Pieces(integers, lengths)


def _check_names(assets: dict[str, int], made: list[str]) -> None:
    both = next((name for name in made if name in assets), None)
    if both is not None:
        raise CorruptError(f"sources: {both!r} is an asset, too")
    names = {*assets, *made}
    for name in names:
        above = name
        while "/" in above:
            above = above.rpartition("/")[0]
            if above in names:
                raise CorruptError(f"sources: {name!r} lies in another file")
