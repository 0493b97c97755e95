"""What an interrupted pack has done so far, kept beside OUT as OUT.spq.resume/: one .spq file for each block, or shard.

`pack.json` says of which source and options the blocks are; a later pack goes on only with the same. `search.json`
holds what a method that searches has found before the first block. Nothing in the folder is trusted: the files are read
with the checks of any .spq file, and each block's source tensors must have the checksum that they had. Who packs holds
a lock on `lock`.
"""

import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from spqfmt import systems
from spqfmt.codecs.chunks import EncodedChunk
from spqfmt.container.reader import Reader
from spqfmt.container.writer import Writer
from spqfmt.errors import EndedError, FormatError, OptionError
from spqfmt.processes import Processes
from spqfmt.reading.restore import column_scale
from spqfmt.records import TensorRecord
from spqfmt.schemes.base import Encoded, Float32, StreamData
from spqfmt.schemes.floats import Scale, widen
from spqfmt.schemes.registry import SCHEMES
from spqfmt.wire import CHUNK_ALIGNMENT

SUFFIX = ".resume"
_IDENTITY = "pack.json"
_SEARCH = "search.json"
_TRIES, _PAUSE = 20, 0.05
_LOCK = "lock"
# Nothing else is ever removed.
_OURS = re.compile(
    r"lock|(pack|search)\.json(\.part)?|(block|shard)-\d{5}\.(spq|json)|\.(block|shard)-\d{5}\.spq\.[0-9a-f]{8}\.part"
)


class ResumeFolder:
    """The folder beside `out` that a pack is resumed from, by blocks or by another unit.

    Within the context no other process can have it; a killed one holds it no longer.
    """

    def __init__(self, out: Path, *, resume: bool, force: bool, unit: str = "block") -> None:
        self._out = out
        self.path = out.with_name(out.name + SUFFIX)
        self._resume = resume
        self._force = force
        self._unit = unit
        self._identity: dict[str, object] = {}
        self._is_guest = False
        self.n_wanted: int | None = None
        """Blocks that the pack will have, once they are known."""

    def __enter__(self) -> Self:
        """Take the folder for this process.

        Raises OptionError when it is another's, holds more than ours, or not what was asked for.
        """
        if self._resume and not self.path.exists():
            raise OptionError(
                f"{self.path}: not there, so there is nothing to resume; start without --resume"
            )
        self._refuse_others()
        self._lock = self._locked()
        try:
            if self._resume and not self._left():
                raise OptionError(f"{self.path}: it holds nothing to resume; start without --resume")
            if self._left() and not self._resume and not self._force:
                raise OptionError(
                    f"{self.path} is what an interrupted pack left: --resume goes on there, --force starts over"
                )
        except BaseException:
            self._release()
            raise
        return self

    def _refuse_others(self) -> None:
        """Raise when the name is that of something which no pack has made."""
        if self.path.is_symlink() or (self.path.exists() and not self.path.is_dir()):
            raise OptionError(f"{self.path}: not a folder of an interrupted pack; move it away")
        other = next(iter(sorted(self._contents() - self._ours())), None)
        if other is not None:
            raise OptionError(
                f"{self.path / other}: not of an interrupted pack, in whose folder it lies; move it away"
            )

    def _take_lock(self, file: BinaryIO) -> None:
        """Wait a second at most: the children of a killed process hold its lock too, until they have ended."""
        for left in range(_TRIES - 1, -1, -1):
            try:
                systems.lock(file, wait=False)
                return
            except BlockingIOError:
                if left:
                    time.sleep(_PAUSE)
        raise OptionError(
            f"{self._out}: another process is packing it now; wait until it is done, or give another name"
        )

    def _locked(self) -> BinaryIO:
        while True:
            self.path.mkdir(exist_ok=True)
            try:
                file = (self.path / _LOCK).open("ab")
            except FileNotFoundError:  # another pack came to its end meanwhile, and removed the folder
                continue
            try:
                self._take_lock(file)
            except OptionError:
                file.close()
                raise
            except OSError:
                return file  # no locks on this file system
            if os.fstat(file.fileno()).st_nlink:
                return file
            file.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Say how to go on after an interruption; after another error, keep only what is of use."""
        kept = self._kept()
        self._release()
        self._tell(error, kept)

    def _tell(self, error: BaseException | None, kept: str) -> None:
        if isinstance(error, KeyboardInterrupt):
            held = f"{self.path} holds {kept}, --resume goes on there" if kept else "nothing was left behind"
            raise KeyboardInterrupt(f"interrupted; {held}") from error
        if isinstance(error, EndedError) and kept:
            error.args = (f"{error}; {self.path} holds {kept}, --resume goes on there",)
        if isinstance(error, OSError) and kept:
            error.add_note(f"{self.path} holds {kept}, --resume goes on there")

    def _release(self) -> None:
        if not self._left():
            self.remove()
        self._lock.close()

    def _contents(self) -> set[str]:
        """What the folder holds but for the lock; nothing when it was removed."""
        try:
            return {entry.name for entry in os.scandir(self.path)} - {_LOCK}
        except FileNotFoundError:
            return set()

    def _ours(self) -> set[str]:
        """What packs have written there, the lock too."""
        try:
            files = [entry.name for entry in os.scandir(self.path) if entry.is_file(follow_symlinks=False)]
        except FileNotFoundError:
            return set()
        return {name for name in files if _OURS.fullmatch(name)}

    def _left(self) -> set[str]:
        """What is worth keeping: more than a description, and files that were not written to their end."""
        return {name for name in self._contents() if name != _IDENTITY and not name.endswith(".part")}

    def _kept(self) -> str:
        """What a resume need not do again, in words."""
        n_blocks = sum(1 for _ in self.path.glob(f"{self._unit}-*.spq"))
        of = f" of {self.n_wanted}" if self.n_wanted else ""
        blocks = f"{n_blocks}{of} {self._unit}{'' if n_blocks == 1 and not of else 's'}" if n_blocks else ""
        search = "the search" if (self.path / _SEARCH).exists() else ""
        return " and ".join(part for part in (search, blocks) if part)

    def begin(self, identity: Mapping[str, object]) -> None:
        """Take up what is there, or start over. `identity`: what two runs must have in common, as plain data.

        A guest leaves that to who holds the folder. Raises OptionError when what is there is of another pack.
        """
        if self._is_guest:
            return
        self._identity = json.loads(json.dumps(identity, sort_keys=True))
        if self._resume:
            self._compare()
            for name in self._ours():
                if name.endswith(".part"):
                    (self.path / name).unlink()
            return
        for name in self._ours() - {_LOCK}:
            (self.path / name).unlink()
        (self.path / _IDENTITY).write_text(json.dumps(self._identity, indent=1, sort_keys=True), "utf-8")

    def _compare(self) -> None:
        try:
            found = json.loads((self.path / _IDENTITY).read_text("utf-8"))
        except (OSError, ValueError):
            found = None
        if not isinstance(found, dict):
            raise OptionError(f"{self.path}: no sound {_IDENTITY} in it; --force starts over")
        if other := _what_differs(found, self._identity):
            raise OptionError(
                f"{self.path} is of a pack with other {other}; give the same to resume, or --force to start over"
            )

    def file(self, number: int) -> Path:
        """Where the block of this number is, once it is whole."""
        return self.path / f"{self._unit}-{number:05d}.spq"

    def save(
        self,
        number: int,
        name: str,
        tensors: Iterable[tuple[TensorRecord, Encoded]],
        encode: Callable[[StreamData], Iterable[EncodedChunk]],
        metadata: Mapping[str, str],
    ) -> None:
        """Write one block, durably: records without chunks, each with its scheme's data; `metadata` comes back."""
        with Writer(self.file(number), CHUNK_ALIGNMENT, force=True) as writer:
            for number_in_block, (record, encoded) in enumerate(tensors):
                # A block may have nothing to be quantized; a segment holds at least one tensor.
                if number_in_block == 0:
                    writer.begin_segment(name)
                writer.add_tensor(record, map(encode, encoded.streams), encoded.holders)
            writer.seal(metadata)
            writer.publish()

    def load(self, number: int) -> "SavedBlock | None":
        """A saved block; None when it is not there or damaged."""
        file = self.file(number)
        if not file.exists():
            return None
        try:
            with Reader(file) as reader:
                records = reader.index.by_name
                tensors = {name: ResumedTensor.read(reader, record) for name, record in records.items()}
                return SavedBlock(tensors, records, reader.index.metadata)
        except FormatError:
            return None

    def save_search(self, editing: Mapping[str, float]) -> None:
        """Keep the editing vector that was found; durable once the function returns."""
        unfinished = self.path / f"{_SEARCH}.part"
        with unfinished.open("w", encoding="utf-8") as file:
            json.dump(dict(editing), file, indent=1, sort_keys=True)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(self.path / _SEARCH)

    def load_search(self) -> dict[str, float] | None:
        """The editing vector; None when there is none or it is damaged."""
        try:
            found = json.loads((self.path / _SEARCH).read_text("utf-8"))
        except (OSError, ValueError):
            return None
        sound = isinstance(found, dict) and all(
            isinstance(r, float) and 0 <= r <= 0.5 for r in found.values()
        )
        return found if sound else None

    @contextmanager
    def as_guest(self) -> Iterator[Self]:
        """What a process does that writes into the folder of another one, which holds it."""
        self._is_guest = True
        try:
            yield self
        except BaseException as error:
            self._tell(error, self._kept())
            raise
        finally:
            with suppress(OSError):  # the last one that ends takes an empty folder along
                self.path.rmdir()

    def remove(self) -> None:
        """The pack is done, or has left nothing that could be taken up."""
        with suppress(OSError):  # another pack may begin there, and what is not ours keeps the folder
            for name in (*(self._ours() - {_LOCK}), _LOCK):  # the lock last: it keeps others out until then
                (self.path / name).unlink(missing_ok=True)
            self.path.rmdir()


@dataclass(frozen=True)
class ResumedTensor:
    """A tensor of a saved block, in the terms of its scheme again: the same streams, cut into the same chunks."""

    encoded: Encoded
    matrix: Float32
    column_scale: Scale | None = None

    @classmethod
    def read(cls, reader: Reader, record: TensorRecord) -> "ResumedTensor":
        """Read all that was stored of a tensor, and check it."""
        own, same_as = [], {}
        for stream in record.streams:
            sizes = tuple(chunk.n_elements for chunk in reader.owner(stream).chunks)
            data = StreamData(
                stream.role, stream.dtype, reader.read_elements(record, stream.role), sizes=sizes
            )
            if stream.same_as is None:
                own.append(data)
            else:
                same_as[stream.role] = data, reader.index.tensors[stream.same_as].name
        rows = reader.read_rows(record)
        matrix = rows if SCHEMES[record.scheme].is_quantized else widen(rows, record.dtype)
        encoded = Encoded(record.scheme, record.parameters, tuple(own), same_as)
        return cls(encoded, matrix, column_scale(reader, record))

    def encode(self) -> Encoded:
        """Return the tensor as it was encoded before."""
        return self.encoded

    def dequantize(self) -> Float32:
        """The matrix, before it is rounded to the tensor's dtype."""
        return self.matrix


@dataclass(frozen=True)
class SavedBlock:
    """Tensors and records by name, and the metadata given to `save`."""

    tensors: Mapping[str, ResumedTensor]
    records: Mapping[str, TensorRecord]
    metadata: Mapping[str, str]


def check_alike(identity: Mapping[str, object], processes: Processes) -> None:
    """Raise OptionError, in all processes, unless they are about to pack the same. `identity` as for `begin`."""
    first, *others = processes.exchange(dict(identity))
    for number, one in enumerate(others, 1):
        if other := _what_differs(one, first):
            raise OptionError(
                f"process {number} would pack with other {other} than process 0; give all the same"
            )


def _what_differs(one: Mapping[str, object], other: Mapping[str, object]) -> str:
    """Name what two packs have not in common, in words; empty where they are alike."""
    keys = sorted(key for key in {*one, *other} if one.get(key) != other.get(key))
    return ", ".join(keys).replace("_", " ")
