"""The files that a model was packed from, made again byte for byte (FORMAT.md 7.2 and 7.3)."""

import hashlib
import os
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO

from spqfmt.asset_names import source_kinds
from spqfmt.codecs.elements import packed
from spqfmt.container.located import located
from spqfmt.container.model import OpenModel
from spqfmt.container.reader import Reader
from spqfmt.container.source_records import Piece, SourceFileRecord, Sources
from spqfmt.errors import ChecksumError, CorruptError
from spqfmt.progress import Progress
from spqfmt.reading import origin_arrays, origin_gguf
from spqfmt.reading.rows import holder, read_tensor
from spqfmt.reading.settings import Settings, is_settings, read_settings
from spqfmt.records import TensorRecord, dense_bytes

_LAYOUTS = {origin_arrays.LAYOUT: origin_arrays.array_part, origin_gguf.LAYOUT: origin_gguf.block_part}
"""What gives a part of a tensor, by the name and version of its origin's layout."""
CODE = "code, or what programs may run or follow; written with --with-code alone"
NO_NAME = "its name may not be written into a folder"
NOT_HELD = "not in the packed file"


class SourceFiles:
    """The source files of an opened model."""

    def __init__(self, model: OpenModel, *, with_code: bool) -> None:
        self._readers = model.readers
        self._sources = model.index.sources or Sources(None, ())
        self._firsts = list(accumulate((len(reader.index.tensors) for reader in self._readers), initial=0))
        self._last_part: tuple[tuple[int, int], bytes] | None = None
        self._assets = model.asset_holders
        kinds = source_kinds(file.name for file in self._sources.files)
        self.left_out: dict[str, str] = {}
        """Names of the files that are not written, with the reason."""
        self.changed: dict[str, Settings] = {}
        """Those of `written` that are written without some of their settings."""
        self.written: list[SourceFileRecord] = []
        for file in self._sources.files:
            kind = kinds.get(file.name)
            if file.pieces is None and not self._is_asset(file):
                self.left_out[file.name] = NOT_HELD
            elif kind is None:
                self.left_out[file.name] = NO_NAME
            elif not with_code and (kind == "code" or self._hides_code(file)):
                self.left_out[file.name] = CODE
            else:
                self.written.append(file)

    @property
    def has_weights(self) -> bool:
        """Whether all files that hold tensors are written, and there are some."""
        written = {file.name for file in self.written}
        holding = [
            file for file in self._sources.files if any(p.tensor is not None for p in file.pieces or ())
        ]
        return bool(holding) and all(file.name in written and self._is_known(file) for file in holding)

    @property
    def weights_left_out(self) -> dict[str, str]:
        """Files that hold tensors and are not written, with the reason."""
        return {
            file.name: self.left_out[file.name]
            for file in self._sources.files
            if file.name in self.left_out and any(piece.tensor is not None for piece in file.pieces or ())
        }

    def check(self) -> None:
        """Raise CorruptError where pieces are not what their tensors have, or do not add up to the file."""
        for file in self._sources.files:
            if file.pieces is None:
                continue
            with located(self._readers[0].path):
                lengths = [self._piece_bytes(piece, file.name) for piece in file.pieces]
                if None not in lengths and sum(n or 0 for n in lengths) != file.file_bytes:
                    raise CorruptError(f"source file {file.name!r}: its pieces do not add up to its bytes")

    def check_digests(self) -> None:
        """Make all files that consist of pieces, but for those with layouts that are not known, and write none.

        Raises CorruptError where a part cannot be made, ChecksumError where a file is not what the source had.
        """
        with Path(os.devnull).open("wb") as nowhere:
            for file, literals in self._with_literals():
                if file.pieces is not None and self._is_known(file):
                    self._write(file, literals, nowhere)

    def _with_literals(self) -> Iterator[tuple[SourceFileRecord, memoryview]]:
        """All files, each with the literals that its pieces use."""
        literals = self._literals()
        at = 0
        for file in self._sources.files:
            begin, at = at, at + sum(piece.literal_bytes for piece in file.pieces or ())
            yield file, literals[begin:at]

    def write(self, folder: Path, progress: Progress) -> None:
        """Write them into `folder`, which exists. Raises ChecksumError where one is not what the source had."""
        written = {file.name for file in self.written}
        for file, literals in self._with_literals():
            if file.name not in written:
                continue
            path = folder / file.name
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as handle:
                if file.name in self.changed:
                    handle.write(self.changed[file.name].data)
                else:
                    self._write(file, literals, handle)
                handle.flush()
                os.fsync(handle.fileno())
            progress.advance(file.file_bytes, file.name)

    def _literals(self) -> memoryview:
        name = self._sources.literals
        return memoryview(b"" if name is None else self._assets[name].read_asset(name))

    def _write(self, file: SourceFileRecord, literals: memoryview, handle: BinaryIO) -> None:
        digest = hashlib.sha256()
        n_bytes = 0
        for data in self._data(file, literals):
            n_bytes += len(data)
            if n_bytes > file.file_bytes:
                break
            digest.update(data)
            handle.write(data)
        with located(self._readers[0].path):
            if n_bytes != file.file_bytes:
                raise CorruptError(f"source file {file.name!r}: its pieces do not add up to its bytes")
            if digest.hexdigest() != file.sha256:
                raise ChecksumError(f"source file {file.name!r}: it does not match its digest")

    def _data(self, file: SourceFileRecord, literals: memoryview) -> Iterator[bytes | memoryview]:
        if file.pieces is None:
            yield self._assets[file.name].read_asset(file.name)
            return
        for piece in file.pieces:
            yield literals[: piece.literal_bytes]
            literals = literals[piece.literal_bytes :]
            if piece.tensor is not None:
                whole = self._part(piece.tensor, piece.part)
                n = len(whole) if piece.n_bytes is None else piece.n_bytes
                if piece.first + n > len(whole):
                    raise CorruptError(f"source file {file.name!r}: a piece passes its part")
                yield memoryview(whole)[piece.first : piece.first + n]

    def _part(self, number: int, part: int) -> bytes:
        """A part of a tensor; the last one is kept for the pieces that follow."""
        if self._last_part is None or self._last_part[0] != (number, part):
            self._last_part = (number, part), self._made(number, part)
        return self._last_part[1]

    def _made(self, number: int, part: int) -> bytes:
        reader, record = self._tensor(number)
        if record.origin is None:
            elements = read_tensor(reader, record)
            return packed(elements.reshape(-1), record.dtype).tobytes()
        origin = reader.index.json_of(reader.index.by_name.numbers[record.name])["origin"]
        assert isinstance(origin, dict)
        with located(reader.path):
            return _LAYOUTS[record.origin](reader, record, origin, part)

    def _tensor(self, number: int) -> tuple[Reader, TensorRecord]:
        at = max(k for k, first in enumerate(self._firsts[:-1]) if first <= number)
        reader = self._readers[at]
        return reader, holder(reader, reader.index.tensors[number - self._firsts[at]])

    def _piece_bytes(self, piece: Piece, name: str) -> int | None:
        """Bytes of a piece; None where only making its part tells."""
        if piece.tensor is None:
            return piece.literal_bytes
        _, record = self._tensor(piece.tensor)
        if record.origin is not None:
            return None if piece.n_bytes is None else piece.literal_bytes + piece.n_bytes
        whole = dense_bytes(record.dtype, record.n_weights)
        n = whole if piece.n_bytes is None else piece.n_bytes
        if piece.part != 0 or piece.first + n > whole:
            raise CorruptError(f"source file {name!r}: tensor {record.name!r} has no such part")
        return piece.literal_bytes + n

    def _hides_code(self, file: SourceFileRecord) -> bool:
        """Whether code stands in its settings and cannot be left out; where it can, `changed` has it from now on."""
        if not is_settings(file.name):
            return False
        # pack keeps them as assets, and nothing looks into pieces before they are written.
        found = None if file.pieces is not None else read_settings(self._assets[file.name], file.name)
        if found is not None and found.keys:
            self.changed[file.name] = found
        return found is None

    def _is_asset(self, file: SourceFileRecord) -> bool:
        """Whether a file without pieces is the asset of its name, as it was."""
        reader = self._assets.get(file.name)
        if reader is None:
            return False
        data = reader.read_asset(file.name)
        return len(data) == file.file_bytes and hashlib.sha256(data).hexdigest() == file.sha256

    def _is_known(self, file: SourceFileRecord) -> bool:
        """Whether the parts of all its tensors can be made."""
        numbers = {piece.tensor for piece in file.pieces or () if piece.tensor is not None}
        records = (self._tensor(number)[1] for number in numbers)
        return all(r.origin in _LAYOUTS if r.origin is not None else not r.is_named for r in records)
