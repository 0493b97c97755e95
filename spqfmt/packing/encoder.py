"""Planned tensors -> encoded chunks -> a file that is written: the part of a pack that takes the time.

While a tensor's chunks are encoded by other threads, the next one is read and quantized; memory holds those two.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import count
from typing import TYPE_CHECKING, Protocol

from spqfmt.codecs.chunks import EncodedChunk
from spqfmt.codecs.tasks import Task, submit
from spqfmt.container.content import content_of_encoded
from spqfmt.container.encode import encode_chunk
from spqfmt.container.slices import laid_for_ranks
from spqfmt.errors import EncodeError, ImporterError
from spqfmt.importers._gguf_codes import NO_NUMBERS
from spqfmt.importers.base import SourceTensor
from spqfmt.kernels.torch_arrays import to_numpy
from spqfmt.packing.options import PackOptions
from spqfmt.packing.plan import PlannedSegment, PlannedTensor
from spqfmt.packing.sharing import SharedTables
from spqfmt.packing.sources import SourceDescription
from spqfmt.packing.target import KEEPING_CODES
from spqfmt.quantize.base import KeepingMethod
from spqfmt.records import TensorRecord
from spqfmt.schemes.base import Encoded, StreamData
from spqfmt.schemes.dense import Dense
from spqfmt.schemes.registry import WEIGHT_ROLES

if TYPE_CHECKING:
    from spqfmt.packing.calibrated import CalibratedResults


@dataclass(frozen=True)
class PreparedTensor:
    """A tensor whose chunks are being encoded by other threads."""

    record: TensorRecord
    content: Task[str] | None = None
    checked: Task[None] | None = None
    """Raises EncodeError where the source could not be given back."""
    chunks: tuple[tuple[Task[EncodedChunk], ...], ...] = ()
    same_as: Mapping[str, str] = field(default_factory=dict)
    origin: Mapping[str, object] = field(default_factory=dict)


class Kept(Protocol):
    """What is told of each tensor that is encoded, as KeptTensors is."""

    def add(self, planned: PlannedTensor, scheme: str, why_no_codes: str, /) -> None:
        """One more tensor: its scheme, and why its codes are kept as bytes where they are."""
        ...


class SegmentTarget(Protocol):
    """What takes the tensors of a pack: one file, or shards."""

    def begin_segment(self, name: str, raw_bytes: int, /) -> None:
        """The tensors that follow belong to this segment; they have so many bytes in the source."""
        ...

    def add_tensor(
        self,
        record: TensorRecord,
        chunks: Iterable[Iterable[EncodedChunk]],
        same_as: Mapping[str, str],
        like: Mapping[str, object],
        /,
    ) -> int:
        """Append a tensor to the open segment, as Writer.add_tensor does."""
        ...


def write_segments(
    segments: Iterable[PlannedSegment],
    encoder: "Encoder",
    target: SegmentTarget,
    advance: Callable[[PlannedTensor], None],
) -> None:
    """Encode the tensors of some segments, at least one, into `target`; `advance` is told of each that is written."""
    waiting: list[tuple[PlannedTensor, PreparedTensor]] = []

    def write() -> None:
        planned, prepared = waiting.pop()
        if prepared.checked is not None:
            prepared.checked.result()
        content = None if prepared.content is None else prepared.content.result()
        target.add_tensor(
            replace(prepared.record, content=content),
            ((task.result() for task in tasks) for tasks in prepared.chunks),
            prepared.same_as,
            prepared.origin,
        )
        advance(planned)

    for segment, tensors in segments:
        raw_bytes = sum(tensor.raw_bytes for tensor in tensors)
        for number, planned in enumerate(tensors):
            prepared = encoder.prepare(planned)
            if waiting:
                write()
            if number == 0:
                target.begin_segment(segment, raw_bytes)
            waiting.append((planned, prepared))
    write()


class Encoder:
    """Turns planned tensors into streams and hands their chunks to the other threads."""

    def __init__(
        self,
        options: PackOptions,
        calibrated: "CalibratedResults | None",
        description: SourceDescription | None,
        cut: Mapping[str, bool],
        kept: Kept,
    ) -> None:
        """`cut`: which tensors ranks cut, and whether along the inputs. `kept` is told of each tensor."""
        self._options = options
        self._cut = cut
        self._description = description
        self._calibrated = calibrated
        self._weight_chunks = count()
        self._tables = SharedTables()
        # Asked once: to ask whether an object has a protocol's members takes longer than to pack a small tensor.
        self._keeping = options.method if isinstance(options.method, KeepingMethod) else None
        self._kept = kept

    def prepare(self, planned: PlannedTensor) -> PreparedTensor:
        """Read and quantize one tensor and submit its chunks."""
        source = planned.source
        if source.tied_to is not None:
            return PreparedTensor(planned.tied_record())
        origin: Mapping[str, object] = {}
        checked = None
        result = None if self._calibrated is None else self._calibrated.take(planned)
        if result is not None:
            encoded, method = planned.encode(result.quantized), self._options.method.name
        elif planned.treatment and not (self._calibrated and self._calibrated.wants(planned)):
            encoded, method = self._quantize(planned), self._options.method.name
            if self._description is not None and source.form:
                origin = self._description.origin_of_codes(source, encoded)
                # Of the codes as they are here; how ranks have them is the same in another order.
                checked = submit(self._description.check_codes, source, encoded)
        else:
            dense = _dense(source)
            encoded, method = planned.encode(dense), ""
            if self._description is not None:
                origin = self._description.origin_of(source, dense.values)
        self._kept.add(planned, encoded.scheme, encoded.why_no_codes)
        record = planned.record(encoded, method, result)
        of_columns = self._cut.get(source.name)
        # How codes of a source lie is what gives its bytes again.
        if of_columns is not None and not (of_columns and origin):
            encoded = laid_for_ranks(record, encoded, self._options.ranks, of_columns=of_columns)
            record = planned.record(encoded, method, result)
        content = submit(content_of_encoded, record, encoded) if self._options.identity else None
        return PreparedTensor(
            record=record,
            content=content,
            checked=checked,
            chunks=tuple(map(self._submit, encoded.streams)),
            same_as=encoded.holders,
            origin=origin,
        )

    def _quantize(self, planned: PlannedTensor) -> Encoded:
        options, source = self._options, planned.source
        if self._keeping is not None and source.stored is not None:
            encoded = planned.encode(self._keeping.keep(planned.weight, source.stored()))
            if encoded.why_no_codes == NO_NUMBERS and not options.is_asked:
                raise ImporterError(
                    f"tensor {source.name!r} has {NO_NUMBERS}; download the model again, or --method {KEEPING_CODES} "
                    "keeps its bytes"
                )
            return self._tables.share(source.segment, source.name, encoded)
        value = source.load()
        return planned.encode(options.method.quantize(planned.weight, value, options.method_options))

    def _submit(self, stream: StreamData) -> tuple[Task[EncodedChunk], ...]:
        policy = self._options.codec
        is_weights = stream.role in WEIGHT_ROLES
        return tuple(
            submit(
                encode_chunk,
                part,
                stream.dtype,
                policy.codec if not is_weights or policy.compresses(next(self._weight_chunks)) else "raw",
            )
            for part in stream.chunks()
        )


def _dense(source: SourceTensor) -> Dense:
    values = to_numpy(source.load())
    if source.dtype == "bool" and values.size and values.max() > 1:
        raise EncodeError(
            f"tensor {source.name!r}: a bool is a byte other than 0 and 1; FORMAT.md has no such bool"
        )
    return Dense(values, source.dtype)
