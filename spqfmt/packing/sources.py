"""What gives the source's files back, byte for byte: which parts of them are tensors, and the rest as literals.

A file is described where the restored tensors have the very bytes that lie in it, so of lossless packs alone. What is
an asset already needs no pieces; what else is small and no weights of another kind is literals as a whole. The rest
keeps its name and digest, so that a reader can say what is missing.
"""

from collections.abc import Iterator, Mapping

import numpy as np

from spqfmt.asset_names import is_asset_name
from spqfmt.codecs.elements import Elements
from spqfmt.codecs.tasks import Task, submit
from spqfmt.container.source_records import Piece, SourceFileRecord, Sources
from spqfmt.importers._source_file import SourceFile
from spqfmt.importers.base import Asset, SourceModel, SourceTensor
from spqfmt.packing.plan import PackPlan
from spqfmt.records import dense_bytes

LITERALS = "source.literals"
"""The asset's name: none that a reader of 1.0 would write as a file."""
# Headers of the largest checkpoints have some MB.
_MAX_LITERAL_BYTES = 64 << 20
_MAX_WHOLE_BYTES = 8 << 20
_LITERAL_PART = 4
"""A file of which a larger part is no tensor's is left out: it would be stored twice."""


class SourceDescription:
    """The source's files, their digests made by other threads while the model is packed."""

    def __init__(self, model: SourceModel, plan: PackPlan) -> None:
        self._model = model
        self._places: dict[str, list[tuple[int, int, int]]] = {}
        for number, planned in enumerate(plan.tensors):
            place = planned.source.place
            n_bytes = dense_bytes(planned.source.dtype, planned.n_weights)
            if place is not None and n_bytes:
                self._places.setdefault(place.file, []).append((place.offset, n_bytes, number))
        self._digests: Mapping[str, Task[str]] = {
            name: submit(file.sha256, self._cuts(name, file)) for name, file in model.named_files.items()
        }

    def _cuts(self, name: str, file: SourceFile) -> list[int]:
        """Where tensors begin and end: each must have been packed as it was when the file's digest was made."""
        runs = _runs(sorted(self._places.get(name, ())), file.n_bytes)
        return sorted({cut for _, place in runs if place for cut in (place[0], place[0] + place[1])})

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
        return {"origin": {"layout": "arrays", "version": 1, "parts": parts}}

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
                pieces.append(Piece(n, tensor[2]))
                at += tensor[1]
        return pieces


def _runs(
    places: list[tuple[int, int, int]], file_bytes: int
) -> Iterator[tuple[int, tuple[int, int, int] | None]]:
    """Bytes that are no tensor's, and the tensor that follows them; a tensor that begins within another is none."""
    at = 0
    for place in places:
        if place[0] >= at:
            yield place[0] - at, place
            at = place[0] + place[1]
    if at < file_bytes:
        yield file_bytes - at, None
