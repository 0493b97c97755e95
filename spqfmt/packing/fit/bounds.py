"""What is known of a size before any weight that ecq quantizes is looked at: enough to refuse a hopeless one."""

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

from spqfmt.errors import OptionError
from spqfmt.importers.base import SourceModel
from spqfmt.kernels.torch_arrays import to_numpy
from spqfmt.packing.fit.file_ledger import FileLedger, Ledger, store
from spqfmt.packing.fit.memory_ledger import MemoryLedger
from spqfmt.packing.options import PackOptions
from spqfmt.packing.plan import PackPlan, PlannedTensor
from spqfmt.packing.sources import planned_sources
from spqfmt.packing.target import BitsPerWeight, Fit
from spqfmt.processes import Alone, Processes, shared
from spqfmt.quantize.calibrated import is_calibrated
from spqfmt.quantize.ecq.allocation import FEWEST_BITS, MOST_BITS, PATH_BITS
from spqfmt.records import TensorRecord
from spqfmt.schemes.dense import Dense

_MARGIN = 0.04
"""Expected sizes may be wrong by this much, which counts where a wanted size is hardly possible."""
_NEAR = 0.9
"""A file that takes less than this part of its room was not held back by it: aims are missed by less."""
_METADATA = {"reserved": "".join(hashlib.sha256(bytes([i])).hexdigest() for i in range(9))}
"""In place of the metadata that are written at the end: 300 bytes that do not compress."""


@dataclass(frozen=True)
class RoomToSpend:
    """What a wanted size leaves for the tensors whose size ecq chooses.

    `ledger` knows all others. `n_counted` weights are those that bits a weight count, the ones of `spent` and of
    embeddings with bits of their own; `other_bytes` is what a file holds that they do not count.
    """

    ledger: Ledger
    spent: Mapping[str, PlannedTensor]
    n_counted: int
    other_bytes: int
    target_bytes: int

    @property
    def n_weights(self) -> int:
        """Weights whose bits ecq chooses and that count."""
        return sum(tensor.n_weights for name, tensor in self.spent.items() if self.ledger.counts(name))

    @property
    def rate(self) -> float:
        """Bits for each of these weights."""
        return 8 * (self.target_bytes - self.ledger.n_bytes({})) / self.n_weights


def room_for(
    model: SourceModel, plan: PackPlan, options: PackOptions, processes: Processes | None = None
) -> RoomToSpend:
    """The room that `options.fit` leaves. OptionError names what is possible.

    `processes`: those that store what no step decides, each its share, and call this at the same time.
    """
    spent = {t.source.name: t for t in plan.tensors if is_spent(t, options)}
    if not spent:
        raise OptionError("the source has no tensor that ecq quantizes")
    others = [t for t in plan.tensors if t.source.tied_to is None and t.source.name not in spent]
    stored = shared(processes or Alone(), len(others), lambda at: _fixed(others[at], options))
    fixed = {record.name: record for record in stored}
    metadata = _METADATA | model.stored_facts
    described = planned_sources(model) if options.identity and model.named_files else None
    file = FileLedger.begin(
        segments=_segments(plan),
        alignment=plan.segment_alignment,
        chunk_alignment=options.chunk_alignment,
        assets=model.assets if described is None else (*model.assets, *described.assets),
        metadata=metadata,
        identity=options.identity,
        sources=None if described is None else described.sources.to_json(),
    )
    n_counted = sum(t.n_weights for t in plan.tensors if t.treatment)
    other_bytes = file.asset_bytes + sum(sum(t.plane_bytes) for t in fixed.values() if not t.method)
    asked = options.fit
    assert asked is not None
    target = asked.bytes_of(n_counted, other_bytes)
    ledger: Ledger = file
    if asked.of_memory:
        has_column_scales = is_calibrated(options.method)
        ledger = MemoryLedger.begin(model, plan, spent, has_column_scales=has_column_scales)
        if not any(ledger.counts(name) for name in spent):
            raise OptionError("a model of this kind keeps none of these weights packed in memory; use --fit")
    room = RoomToSpend(
        ledger=ledger.knowing(fixed),
        spent=spent,
        n_counted=n_counted,
        other_bytes=other_bytes,
        target_bytes=target,
    )
    smallest = _smallest(room, options)
    if target < smallest:
        raise OptionError(asked.too_little(smallest, n_counted, other_bytes))
    least, most = PATH_BITS
    if (
        options.method_options.trellis
        and not isinstance(asked, BitsPerWeight)
        and not least <= room.rate <= most
    ):
        raise OptionError(
            f"--trellis is for {least:g} to {most:g} bits a weight, and this size leaves {room.rate:.2f}"
        )
    return room


def room_notes(asked: Fit | None, ledger: Ledger, file_bytes: int) -> Iterator[str]:
    """What a model takes where memory was asked for, and what of a size is left where that is much.

    `ledger` knows all tensors; the file's is about its metadata, so `file_bytes` are given.
    """
    if asked is None or isinstance(asked, BitsPerWeight):
        return
    taken = file_bytes
    if isinstance(ledger, MemoryLedger):
        if ledger.is_guess:
            yield "transformers has no model for this source: memory is counted as a plain decoder's"
        taken = ledger.n_bytes({})
        yield f"all weights have room in memory, compressed, under a ceiling of {taken} bytes"
    if taken < _NEAR * asked.n_bytes:
        yield (
            f"{asked.n_bytes - taken} bytes of what was asked for are left: no weight gets more than "
            f"{MOST_BITS:g} bits; --method lossless keeps all of them"
        )


def is_spent(planned: PlannedTensor, options: PackOptions) -> bool:
    """Whether the tensor's size is the budget's to choose."""
    if not planned.treatment or planned.source.tied_to is not None:
        return False
    return planned.source.role == "linear" or options.method_options.embedding_bits is None


def _fixed(planned: PlannedTensor, options: PackOptions) -> TensorRecord:
    """A tensor whose bytes no step decides: stored as it is, or an embedding at given bits."""
    source = planned.source
    if planned.treatment:
        value = options.method.quantize(planned.weight, source.load(), options.method_options)
        encoded, method = planned.encode(value), options.method.name
    else:
        encoded, method = planned.encode(Dense(to_numpy(source.load()), source.dtype)), ""
    return store(planned.record(encoded, method), encoded, options.codec.codec, options.chunk_alignment)


def _segments(plan: PackPlan) -> tuple[tuple[str, tuple[str, ...]], ...]:
    return tuple(
        (name, tuple(t.source.name for t in tensors if t.source.tied_to is None))
        for name, tensors in plan.segments
    )


def _smallest(room: RoomToSpend, options: PackOptions) -> int:
    """Bytes that always work: the fewest bits for each weight and a byte for each scale that may come, and a margin."""
    expected = {
        name: tensor.n_weights * FEWEST_BITS / 8 + _scale_bytes(tensor, options)
        for name, tensor in room.spent.items()
    }
    n_bytes, known = room.ledger.n_bytes(expected), room.ledger.n_bytes({})
    return math.ceil(n_bytes + _MARGIN * (n_bytes - known)) + 64 * len(room.spent)


def _scale_bytes(tensor: PlannedTensor, options: PackOptions) -> int:
    """The most that scales take: a layer that calibration does not reach gets row scales, another one column scales.

    Embedding and head may have both.
    """
    source = tensor.source
    shape = source.shape
    if source.transposed:
        shape = (*shape[:-2], shape[-1], shape[-2])
    rows, columns = prod(shape[:-1]), shape[-1]
    if not is_calibrated(options.method):
        return rows
    knows_rows = options.method_options.gradients or source.role != "linear"
    return columns + rows if knows_rows else max(rows, columns)
