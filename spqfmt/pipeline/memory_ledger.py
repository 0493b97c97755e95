"""The memory that a model needs with all its weights in it, while only some of its tensors are known.

What `spqfmt plan` will say of the finished file, summed on paper as ledger.py sums the file itself.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Self

from spqfmt import wire
from spqfmt.codecs.chunks import chunk_sizes
from spqfmt.container.reader import Reader
from spqfmt.container.stream_records import Walk, parse_stream
from spqfmt.container.strict_json import Json, member, objects
from spqfmt.importers.base import SourceTensor
from spqfmt.pipeline.ledger import StoredTensor
from spqfmt.pipeline.plan import PackPlan
from spqfmt.pipeline.residency.inventory import Item, Totals
from spqfmt.pipeline.residency.parts import cut
from spqfmt.pipeline.residency.sides import side_bytes
from spqfmt.pipeline.residency.workspace import workspace_bytes
from spqfmt.records import Chunk, PlaneChunk, Stream, TensorRecord


@dataclass(frozen=True)
class MemoryLedger:
    """`uses` are of the tensors that a model keeps as codes rather than as floats; `known` what these come to.

    `others`: the floats, and the room for dequantized rows. `coming`: what tensors that the budget is spent on come to
    while nothing is known of them but their shapes, with 8 bits a weight, and the bytes of their scales in the file.
    """

    uses: Mapping[str, "_Use"]
    others: Totals
    coming: Mapping[str, tuple[Totals, int]]
    known: Mapping[str, Totals] = field(default_factory=dict)

    @classmethod
    def begin(cls, plan: PackPlan, coming: Iterable[str] = (), *, has_column_scales: bool = True) -> Self:
        """Nothing is known. `coming` names tensors; layers among them may have column scales."""
        own = [t.source for t in plan.tensors if t.source.tied_to is None]
        tied = {t.source.tied_to for t in plan.tensors}
        packed = {s.name: s for s in own if s.role != "other" and len(s.shape) == 2 and 0 not in s.shape}
        uses = {
            name: _Use(s.role != "embedding" or name in tied, s.role == "embedding")
            for name, s in packed.items()
        }
        weights = Counter[str]()
        for source in own:
            weights[source.dtype] += prod(source.shape)
        itemsize = wire.DTYPES[weights.most_common(1)[0][0]].bits // 8
        expected = {
            name: _expected(packed[name], has_column_scales=has_column_scales)
            for name in coming
            if name in packed
        }
        return cls(
            uses,
            Totals(
                floats=itemsize * sum(prod(s.shape) for s in own if s.name not in packed),
                workspace=max(
                    (workspace_bytes(*_matrix_shape(s), itemsize) for s in packed.values()), default=0
                ),
            ),
            {
                name: (
                    uses[name].totals(record),
                    sum(s.n for s in record.streams if s.role.endswith("_scales")),
                )
                for name, record in expected.items()
            },
        )

    def knowing(self, more: Mapping[str, StoredTensor]) -> Self:
        """With more tensors known."""
        return self.knowing_records(_record(stored) for name, stored in more.items() if name in self.uses)

    def knowing_records(self, records: Iterable[TensorRecord]) -> Self:
        """With tensors known as a reader has them."""
        found = {r.name: self.uses[r.name].totals(r) for r in records if r.name in self.uses}
        return replace(self, known={**self.known, **found})

    def n_bytes(self, expected: Mapping[str, float]) -> int:
        """Memory, when the tensors that are not known take the bytes in the file that are expected."""
        total = self._known_total
        for name, (totals, scale_bytes) in self.coming.items():
            if name not in self.known:
                total += totals.stored_as(max(0, round(expected.get(name, 0)) - scale_bytes))
        return total.in_memory_bytes

    @cached_property
    def _known_total(self) -> Totals:
        return sum(self.known.values(), self.others)


@dataclass(frozen=True)
class _Use:
    """What a model does with a tensor: a product on every pass, and lookups of rows."""

    products: bool
    lookups: bool

    def totals(self, record: TensorRecord) -> Totals:
        parts = cut(record)
        return Totals.of([Item(part, self.products, self.lookups) for part in parts], side_bytes(parts))


def memory_of(file: Path, plan: PackPlan) -> int:
    """The smallest ceiling under which nothing of the model stays on disk, as `spqfmt plan` has it."""
    with Reader(file) as reader:
        return MemoryLedger.begin(plan).knowing_records(reader.index.tensors).n_bytes({})


def _matrix_shape(source: SourceTensor) -> tuple[int, int]:
    rows, columns = source.shape
    return (columns, rows) if source.transposed else (rows, columns)


def _record(stored: StoredTensor) -> TensorRecord:
    """As a reader will have it, but for the places in the file and of shared streams."""
    record, walk = stored.record, Walk()
    name = member(record, "name", str, "tensor")

    def stream(record: Json) -> Stream:
        if "same_as" not in record:
            return parse_stream(record, walk, name)
        role, dtype = (member(record, key, str, name) for key in ("role", "dtype"))
        return Stream(role, dtype, member(record, "n", int, name), (), None, 0)

    return TensorRecord(
        name=name,
        shape=tuple(member(record, "shape", list, name)),
        dtype=member(record, "dtype", str, name),
        scheme=member(record, "scheme", str, name),
        parameters=member(record, "parameters", dict, name),
        streams=tuple(stream(s) for s in objects(member(record, "streams", list, name), name)),
        transposed="transposed" in record,
    )


def _expected(source: SourceTensor, *, has_column_scales: bool) -> TensorRecord:
    """What ecq makes of most tensors: codes of rows in classes. The other streams are without chunks."""
    rows, columns = _matrix_shape(source)
    chunks, first = [], 0
    for size in chunk_sizes(rows * columns, 8, columns):
        chunks.append(Chunk(first, size, (PlaneChunk(first, size, size, wire.CODEC_RANS, 0),)))
        first += size
    by_columns = has_column_scales and source.role == "linear"
    scales = (
        Stream("column_scales", "u8", columns, ()) if by_columns else Stream("row_scales", "u8", rows, ())
    )
    streams = (Stream("codes", "i8", first, tuple(chunks)), Stream("channel_order", "u32", rows, ()), scales)
    return TensorRecord(
        source.name, source.shape, source.dtype, "uniform", streams=streams, transposed=source.transposed
    )
