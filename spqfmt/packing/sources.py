"""What gives the source's files back, byte for byte: which parts of them are tensors, and the rest as literals.

A file is described where the restored tensors have the very bytes that lie in it, or their codes give them: of packs by
the methods lossless and keep. What is an asset already needs no pieces; what else is small and no weights of another
kind is literals as a whole. The rest keeps its name and digest, so that a reader can say what is missing.
"""

from collections.abc import Callable, Iterator, Mapping
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from spqfmt.asset_names import is_asset_name
from spqfmt.codecs.elements import Elements
from spqfmt.codecs.tasks import Task, submit
from spqfmt.container.source_records import Piece, SourceFileRecord, Sources
from spqfmt.errors import EncodeError
from spqfmt.importers._source_file import SourceFile
from spqfmt.importers.base import Asset, SourceModel, SourcePart, SourceTensor
from spqfmt.packing.plan import PackPlan
from spqfmt.packing.target import KEEPING
from spqfmt.quantize.base import KeepingMethod, Method
from spqfmt.reading import origin_arrays, origin_gguf
from spqfmt.reading.origin_arrays import unsigned
from spqfmt.records import dense_bytes
from spqfmt.schemes.base import Encoded
from spqfmt.schemes.named import is_scheme_name
from spqfmt.wire import DTYPES

ARRAYS = origin_arrays.LAYOUT[0]
LITERALS = "source.literals"
"""The asset's name: none that a reader of 1.0 would write as a file."""
# Headers of the largest checkpoints have some MB.
_MAX_LITERAL_BYTES = 64 << 20
_MAX_WHOLE_BYTES = 8 << 20
_AT_ONCE = 1 << 24
_LITERAL_PART = 4
"""A file of which a larger part is no tensor's is left out: it would be stored twice."""


class _Array(NamedTuple):
    """Where a part of a tensor lies in a file."""

    offset: int
    n_bytes: int
    tensor: int
    part: int = 0


class SourceDescription:
    """The source's files, their digests made by other threads while the model is packed."""

    def __init__(self, model: SourceModel, plan: PackPlan, *, keeps_codes: bool) -> None:
        self._model = model
        self._places: dict[str, list[_Array]] = {}
        numbers = {planned.source.name: number for number, planned in enumerate(plan.tensors)}
        for planned in plan.tensors:
            source = planned.source
            # What a tied tensor has of its own are the bytes of the one that it is tied to.
            number = numbers[source.tied_to or source.name]
            n_bytes = dense_bytes(source.dtype, prod(source.shape))
            if source.place is not None and n_bytes:
                array = _Array(source.place.offset, n_bytes, number)
                self._places.setdefault(source.place.file, []).append(array)
            for k, part in enumerate(source.parts if keeps_codes else ()):
                array = _Array(offset=part.place.offset, n_bytes=part.n_bytes, tensor=number, part=k)
                self._places.setdefault(part.place.file, []).append(array)
        self._digests: Mapping[str, Task[str]] = {
            name: submit(file.sha256, self._cuts(name, file)) for name, file in model.named_files.items()
        }

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
        if source.place is None or source.turned is None:
            return {}
        dims, axes = source.turned
        part = np.ascontiguousarray(values.reshape(dims).transpose(axes)).view(np.uint8)
        file = self._model.named_files[source.place.file]
        if bytes(file.read(source.place.offset, part.size)) != part.tobytes():
            self._places.pop(source.place.file, None)
            return {}
        parts = [{"stream": "values", "dims": list(dims), "axes": list(axes)}]
        return {"origin": {"layout": ARRAYS, "version": 1, "parts": parts}}

    def origin_of_codes(self, source: SourceTensor, encoded: Encoded) -> Mapping[str, object]:
        """What the record of codes says of their origin.

        Raises EncodeError where the source's arrays could not be put together again: what cannot is not taken apart.
        """
        streams = {stream.role: stream for stream in encoded.streams}

        def elements_of(role: str) -> tuple[NDArray[Any], int]:
            stream = streams[role]
            elements = unsigned(stream.elements, stream.dtype)
            if role == "codes" and "channel_order" in streams:
                order = streams["channel_order"].elements
                elements, stored = np.empty_like(elements), elements.reshape(len(order), -1)
                elements.reshape(len(order), -1)[order] = stored
            return elements.reshape(-1), DTYPES[stream.dtype].bits

        parts = [_chosen(part, encoded) for part in source.parts]
        for part in parts:
            again = _LAYOUTS[part.layout](elements_of, part.made, source)
            file = self._model.named_files[part.place.file]
            if not _lies_at(file, part.place.offset, again, part.n_bytes):
                raise EncodeError(
                    f"tensor {source.name!r}: its codes do not give the bytes of {part.place.file} again; "
                    f"--method {KEEPING} keeps these"
                )
        if not parts:
            return {}
        of_one = len(parts) == 1 and parts[0].layout != ARRAYS
        made = parts[0].made if of_one else {"parts": [dict(part.made) for part in parts]}
        return {"origin": {"layout": parts[0].layout, "version": 1, **made}}

    def finish(self) -> tuple[Sources, tuple[Asset, ...]]:
        """The record, and the asset of its literals. Raises ImporterError when a file is not what it was."""
        assets = {asset.name for asset in self._model.assets}
        literals = bytearray()
        files = []
        for name, file in self._model.named_files.items():
            pieces = None
            if name not in assets and is_asset_name(name) and not self._clashes(name, assets):
                pieces = self._pieces(name, file, literals)
            files.append(SourceFileRecord(name, file.n_bytes, self._digests[name].result(), pieces))
        asset = (Asset(LITERALS, bytes(literals)),) if literals else ()
        return Sources(LITERALS if literals else None, tuple(files)), asset

    def _clashes(self, name: str, assets: set[str]) -> bool:
        """Whether a file of this name would lie in another, which names of assets and files must not."""
        others = assets | self._model.named_files.keys()
        return any(f"{name}/".startswith(f"{other}/") for other in others if other != name)

    def _pieces(self, name: str, file: SourceFile, literals: bytearray) -> list[Piece] | None:
        """Those of a file; what is no tensor's is added to `literals`. None for one that stays behind."""
        places = sorted(self._places.get(name, ()))
        if not places:
            room = min(_MAX_WHOLE_BYTES, _MAX_LITERAL_BYTES - len(literals))
            if file.n_bytes > room or name in self._model.weight_files:
                return None
            literals += file.read_all()
            return [Piece(file.n_bytes)]
        runs = list(_runs(places, file.n_bytes))
        most = min(_MAX_LITERAL_BYTES - len(literals), max(_MAX_WHOLE_BYTES, file.n_bytes // _LITERAL_PART))
        if sum(n for n, _ in runs) > most:
            return None
        pieces, at = [], 0
        for n, tensor in runs:
            literals += file.read(at, n)
            at += n
            if tensor is None:
                pieces.append(Piece(n))
            else:
                pieces.append(Piece(n, tensor.tensor, tensor.part))
                at += tensor.n_bytes
        return pieces


_ElementsOf = Callable[[str], tuple[NDArray[Any], int]]


def _array(elements_of: _ElementsOf, made: Mapping[str, Any], source: SourceTensor) -> NDArray[np.uint8]:
    return origin_arrays.made(elements_of, made, source.name)


def _blocks(elements_of: _ElementsOf, made: Mapping[str, Any], source: SourceTensor) -> NDArray[np.uint8]:
    return origin_gguf.made_blocks(elements_of, made, prod(made.get("row_dims", ())), source.name)


_LAYOUTS = {origin_arrays.LAYOUT[0]: _array, origin_gguf.LAYOUT[0]: _blocks}


def _chosen(part: SourcePart, encoded: Encoded) -> SourcePart:
    """A part of codes, or of the bytes themselves where these are what is written."""
    if part.as_bytes is None or not is_scheme_name(encoded.scheme):
        return part
    return part._replace(made=part.as_bytes, layout=ARRAYS)


def describes(method: Method, plan: PackPlan) -> bool:
    """Whether what a method writes can give the source's arrays again."""
    if isinstance(method, KeepingMethod):
        coded = (p.source for p in plan.tensors if p.source.form and p.source.tied_to is None)
        return all(source.parts for source in coded)
    return method.name == KEEPING


def _lies_at(file: SourceFile, offset: int, data: NDArray[np.uint8], n_bytes: int) -> bool:
    """Whether a file has these bytes there, and they are so many."""
    return data.size == n_bytes and all(
        file.read(offset + at, min(_AT_ONCE, n_bytes - at)) == data[at : at + _AT_ONCE].tobytes()
        for at in range(0, n_bytes, _AT_ONCE)
    )


def _runs(places: list[_Array], file_bytes: int) -> Iterator[tuple[int, _Array | None]]:
    """Bytes that are no tensor's, and the tensor that follows them; a tensor that begins within another is none."""
    at = 0
    for place in places:
        if place.offset >= at:
            yield place.offset - at, place
            at = place.offset + place.n_bytes
    if at < file_bytes:
        yield file_bytes - at, None
