"""The files that a model was packed from, made again byte for byte (FORMAT.md 7.2 and 7.3)."""

import hashlib
import os
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO

from spqfmt.asset_names import is_source_name, source_kinds
from spqfmt.cached import cached_property
from spqfmt.codecs.elements import packed
from spqfmt.container.located import located
from spqfmt.container.model import OpenModel
from spqfmt.container.reader import Reader
from spqfmt.container.source_records import Piece, SourceFileRecord, Sources
from spqfmt.errors import ChecksumError, CorruptError
from spqfmt.progress import Progress
from spqfmt.reading import origin_arrays, origin_gguf
from spqfmt.reading.rows import holder, read_tensor
from spqfmt.reading.settings import Settings, is_settings, read_settings, settings_of
from spqfmt.records import TensorRecord, dense_bytes

_LAYOUTS = {origin_arrays.LAYOUT: origin_arrays.array_part, origin_gguf.LAYOUT: origin_gguf.block_part}
"""What gives a part of a tensor, by the name and version of its origin's layout."""
CODE = "code, or not known to be harmless; written with --with-code alone"
NO_NAME = "its name may not be written into a folder"
OF_OTHERS = "it speaks of other files than those that are written"
NOT_ALONE = "not all files of the model can be written"
NOT_HELD = "not in the packed file"
NO_PIECES = "its name is none that a file of pieces may have"
CHANGED = "in the packed file, but not as the source had it"
NO_SOURCE = "in the packed file, but none of the source's files"


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
            reason = self._why_not_held(file)
            if not reason and kind is None:
                reason = NO_NAME
            elif not reason and not with_code and (kind == "code" or self._hides_code(file)):
                reason = CODE
            if reason:
                self.left_out[file.name] = reason
            else:
                self.written.append(file)
        # What is packed of a GGUF file are texts that it does not have itself.
        is_made = model.index.metadata.get("source") == "gguf"
        named = {self._sources.literals, *(file.name for file in self._sources.files)}
        for name in () if is_made or model.index.sources is None else self._assets:
            if name not in named:
                self.left_out[name] = NO_SOURCE

    @property
    def has_weights(self) -> bool:
        """Whether all files that hold tensors are written, and there are some."""
        written = {file.name for file in self.written}
        holding = [
            file for file in self._sources.files if any(p.tensor is not None for p in file.pieces or ())
        ]
        if not holding:
            # A model of empty tensors has files of headers alone.
            is_empty = not any(
                record.n_weights for reader in self._readers for record in reader.index.tensors
            )
            return is_empty and any(
                _is_literal(f) and f.name.lower().endswith(".safetensors") for f in self.written
            )
        return all(file.name in written and not self._unknown_layout(file) for file in holding)

    @property
    def missing(self) -> dict[str, str]:
        """Names of all files that are not made with plain weights, but for assets, with the reason.

        Those of `whole` may be, and are among them.
        """
        reasons = {}
        for file in self._sources.files:
            if file.pieces is not None or file.name not in self._assets:
                unknown = "" if file.name in self.left_out else self._unknown_layout(file)
                why = OF_OTHERS if _is_literal(file) else NOT_ALONE
                reasons[file.name] = self.left_out.get(file.name) or unknown or why
        return reasons

    @property
    def of_weights(self) -> frozenset[str]:
        """Names of the files that hold tensors, and of lists of such files."""
        return frozenset(
            file.name
            for file in self._sources.files
            if file.name.lower().endswith(".index.json")
            or any(p.tensor is not None for p in file.pieces or ())
        )

    @cached_property
    def whole(self) -> dict[str, list[bytes]]:
        """Bytes of the files that may be written and need no tensor, but for lists of files of weights."""
        found: dict[str, list[bytes]] = {}
        for file in self.written:
            if _is_literal(file) and not file.name.lower().endswith(".index.json"):
                data = bytes(self._literals_of[file.name])
                with located(self._readers[0].path):
                    _check(file, len(data), hashlib.sha256(data).hexdigest())
                changed = self.changed.get(file.name)
                found[file.name] = [data if changed is None else changed.data]
        return found

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
            for file in self._sources.files:
                if file.pieces is not None and not self._unknown_layout(file):
                    self._write(file, self._literals_of[file.name], nowhere)

    def write(self, folder: Path, progress: Progress) -> None:
        """Write them into `folder`, which exists. Raises ChecksumError where one is not what the source had."""
        for file in self.written:
            path = folder / file.name
            path.parent.mkdir(parents=True, exist_ok=True)
            self.write_one(file, path, progress)

    def write_one(self, file: SourceFileRecord, path: Path, progress: Progress) -> None:
        """Write one of them under a name that is not there, as `write` does."""
        with path.open("xb") as handle:
            if file.name in self.changed:
                handle.write(self.changed[file.name].data)
            else:
                self._write(file, self._literals_of[file.name], handle)
            handle.flush()
            os.fsync(handle.fileno())
        progress.advance(file.file_bytes, file.name)

    @cached_property
    def _literals_of(self) -> dict[str, memoryview]:
        """The literals of each file, by its name."""
        name = self._sources.literals
        literals = memoryview(b"" if name is None else self._assets[name].read_asset(name))
        found, at = {}, 0
        for file in self._sources.files:
            begin, at = at, at + sum(piece.literal_bytes for piece in file.pieces or ())
            found[file.name] = literals[begin:at]
        return found

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
            _check(file, n_bytes, digest.hexdigest())

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
        if file.pieces is None:
            found = read_settings(self._assets[file.name], file.name)
        else:
            # Nothing looks into parts of tensors before they are written.
            found = settings_of(file.name, bytes(self._literals_of[file.name])) if _is_literal(file) else None
        if found is not None and found.keys:
            self.changed[file.name] = found
        return found is None

    def _why_not_held(self, file: SourceFileRecord) -> str:
        """Why a file has no pieces and is not the asset of its name, as it was; empty where it is one of these."""
        if file.pieces is not None:
            return ""
        reader = None if file.name == self._sources.literals else self._assets.get(file.name)
        if reader is None:
            return NOT_HELD if is_source_name(file.name) else NO_PIECES
        data = reader.read_asset(file.name)
        is_same = len(data) == file.file_bytes and hashlib.sha256(data).hexdigest() == file.sha256
        return "" if is_same else CHANGED

    def _unknown_layout(self, file: SourceFileRecord) -> str:
        """What the parts of its tensors cannot be made by; empty where all can."""
        numbers = {piece.tensor for piece in file.pieces or () if piece.tensor is not None}
        for record in (self._tensor(number)[1] for number in numbers):
            if record.origin is None and record.is_named:
                return f"it needs the scheme {record.scheme}, which this spqfmt does not know"
            if record.origin is not None and record.origin not in _LAYOUTS:
                layout, version = record.origin
                return f"it needs the layout {layout} version {version}, which this spqfmt does not know"
        return ""


def _is_literal(file: SourceFileRecord) -> bool:
    return file.pieces is not None and all(piece.tensor is None for piece in file.pieces)


def _check(file: SourceFileRecord, n_bytes: int, sha256: str) -> None:
    if n_bytes != file.file_bytes:
        raise CorruptError(f"source file {file.name!r}: its pieces do not add up to its bytes")
    if sha256 != file.sha256:
        raise ChecksumError(f"source file {file.name!r}: it does not match its digest")
