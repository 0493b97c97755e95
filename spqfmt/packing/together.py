"""Several processes pack one model: each takes shards and writes them whole, the first publishes them and their index.

    cut by the plan -> take a shard -> encode -> OUT.spq.resume/shard-00007.spq -> exchange -> last index -> rename

What a shard holds depends on nothing but the plan, so the files are those of one process. A shard is whole when its
tensors are; what the index of each says of the whole model (its digest, their number) is written when all are there.
"""

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from spqfmt.codecs.threads import blocks, bound_torch
from spqfmt.container.content import content_of_model
from spqfmt.container.output import check_name, check_sharded_name, index_path, publish_shards, shard_path
from spqfmt.container.reader import Reader
from spqfmt.container.reopened import Reopened
from spqfmt.container.temporary import discard, open_temporary, publish, refuse_existing, remove_left_over
from spqfmt.container.writer import Sealed, Writer
from spqfmt.errors import FormatError, ImporterError, OptionError
from spqfmt.importers.base import SourceModel
from spqfmt.packing.by_blocks import is_by_blocks, pack_by_blocks
from spqfmt.packing.dequantized import as_packed
from spqfmt.packing.encoder import Encoder, write_segments
from spqfmt.packing.kept import KeptTensors, array_notes
from spqfmt.packing.options import PackOptions
from spqfmt.packing.plan import PackPlan, PlannedSegment, PlannedTensor, plan_pack
from spqfmt.packing.report import PackReport, metadata_of, report_of, written_beside
from spqfmt.packing.resume import ResumeFolder, check_alike
from spqfmt.packing.shards import shard_starts
from spqfmt.packing.sources import Described, Seen, SourceDescription
from spqfmt.processes import Processes, shares_of, taken
from spqfmt.progress import Progress
from spqfmt.records import Shard, dense_bytes
from spqfmt.version import __version__

_UNIT = "shard"


def check_together(options: PackOptions) -> None:
    """Raise OptionError for what several processes cannot pack."""
    if is_by_blocks(options):
        return
    if options.speed is not None or options.codec.every != 1:
        raise OptionError(
            "--partial goes by all chunks of a model, which no process sees: pack without it, then repack --partial"
        )
    if not options.shard_bytes:
        raise OptionError("several processes write shards: give --shard-size, such as 2GiB")


class _Told(NamedTuple):
    """What is known of one shard besides the file itself; plain data, kept beside it."""

    tensors: Mapping[str, Sequence[str]]
    """Scheme, why no codes, and content digest of each tensor that is not tied, by name."""
    checksums: Mapping[str, Sequence[Sequence[int]]]
    """Offset, length and CRC-32 of what was read, by the source's file."""
    given_up: Sequence[str]
    """Files of the source that are not described."""


@dataclass
class _Noted:
    """Keeps what an encoder tells of its tensors."""

    found: dict[str, tuple[str, str]] = field(default_factory=dict)

    def add(self, planned: PlannedTensor, scheme: str, why_no_codes: str, /) -> None:
        self.found[planned.source.name] = scheme, why_no_codes


class _Output:
    """One shard as what `write_segments` writes into."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self.add_tensor = writer.add_tensor

    def begin_segment(self, name: str, raw_bytes: int, /) -> None:
        self._writer.begin_segment(name)


class _Shown:
    """Shows, in the first process, what all have done."""

    def __init__(self, progress: Progress, processes: Processes) -> None:
        self._progress, self._processes = progress, processes
        self._shown = 0

    def advance(self, n: int, name: str) -> None:
        done = self._processes.add("bytes", n)
        self._progress.advance(done - self._shown, name)
        self._shown = done


def pack_together(
    model: SourceModel,
    out: Path,
    options: PackOptions,
    processes: Processes,
    *,
    force: bool,
    resume: bool,
    progress: Progress,
) -> PackReport:
    """Pack a source that each process has opened into shards of `out`; by blocks into what one process would write.

    Each gets the report. Raises as `pack` does, EndedError where another process has failed. Then OUT.spq.resume has
    the shards, or blocks, that are done, and nothing has its final name.
    """
    started = time.monotonic()
    check_name(out)
    options = options.for_source(model)
    check_together(options)
    if is_by_blocks(options):
        return pack_by_blocks(model, out, options, processes, force=force, resume=resume, progress=progress)
    check_sharded_name(out)
    model = as_packed(model, options)
    plan = plan_pack(model, options)
    bound_torch()
    if not model.tensors:
        raise ImporterError("the source holds no weights")
    starts = shard_starts(model, plan, options)
    shards = [plan.segments[a:b] for a, b in zip(starts, [*starts[1:], len(plan.segments)], strict=True)]
    folder = ResumeFolder(out, resume=resume, force=force, unit=_UNIT)
    folder.n_wanted = len(shards)
    identity = _identity(model, options)
    with ExitStack() as stack:
        stack.enter_context(progress)
        stack.enter_context(model.blamed())
        stack.enter_context(blocks(options.block_log2))
        if processes.number == 0:
            for path in (
                index_path(out),
                *(shard_path(out, n, len(shards)) for n in range(1, len(shards) + 1)),
            ):
                refuse_existing(path, force)
            remove_left_over(out)
            stack.enter_context(folder)
            folder.begin(identity)
        else:
            stack.enter_context(folder.as_guest())
        check_alike(identity, processes)
        packing = _Packing(
            model=model, plan=plan, options=options, shards=shards, folder=folder, processes=processes
        )
        progress.start(plan.raw_bytes)
        packing.write(_Shown(progress, processes))
        model.check_unchanged()
        progress.stage("putting it together")
        sealed, described = packing.seal(out)
        if processes.number == 0:
            index = publish_shards(out, [(folder.file(n), s) for n, s in enumerate(sealed, 1)], force=force)
            sealed = [*sealed, index]
        sealed = processes.exchange(sealed)[0]
        if processes.number == 0:
            folder.remove()
    return report_of(
        model,
        plan,
        sealed,
        described,
        seconds=time.monotonic() - started,
        left_dense={},
        notes=tuple(packing.notes()),
    )


class _Packing:
    """The shards of one model, of which this process makes some."""

    def __init__(
        self,
        model: SourceModel,
        plan: PackPlan,
        options: PackOptions,
        shards: Sequence[Sequence[PlannedSegment]],
        folder: ResumeFolder,
        processes: Processes,
    ) -> None:
        self._model, self._plan, self._options = model, plan, options
        self._shards, self._folder, self._processes = shards, folder, processes
        self._told: dict[int, _Told] = {}
        self._description: SourceDescription | None = None
        if options.identity and model.named_files:
            files = _files_of(processes.number, model, shards, processes.size)
            self._description = SourceDescription(model, plan, options.method, files)
        cut = {}
        if options.ranks > 1:
            # transformers takes seconds to import.
            from spqfmt.packing.ranks import cut_of_source

            cut = cut_of_source(model)
        self._noted = _Noted()
        self._encoder = Encoder(options, None, self._description, cut=cut, kept=self._noted)

    def write(self, shown: _Shown) -> None:
        """Have all shards written that are not there, by whichever process is free."""
        # What was left is looked through by all, too.
        for number in range(self._processes.number + 1, len(self._shards) + 1, self._processes.size):
            if (told := _taken_up(self._folder.file(number), self._shards[number - 1])) is not None:
                self._told[number] = told
                shown.advance(self._raw_bytes(number), f"shard {number}: taken up")
        done = {number for found in self._processes.exchange(list(self._told)) for number in found}
        missing = [number for number in range(1, len(self._shards) + 1) if number not in done]
        for at in taken(self._processes, "shards", len(missing)):
            self._write_shard(missing[at], shown)

    def _raw_bytes(self, number: int) -> int:
        return sum(tensor.raw_bytes for _, tensors in self._shards[number - 1] for tensor in tensors)

    def _write_shard(self, number: int, shown: _Shown) -> None:
        given_up = set() if self._description is None else self._description.given_up
        file = self._folder.file(number)

        def advance(planned: PlannedTensor) -> None:
            self._processes.check()
            shown.advance(planned.raw_bytes, planned.source.name)

        with Writer(
            file,
            self._plan.segment_alignment,
            force=True,
            chunk_alignment=self._options.chunk_alignment,
        ) as writer:
            write_segments(self._shards[number - 1], self._encoder, _Output(writer), advance)
            writer.seal({})
            own = [record for record in writer.tensors if record.tied_to is None]
            told = _Told(
                tensors={r.name: (*self._noted.found.pop(r.name), r.content or "") for r in own},
                checksums=_checksums(self._model, self._shards[number - 1]),
                given_up=sorted(given_up),
            )
            _write_whole(_beside(file), json.dumps(told._asdict()).encode())
            writer.publish()
        self._told[number] = told

    def seal(self, out: Path) -> tuple[list[Sealed], Described | None]:
        """Give each shard its last index; returns all of them, under the names that they are to have.

        Raises ImporterError where processes have read different bytes of one file.
        """
        seen = None if self._description is None else self._description.seen()
        # What digests have read is compared with what tensors have, whoever has read either.
        read = {
            name: [[*p, crc] for p, crc in file.checksums.items()]
            for name, file in self._model.named_files.items()
        }
        found: list[tuple[dict[int, _Told], Seen | None, Any]] = self._processes.exchange(
            (self._told, seen, read)
        )
        self._told = {number: told for of_one, _, _ in found for number, told in of_one.items()}
        for checksums in (*(of for _, _, of in found), *(told.checksums for told in self._told.values())):
            for name, places in checksums.items():
                for offset, n_bytes, crc in places:
                    self._model.named_files[name].compare(offset, n_bytes, crc)
        described = None
        if self._description is not None:
            again = Seen({}, {name for told in self._told.values() for name in told.given_up})
            described = self._description.finish([*(seen for _, seen, _ in found if seen), again])
        content = self._content()
        metadata = metadata_of(self._model, self._options, None)
        count = len(self._shards)
        sealed: dict[int, Sealed] = {}
        for number in range(self._processes.number + 1, count + 1, self._processes.size):
            with Reopened(self._folder.file(number)) as writer:
                assets, sources = written_beside(self._model, described) if number == 1 else ({}, None)
                for name, data in assets.items():
                    writer.add_asset(name, data)
                sealed[number] = writer.seal(
                    metadata,
                    shard=Shard(number, count),
                    path=shard_path(out, number, count),
                    content=content,
                    sources=sources,
                )
        of_all = {number: s for of_one in self._processes.exchange(sealed) for number, s in of_one.items()}
        return [of_all[number] for number in sorted(of_all)], described

    def _content(self) -> str | None:
        if not self._options.identity:
            return None
        digests = {name: told[2] for of in self._told.values() for name, told in of.tensors.items()}
        sources = (planned.source for planned in self._plan.tensors)
        return content_of_model(digests, {s.name: s.tied_to for s in sources if s.tied_to is not None})

    def notes(self) -> Iterator[str]:
        """What the report says of the tensors, once all shards are sealed."""
        kept = KeptTensors(self._options.method)
        found = {name: told for of in self._told.values() for name, told in of.tensors.items()}
        for planned in self._plan.tensors:
            if planned.source.name in found:
                scheme, why_no_codes, _ = found[planned.source.name]
                kept.add(planned, scheme, why_no_codes)
        yield from kept.notes({})
        yield from array_notes(self._model, self._plan, self._options.method)


def _beside(file: Path) -> Path:
    return file.with_suffix(".json")


def _write_whole(path: Path, data: bytes) -> None:
    temporary, file = open_temporary(path)
    try:
        with file:
            file.write(data)
        publish(temporary, path, force=True)
    finally:
        discard(temporary)


def _taken_up(file: Path, segments: Sequence[PlannedSegment]) -> _Told | None:
    """What an earlier run says of a shard; None where that is not there, not whole or not sound."""
    try:
        told = _Told(**json.loads(_beside(file).read_text("utf-8")))
        with Reader(file) as reader:
            for record in reader.index.tensors:
                for stream in record.streams:
                    for chunk in stream.chunks if stream.same_as is None else ():
                        reader.check_chunk(chunk, stream.dtype)
            names = list(reader.index.by_name)
    except (FormatError, OSError, ValueError, TypeError):
        return None
    return told if names == [tensor.source.name for _, tensors in segments for tensor in tensors] else None


def _spans(segments: Iterable[PlannedSegment]) -> Iterator[tuple[str, int, int]]:
    """What the tensors of some segments have of the source's files: a name, an offset, a number of bytes."""
    for planned in (tensor for _, tensors in segments for tensor in tensors):
        source = planned.source
        if source.place is not None:
            yield (*source.place, dense_bytes(source.dtype, prod(source.shape)))
        for part in source.parts:
            yield (*part.place, part.n_bytes)


def _checksums(model: SourceModel, segments: Sequence[PlannedSegment]) -> dict[str, list[list[int]]]:
    """Checksums of what was read from the first to the last byte that these segments have in the source's files."""
    ends: dict[str, tuple[int, int]] = {}
    for name, offset, n_bytes in _spans(segments):
        begin, end = ends.get(name, (offset, offset))
        ends[name] = min(begin, offset), max(end, offset + n_bytes)
    return {
        name: [
            [offset, n_bytes, crc]
            for (offset, n_bytes), crc in model.named_files[name].checksums.items()
            if begin <= offset and offset + n_bytes <= end
        ]
        for name, (begin, end) in ends.items()
    }


def _files_of(
    number: int, model: SourceModel, shards: Sequence[Sequence[PlannedSegment]], size: int
) -> set[str]:
    """The files of the source whose digests process `number` makes: those of which its share of the shards has most."""
    n_bytes: dict[str, list[int]] = {name: [0] * size for name in model.named_files}
    for owner, share in enumerate(shares_of(len(shards), size)):
        for at in share:
            for name, _, n in _spans(shards[at]):
                n_bytes[name][owner] += n
    return {name for name, counted in n_bytes.items() if counted.index(max(counted)) == number}


def _identity(model: SourceModel, options: PackOptions) -> dict[str, object]:
    """What two runs must share to give the same files."""
    digest = hashlib.sha256()
    for tensor in model.tensors:
        digest.update(repr((tensor.name, tensor.shape, tensor.dtype, tensor.tied_to)).encode())
    for name, file in sorted(model.named_files.items()):
        digest.update(repr((name, file.described)).encode(errors="surrogatepass"))
    return {
        "writer": f"spqfmt {__version__}",
        "source": digest.hexdigest(),
        "method": options.method.name,
        "method_options": {k: v for k, v in vars(options.method_options).items() if v is not None},
        "codec": options.codec.codec,
        "shard_size": options.shard_bytes,
        "chunk_alignment": options.chunk_alignment,
        "ranks": options.ranks,
        "block": options.block_log2,
        "identity": options.identity,
        "dequantize": options.dequantize,
    }
