"""The chunks of opened files, written again by a rule: copied as they are, or decoded and encoded anew."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from spqfmt import wire
from spqfmt.codecs.base import Bytes
from spqfmt.codecs.chunks import CodecPolicy, EncodedChunk, EncodedPlane
from spqfmt.codecs.elements import Elements, check_packed, element_bits
from spqfmt.codecs.raw import CODEC as RAW
from spqfmt.codecs.registry import AUTO, CODECS, decode_into
from spqfmt.codecs.tasks import Task, side_by_side, submit
from spqfmt.codecs.threads import n_threads
from spqfmt.container.encode import BEST, MIN_SAVING, encode_chunk, encode_plane
from spqfmt.container.located import located
from spqfmt.container.output import Output
from spqfmt.container.reader import Reader
from spqfmt.container.strict_json import Json, without
from spqfmt.container.writer import Sealed
from spqfmt.progress import Progress
from spqfmt.records import Chunk, PlaneChunk, Stream, TensorRecord
from spqfmt.residency.decode_rates import DecodeRates, measure_decode_rates
from spqfmt.rewriting.laid import Laid
from spqfmt.rewriting.original import OriginalRecords, unknown_of
from spqfmt.rewriting.partial import Candidate, Rule, Speed, choose
from spqfmt.schemes.registry import WEIGHT_ROLES
from spqfmt.version import __version__

_AHEAD = 4
"""Chunks for each thread that are made before they are written."""


@dataclass(frozen=True, eq=False)
class _Task:
    """A chunk and the codec that it shall have."""

    reader: Reader
    what: str
    stream: Stream
    chunk: Chunk
    codec: str
    elements: Elements | None = None
    """What the chunk shall hold instead of what it has in the file."""

    @property
    def is_weights(self) -> bool:
        """Whether partial compression decides about it."""
        return self.stream.role in WEIGHT_ROLES


class Rewrite:
    """A rule applied to the chunks of `readers`. `codec` None leaves compressed chunks to the codec that they have.

    Once written, `n_compressed` of `n_chunks` chunks of weights are compressed, and `n_copied` have the stored bytes
    that they had.
    """

    def __init__(
        self,
        readers: Sequence[Reader],
        rule: Rule,
        codec: str | None,
        laid: Laid | None = None,
        block_log2: int = 0,
    ) -> None:
        """`laid`: tensors that are stored in another order. With `block_log2` no rans chunk stays as it is."""
        self._block_log2 = block_log2
        self._readers = readers
        self._laid = laid
        self._keeps_codecs = codec is None
        packed_with = readers[0].index.metadata.get("codec", "")
        self._codec = codec or (packed_with if CODECS.get(packed_with, RAW) is not RAW else AUTO)
        self._compressed: Callable[[int], bool]
        """Whether the chunk of weights of this number is to be compressed."""
        self.partial_plan: Json | None
        if isinstance(rule, Speed):
            compressed, self.partial_plan = self._by_speed(rule)
            self._compressed = compressed.__contains__
        else:
            policy = CodecPolicy(self._codec, rule.n)
            self._compressed = policy.compresses
            self.partial_plan = policy.partial_plan
        self.n_chunks = self.n_compressed = self.n_copied = 0

    def _tasks(self, *, empty: bool) -> Iterator[_Task]:
        """All chunks of tensors in order, to be compressed; those that hold nothing only if `empty`."""
        for reader in self._readers:
            for tensor in reader.index.tensors:
                made = None if self._laid is None else self._laid.take(reader, tensor)
                for stream in tensor.streams if made is None else made[0].streams:
                    what = f"tensor {tensor.name!r}, {stream.role}"
                    if made is not None and stream.role == made[1].role:
                        for part in made[1].chunks():
                            chunk = Chunk(0, part.size, ())
                            yield _Task(reader, what, stream, chunk, codec=self._codec, elements=part)
                        continue
                    for chunk in stream.chunks if empty else stream.chunks.held:
                        yield _Task(reader=reader, what=what, stream=stream, chunk=chunk, codec=self._codec)

    def _by_speed(self, rule: Speed) -> tuple[frozenset[int], Json]:
        rates = rule.rates or measure_decode_rates()
        tasks = list(self._tasks(empty=False))
        candidates = side_by_side(lambda task: self._candidate(task, rates), tasks)
        of_weights = [c for c, task in zip(candidates, tasks, strict=True) if task.is_weights]
        other_bytes = sum(c.stored_bytes for c in candidates) - sum(c.stored_bytes for c in of_weights)
        choice = choose(of_weights, other_bytes, rule)
        plan: Json = {"rule": "speed", "target_bytes": choice.tensor_bytes, "rates": rates.to_json()}
        return choice.chunks, plan

    def _candidate(self, task: _Task, rates: DecodeRates) -> Candidate:
        """The chunk as its task asks; encoded to learn its size where the file does not have it so."""
        stored_bytes, ns = 0, 0.0
        for plane in task.chunk.planes:
            size, codec = plane.stored_bytes, plane.codec
            if not self._stays(plane, task.codec):
                encoded = self._plane(task, plane)
                size, codec = len(encoded.stored), encoded.codec
            stored_bytes += size
            ns += rates.decode_ns(codec, plane.raw_bytes)
        return Candidate(sum(plane.raw_bytes for plane in task.chunk.planes), stored_bytes, ns)

    def write(self, output: Output, progress: Progress) -> list[Sealed]:
        """All tensors and assets into `output`, which is published."""
        encoded = self._encoded()
        originals = [OriginalRecords(reader) for reader in self._readers]
        for reader, original in zip(self._readers, originals, strict=True):
            for number, segment in enumerate(reader.index.segments):
                tensors = reader.index.tensors_of(segment)
                raw_bytes = sum(t.source_bytes for t in tensors if t.tied_to is None)
                output.begin_segment(segment.name, raw_bytes, original.segment(number))
                for place, tensor in enumerate(tensors, start=segment.first_tensor):
                    reader.check_elements(tensor)
                    laid = None if self._laid is None else self._laid.take(reader, tensor)
                    like = original.record("tensors", place)
                    record = tensor
                    if laid is not None:
                        record, like = laid[0], without(like, "parameters", "content", "streams")
                    own = tuple(s for s in record.streams if s.same_as is None)
                    n_chunks = [
                        sum(1 for _ in laid[1].chunks())
                        if laid is not None and stream.role == laid[1].role
                        else len(stream.chunks)
                        for stream in own
                    ]
                    output.add_tensor(
                        replace(record, streams=own),
                        (islice(encoded, n) for n in n_chunks),
                        _same_as(reader, tensor),
                        like,
                    )
                    if self._laid is not None:
                        self._laid.forget(tensor)
                    progress.advance(sum(s.stored_bytes for s in own), tensor.name)
        for reader, original in zip(self._readers, originals, strict=True):
            for number, asset in enumerate(reader.index.assets):
                what, stream = f"asset {asset.name!r}", asset.stream
                copies = (
                    self._copied(_Task(reader=reader, what=what, stream=stream, chunk=chunk, codec=""))
                    for chunk in stream.chunks
                )
                output.copy_asset(asset, copies, original.record("assets", number))
        made = {"codec": self._codec, "writer": f"spqfmt {__version__}"}
        if self._block_log2:
            made["block_bytes"] = str(1 << self._block_log2)
        metadata = {**self._readers[0].index.metadata, **made}
        return output.finish(
            {}, metadata, self.partial_plan, unknown=unknown_of(originals), sources=originals[0].sources
        )

    def _encoded(self) -> Iterator[EncodedChunk]:
        """The chunks in order; other threads make some of those that come next."""
        waiting: deque[tuple[_Task, Task[EncodedChunk] | EncodedChunk]] = deque()
        for best in self._tasks(empty=True):
            task = best
            if best.is_weights:
                if not self._compressed(self.n_chunks):
                    task = replace(best, codec="raw")
                self.n_chunks += 1
            # Nothing is done for a chunk that holds nothing, of which there may be very many.
            holds = task.chunk.n_elements > 0
            waiting.append((task, submit(self._chunk, task) if holds else self._chunk(task)))
            if len(waiting) >= _AHEAD * n_threads():
                yield self._counted(*waiting.popleft())
        while waiting:
            yield self._counted(*waiting.popleft())

    def _counted(self, task: _Task, made: Task[EncodedChunk] | EncodedChunk) -> EncodedChunk:
        chunk = made if isinstance(made, EncodedChunk) else made.result()
        if task.is_weights:
            before = [(plane.stored_bytes, plane.codec, plane.crc32) for plane in task.chunk.planes]
            after = [(len(plane.stored), plane.codec, plane.crc32) for plane in chunk.planes]
            self.n_copied += before == after
            self.n_compressed += any(plane.codec != wire.CODEC_RAW for plane in chunk.planes)
        return chunk

    def _chunk(self, task: _Task) -> EncodedChunk:
        if task.elements is not None:
            return encode_chunk(task.elements, task.stream.dtype, task.codec)
        return EncodedChunk(
            task.chunk.n_elements, tuple(self._plane(task, plane) for plane in task.chunk.planes)
        )

    @staticmethod
    def _copied(task: _Task) -> EncodedChunk:
        copies = tuple(_copy(plane, _read(task, plane)[0]) for plane in task.chunk.planes)
        return EncodedChunk(task.chunk.n_elements, copies)

    def _plane(self, task: _Task, plane: PlaneChunk) -> EncodedPlane:
        stored, raw = _read(task, plane)
        if self._stays(plane, task.codec):
            return _copy(plane, stored)
        dtype, n = task.stream.dtype, task.chunk.n_elements
        # The stream's record brings the entropy along.
        return encode_plane(raw, element_bits(raw, dtype, n), task.codec)._replace(entropy_bits=None)

    def _stays(self, plane: PlaneChunk, codec: str) -> bool:
        """Whether the stored bytes are what encoding by this codec would give, or shall stay whatever it is."""
        if codec == "raw" or not plane.raw_bytes:
            return plane.codec == wire.CODEC_RAW
        if plane.codec == wire.CODEC_RAW:
            return False  # perhaps it did not shrink, perhaps it was left out: encoding it tells
        if self._block_log2 and plane.codec == wire.CODEC_RANS:
            return False
        if self._keeps_codecs:
            return True
        if codec == AUTO:
            small = plane.stored_bytes < plane.raw_bytes * (1 - MIN_SAVING)
            return plane.codec == CODECS[BEST].id and small
        return plane.codec == CODECS[codec].id


def _read(task: _Task, plane: PlaneChunk) -> tuple[Bytes, Bytes]:
    """A plane's stored and decoded bytes. What is copied is decoded too: a damaged file is not passed on."""
    stored, raw = np.empty(plane.stored_bytes, np.uint8), np.empty(plane.raw_bytes, np.uint8)
    with located(task.reader.path, task.what, task.chunk):
        task.reader.read_stored(plane, stored)
        decode_into(plane.codec, stored, raw)
        if wire.DTYPES[task.stream.dtype].bits <= 8:
            check_packed(raw, task.stream.dtype, task.chunk.n_elements)
    return stored, raw


def _copy(plane: PlaneChunk, stored: Bytes) -> EncodedPlane:
    return EncodedPlane(stored.tobytes(), plane.codec, plane.crc32, None)


def _same_as(reader: Reader, tensor: TensorRecord) -> dict[str, str]:
    return {s.role: reader.index.tensors[s.same_as].name for s in tensor.streams if s.same_as is not None}
