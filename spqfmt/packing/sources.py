"""What gives the source's files back, byte for byte: which parts of them are tensors, and the rest as literals.

A file is described where the restored tensors have the very bytes that lie in it, or their codes give them: of packs by
the methods lossless and keep. What is an asset already needs no pieces; what else is small and no weights of another
kind is literals as a whole. The rest keeps its name and digest, so that a reader can say what is missing.
"""

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import count
from math import prod
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from spqfmt.asset_names import is_source_name, source_kinds
from spqfmt.codecs.elements import Elements
from spqfmt.codecs.tasks import Task, submit
from spqfmt.container.source_records import Piece, SourceFileRecord, Sources
from spqfmt.errors import EncodeError
from spqfmt.importers._source_file import SourceFile
from spqfmt.importers.base import Asset, SourceModel, SourcePart, SourcePlace, SourceTensor
from spqfmt.packing.plan import PackPlan
from spqfmt.packing.put_together import as_written, bytes_again, made_at_once
from spqfmt.packing.target import KEEPING
from spqfmt.quantize.base import KeepingMethod, Method
from spqfmt.reading import origin_arrays
from spqfmt.records import dense_bytes
from spqfmt.schemes.base import Encoded

ARRAYS = origin_arrays.LAYOUT[0]
LITERALS = "source.literals"
"""The asset's name, or this with a number: none that a reader of 1.0 would write as a file."""
QUANTIZED = "quantized"
DEQUANTIZED = "its codes were dequantized"
# Headers of the largest checkpoints have some MB.
_MAX_LITERAL_BYTES = 64 << 20
_MAX_WHOLE_BYTES = 8 << 20
NO_SOURCE_NAME = "a name that a file cannot hold (FORMAT.md 7.2)"
_AT_ONCE = 1 << 24
_LITERAL_PART = 4
"""A file of torch's, or GGUF, of which a larger part is no tensor's is left out: it would be stored twice."""


class _Array(NamedTuple):
    """Where a part of a tensor lies in a file."""

    offset: int
    n_bytes: int
    tensor: int
    part: int = 0
    first: int = 0
    """Where it begins in this part."""
    is_whole: bool = True


class _Taken(NamedTuple):
    """Pieces of a file, and where their literals lie in it, with their lengths."""

    pieces: list[Piece]
    literals: list[tuple[int, int]]

    @property
    def literal_bytes(self) -> int:
        return sum(n for _, n in self.literals)


class Described(NamedTuple):
    """The record of a source's files, the asset of its literals where there are some.

    `lost`: those of the model's own files that cannot be given back, with the reason.
    """

    sources: Sources
    assets: tuple[Asset, ...]
    lost: Mapping[str, str]


class Seen(NamedTuple):
    """What a process has found out of a source's files: digests of some, and those that are not to be described."""

    digests: Mapping[str, str]
    given_up: Collection[str]


class SourceDescription:
    """The source's files, their digests made by other threads while the model is packed.

    `files`: the names of those whose digests are made here; None are all.
    """

    def __init__(
        self, model: SourceModel, plan: PackPlan, method: Method, files: Collection[str] | None = None
    ) -> None:
        self._model = model
        keeps_codes = isinstance(method, KeepingMethod)
        why_not = "" if _gives_back(method, plan) else QUANTIZED
        self._why_not = DEQUANTIZED if model.is_dequantized else why_not
        self._places: dict[str, list[_Array]] = {}
        numbers = {planned.source.name: number for number, planned in enumerate(plan.tensors)}
        for planned in () if self._why_not else plan.tensors:
            source = planned.source
            # What a tied tensor has of its own are the bytes of the one that it is tied to.
            number = numbers[source.tied_to or source.name]
            n_bytes = dense_bytes(source.dtype, prod(source.shape))
            if source.place is not None and n_bytes:
                array = _Array(source.place.offset, n_bytes, number)
                self._places.setdefault(source.place.file, []).append(array)
            for k, run in enumerate(made_at_once(source.parts if keeps_codes or not source.form else ())):
                for part in run:
                    array = _Array(
                        offset=part.place.offset,
                        n_bytes=part.n_bytes,
                        tensor=number,
                        part=k,
                        first=part.first,
                        is_whole=len(run) == 1,
                    )
                    self._places.setdefault(part.place.file, []).append(array)
        self._digests: Mapping[str, Task[str]] = {
            name: submit(file.sha256, self._cuts(name, file))
            for name, file in model.named_files.items()
            if files is None or name in files
        }
        self.given_up: set[str] = set()
        """Files that are not described, since a tensor of theirs could not be put together again."""

    def _cuts(self, name: str, file: SourceFile) -> list[int]:
        """Where tensors begin and end: each must have been packed as it was when the file's digest was made."""
        runs = _runs(sorted(self._places.get(name, ())), file.n_bytes)
        return sorted(
            {cut for _, place in runs if place for cut in (place.offset, place.offset + place.n_bytes)}
        )

    def origin_of(self, source: SourceTensor, values: Elements) -> Mapping[str, object]:
        """What a dense tensor's record says of its origin; empty for one that lies in a file as it is.

        A tensor that could not be put together again is none of the file's, which is then not described.
        """
        places = [(part.place, part.first, part.n_bytes) for part in source.parts if not source.form]
        if source.place is not None:
            places.append((source.place, 0, values.nbytes))
        if self._why_not or source.turned is None or not places:
            return {}
        dims, axes = source.turned
        whole = np.ascontiguousarray(values.reshape(dims).transpose(axes)).reshape(-1).view(np.uint8)
        if not all(self._lies_at(place, [whole[at : at + n]], n) for place, at, n in places):
            self.given_up |= {place.file for place, _, _ in places}
            return {}
        parts = [{"stream": "values", "dims": list(dims), "axes": list(axes)}]
        return {"origin": {"layout": ARRAYS, "version": 1, "parts": parts}}

    def origin_of_codes(self, source: SourceTensor, encoded: Encoded) -> Mapping[str, object]:
        """What the record of codes says of their origin, which `check_codes` checks."""
        runs = self._runs_of(source, encoded)
        if not runs:
            return {}
        every = [run[0] for run in runs]
        of_one = len(every) == 1 and every[0].layout != ARRAYS
        of_arrays = {"form": source.form, "parts": [dict(part.made) for part in every]}
        made = every[0].made if of_one else of_arrays
        return {"origin": {"layout": every[0].layout, "version": 1, **made}}

    def check_codes(self, source: SourceTensor, encoded: Encoded) -> None:
        """Put the source's arrays together again.

        Raises EncodeError where these are others than it has: what cannot be put together is not taken apart.
        """
        for run in self._runs_of(source, encoded):
            again = bytes_again(run, source, encoded)
            for part in run:
                same = self._lies_at(part.place, again.take(part.n_bytes), part.n_bytes)
                if not same or (part is run[-1] and not again.is_over()):
                    raise EncodeError(
                        f"tensor {source.name!r}: its codes do not give the bytes of {part.place.file} again; "
                        f"--method {KEEPING} keeps these"
                    )

    def _runs_of(self, source: SourceTensor, encoded: Encoded) -> list[list[SourcePart]]:
        """The parts of a tensor's codes, those that are made at once together; none where no file is described."""
        return made_at_once([] if self._why_not else [as_written(part, encoded) for part in source.parts])

    def _lies_at(self, place: SourcePlace, runs: Iterable[NDArray[np.uint8]], n_bytes: int) -> bool:
        """Whether the source has these bytes there, and they are so many."""
        return self._model.named_files[place.file].holds(place.offset, n_bytes, runs)

    def seen(self) -> Seen:
        """What was found out here, once all is packed. Raises ImporterError when a file is not what it was."""
        return Seen({name: digest.result() for name, digest in self._digests.items()}, self.given_up)

    def finish(self, others: Iterable[Seen] = ()) -> Described:
        """The record, and the asset of its literals. Raises ImporterError when a file is not what it was.

        `others`: what other processes have seen, together the digests of all files.
        """
        found = [self.seen(), *others]
        digests = {name: digest for seen in found for name, digest in seen.digests.items()}
        given_up = {name for seen in found for name in seen.given_up}
        places = {name: arrays for name, arrays in self._places.items() if name not in given_up}
        return _described(self._model, places, digests, self._why_not)


def planned_sources(model: SourceModel) -> Described:
    """What is written of the files of a model that is quantized, with digits in place of digests: for its size."""
    digests = {name: hashlib.sha256(name.encode()).hexdigest() for name in model.named_files}
    return _described(model, {}, digests, QUANTIZED)


def _described(
    model: SourceModel, places: Mapping[str, list[_Array]], digests: Mapping[str, str], why_not: str
) -> Described:
    """All files, those that hold tensors by the `places` of these.

    The model's own are described all or none: some of them are no model. `why_not`: why they are not, where that is
    known beforehand.
    """
    assets = {asset.name for asset in model.assets}
    own = [name for name in model.named_files if name in model.own_files]
    taken: dict[str, _Taken] = {}
    lost = dict.fromkeys((name for name in own if name not in assets), why_not) if why_not else {}
    room = _MAX_LITERAL_BYTES
    for name in sorted(model.named_files, key=lambda name: (name not in model.own_files, name)):
        is_needed = name in model.own_files or name in model.needed
        if name in assets or name in lost or (why_not and name not in model.needed):
            continue
        reason = _why_not_named(model, name, assets)
        found = None if reason else _taken(model, name, sorted(places.get(name, ())), room)
        if found is not None:
            taken[name] = found
            room -= found.literal_bytes
        elif is_needed:
            lost[name] = reason or _why_not_taken(places.get(name, ()), model.named_files[name])
    first = next((name for name in own if name in lost), None)
    if first is not None and not why_not:
        lost |= dict.fromkeys(
            (n for n in own if n not in lost and n not in assets), f"without {first} it is no model"
        )
    literals = bytearray()
    files = []
    for name, file in model.named_files.items():
        found = None if name in lost else taken.get(name)
        if found is not None:
            literals += b"".join(file.read(at, n) for at, n in found.literals)
        pieces = None if found is None else found.pieces
        files.append(SourceFileRecord(name, file.n_bytes, digests[name], pieces))
    holder = _literals_name({*assets, *model.named_files})
    asset = (Asset(holder, bytes(literals)),) if literals else ()
    # Another reader may write these.
    kinds = source_kinds(model.named_files)
    lost |= dict.fromkeys(
        (n for n in own if n not in lost and n not in kinds), "its name may not be written into a folder"
    )
    return Described(Sources(holder if literals else None, tuple(files)), asset, lost)


def _literals_name(names: set[str]) -> str:
    """A name for the literals that no file of the source has, in no case of letters, and that is no folder of one."""
    taken = {name.casefold().partition("/")[0] for name in names}
    return next(name for k in count() if (name := LITERALS if not k else f"{LITERALS}.{k}") not in taken)


def _why_not_named(model: SourceModel, name: str, assets: set[str]) -> str:
    """Why no pieces can have a file's name; empty where they can."""
    if not is_source_name(name):
        return NO_SOURCE_NAME
    # Names of assets and files must not lie in others.
    others = assets | model.named_files.keys()
    lies = any(f"{name}/".startswith(f"{other}/") for other in others if other != name)
    return "its name is that of a folder, too" if lies else ""


def _why_not_taken(places: Iterable[_Array], file: SourceFile) -> str:
    if not places:
        return "its tensors do not lie in it as elements in their order"
    return f"too many of its {file.n_bytes} bytes are no tensor's"


def _taken(model: SourceModel, name: str, places: list[_Array], room: int) -> _Taken | None:
    """The pieces of a file whose tensors lie at `places`; None for one that stays behind.

    At most `room` bytes may be literals.
    """
    file = model.named_files[name]
    if not places:
        is_needed = name in model.needed
        most = room if is_needed else min(_MAX_WHOLE_BYTES, room)
        # Of safetensors all tensors have a place but empty ones.
        is_empty = name in model.own_files and name.lower().endswith(".safetensors")
        if file.n_bytes > most or (name in model.weight_files and not is_needed and not is_empty):
            return None
        return _Taken([Piece(file.n_bytes)], [(0, file.n_bytes)])
    if not name.lower().endswith(".safetensors"):
        # What is no tensor's may be elements of one that is stored in another order, or as other values.
        room = min(room, max(_MAX_WHOLE_BYTES, file.n_bytes // _LITERAL_PART))
    pieces, literals, at = [], [], 0
    for n, tensor in _runs(places, file.n_bytes):
        literals.append((at, n))
        at += n
        if tensor is None:
            pieces.append(Piece(n))
        else:
            cut = () if tensor.is_whole else (tensor.first, tensor.n_bytes)
            pieces.append(Piece(n, tensor.tensor, tensor.part, *cut))
            at += tensor.n_bytes
    taken = _Taken(pieces, literals)
    return taken if taken.literal_bytes <= room else None


def _gives_back(method: Method, plan: PackPlan) -> bool:
    """Whether what a method writes can give the source's arrays again."""
    if isinstance(method, KeepingMethod):
        coded = (p.source for p in plan.tensors if p.source.form and p.source.tied_to is None)
        return all(source.parts for source in coded)
    return method.name == KEEPING or not any(planned.treatment for planned in plan.tensors)


def _runs(places: list[_Array], file_bytes: int) -> Iterator[tuple[int, _Array | None]]:
    """Bytes that are no tensor's, and the tensor that follows them; a tensor that begins within another is none."""
    at = 0
    for place in places:
        if place.offset >= at:
            yield place.offset - at, place
            at = place.offset + place.n_bytes
    if at < file_bytes:
        yield file_bytes - at, None
