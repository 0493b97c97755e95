"""The memory that a model needs with all its weights in it, while only some of its tensors are known.

What `spqfmt plan` will say of the finished file, summed on paper as file_ledger.py sums the file itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

from spqfmt import wire
from spqfmt.cached import cached_property
from spqfmt.codecs.chunks import chunk_sizes
from spqfmt.container.reader import Reader
from spqfmt.container.stacks import matrices_of, whole_stack_because
from spqfmt.importers.base import SourceModel
from spqfmt.packing.plan import PackPlan, PlannedTensor
from spqfmt.records import FLOATS, Chunk, Chunks, PlaneChunk, Stream, TensorRecord, main_dtype
from spqfmt.residency.inventory import Item, Totals
from spqfmt.residency.parts import cut
from spqfmt.residency.sides import side_bytes
from spqfmt.residency.workspace import workspace_bytes

if TYPE_CHECKING:
    from spqfmt.models.places import Use


@dataclass(frozen=True)
class MemoryLedger:
    """`uses` are of the tensors that a model keeps as codes rather than as floats; `known` what these come to.

    `others`: the floats, and the room for dequantized rows. `coming`: what tensors that the budget is spent on come to
    while nothing is known of them but their shapes, with 8 bits a weight, and the bytes of their scales in the file.
    `is_guess`: transformers has no model, so that all is as a plain decoder would hold it.
    """

    unit: ClassVar[str] = "bytes of memory"

    uses: Mapping[str, Use]
    others: Totals
    is_guess: bool
    coming: Mapping[str, tuple[Totals, int]] = field(default_factory=dict)
    known: Mapping[str, Totals] = field(default_factory=dict)

    @classmethod
    def begin(
        cls, model: SourceModel, plan: PackPlan, coming: Iterable[str], *, has_column_scales: bool
    ) -> Self:
        """Make a ledger that knows no tensor yet. `coming` names tensors; layers among them may have column scales."""
        bare = {t.source.name: _bare(t) for t in plan.tensors if t.source.tied_to is None}
        uses, others, is_guess = _held(model, bare)
        roles = {t.name: t.role for t in model.tensors}
        expected = {
            name: _expected(bare[name], by_columns=has_column_scales and roles[name] == "linear")
            for name in coming
            if name in uses
        }
        coming = {name: (_totals(r, uses), _scales(r)) for name, r in expected.items()}
        return cls(uses, others, is_guess, coming)

    @classmethod
    def of_file(cls, file: Path, model: SourceModel) -> Self:
        """All is known of a file that was made from the model."""
        with Reader(file) as reader:
            records = [record for record in reader.index.tensors if record.tied_to is None]
        return cls(*_held(model, {record.name: record for record in records})).knowing_records(records)

    def knowing(self, more: Mapping[str, TensorRecord]) -> Self:
        """Return a ledger that knows these tensors too."""
        return self.knowing_records(more.values())

    def knowing_records(self, records: Iterable[TensorRecord]) -> Self:
        """Return a ledger that knows these tensors too, as a reader has them."""
        found = {r.name: _totals(r, self.uses) for r in records if r.name in self.uses}
        return replace(self, known={**self.known, **found})

    def counts(self, name: str) -> bool:
        """Whether it counts: what the model holds as floats does not, such as norms."""
        return name in self.uses

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


def _held(model: SourceModel, records: Mapping[str, TensorRecord]) -> tuple[Mapping[str, Use], Totals, bool]:
    """Uses by name, the memory for all else in the dtype that most weights have, and whether it is a guess.

    Of a model that transformers does not have: what a plain decoder with these weights would hold.
    """
    # transformers takes seconds to import.
    from spqfmt.models.places import Held, Use, held_by_model

    by_name = {t.name: records[t.tied_to or t.name] for t in model.tensors}
    held = held_by_model(model, by_name)
    is_guess = held is None
    if held is None:
        own = [t for t in model.tensors if t.tied_to is None and t.dtype in FLOATS]
        tied = {t.tied_to for t in model.tensors}
        uses = {
            t.name: Use(t.role != "embedding" or t.name in tied, t.role == "embedding")
            for t in own
            if t.role != "other" and len(t.shape) == 2 and 0 not in t.shape
        }
        held = Held(uses, sum(prod(t.shape) for t in own if t.name not in uses))
    itemsize = wire.DTYPES[main_dtype(records.values())].bits // 8
    shapes = [
        records[name].matrix_shape if use.share is None else _matrix_shape(records[name])
        for name, use in held.uses.items()
    ]
    room = max((workspace_bytes(*shape, itemsize) for shape in shapes), default=0)
    others = Totals(floats=held.n_floats * itemsize, largest_workspace=room, values=held.n_values * itemsize)
    return held.uses, others, is_guess


def _matrix_shape(record: TensorRecord) -> tuple[int, int]:
    """Rows and columns of one of the matrices that a record stacks."""
    return record.stacked_rows, record.matrix_shape[1]


def _totals(record: TensorRecord, uses: Mapping[str, Use]) -> Totals:
    use = uses[record.name]
    one_by_one = use.share is not None and len(record.shape) == 3 and not whole_stack_because(record)
    records = matrices_of(record) if one_by_one else (record,)
    parts = [part for one in records for part in cut(one)]
    items = [Item(part, use.products, use.lookups, share=use.share) for part in parts]
    return Totals.of(items, side_bytes(parts))


def _scales(record: TensorRecord) -> int:
    return sum(stream.n for stream in record.streams if stream.role.endswith("_scales"))


def _bare(planned: PlannedTensor) -> TensorRecord:
    """What is known of a tensor that will be in the uniform scheme, where the method treats it."""
    source = planned.source
    transposed = source.transposed and bool(planned.treatment)
    return TensorRecord(source.name, source.shape, source.dtype, "uniform", transposed=transposed)


def _expected(record: TensorRecord, *, by_columns: bool) -> TensorRecord:
    """The record with what ecq makes of most tensors: codes of rows in classes.

    The other streams are without chunks.
    """
    rows, columns = record.matrix_shape
    chunks, first = [], 0
    for size in chunk_sizes(record.n_weights, 8, columns):
        chunks.append(
            Chunk(
                first,
                size,
                (
                    PlaneChunk(
                        offset=first, stored_bytes=size, raw_bytes=size, codec=wire.CODEC_RANS, crc32=0
                    ),
                ),
            )
        )
        first += size
    role, n_scales = ("column_scales", columns) if by_columns else ("row_scales", rows)
    streams = (
        Stream("codes", "i8", first, Chunks.of(chunks)),
        Stream("channel_order", "u32", rows),
        Stream(role, "u8", n_scales),
    )
    return replace(record, streams=streams)
