"""Source model -> .spq file: one tensor after the other, chunks encoded on all cores.

    import -> plan -> quantize -> streams -> encoded chunks -> writer -> index -> fsync -> rename

While a tensor's chunks are encoded by other threads, the next one is read and quantized; memory holds those two.
"""

import json
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from spqfmt.codecs.chunks import EncodedChunk
from spqfmt.codecs.tasks import Task, submit
from spqfmt.codecs.threads import blocks, bound_torch
from spqfmt.container.content import content_of_encoded
from spqfmt.container.encode import encode_chunk
from spqfmt.container.output import Output, check_name
from spqfmt.container.reader import Reader
from spqfmt.container.slices import laid_for_ranks
from spqfmt.container.strict_json import Json
from spqfmt.errors import EncodeError, ImporterError, OptionError
from spqfmt.importers._gguf_codes import NO_NUMBERS
from spqfmt.importers.base import SourceModel, SourceTensor
from spqfmt.importers.registry import open_source
from spqfmt.kernels.torch_arrays import to_numpy
from spqfmt.packing.dequantized import as_packed
from spqfmt.packing.fit.bounds import room_for, room_notes
from spqfmt.packing.kept import KeptTensors, array_notes
from spqfmt.packing.options import PackArguments, PackOptions, pack_options
from spqfmt.packing.plan import PlannedTensor, plan_pack
from spqfmt.packing.resume import ResumeFolder
from spqfmt.packing.sharing import SharedTables
from spqfmt.packing.sources import SourceDescription
from spqfmt.packing.target import KEEPING_CODES
from spqfmt.progress import Progress, Silent
from spqfmt.quantize.base import KeepingMethod
from spqfmt.quantize.calibrated import is_calibrated
from spqfmt.records import TensorRecord, bf16_bytes
from spqfmt.rewriting.rewrite import Rewrite
from spqfmt.schemes.base import Encoded, StreamData
from spqfmt.schemes.dense import Dense
from spqfmt.schemes.registry import WEIGHT_ROLES
from spqfmt.stand_ins import given_path
from spqfmt.version import __version__

if TYPE_CHECKING:
    from spqfmt.packing.calibrated import CalibratedResults


@dataclass(frozen=True)
class PackReport:
    """What a pack made, and how large it is.

    `raw_bytes` is the source tensors' size, `file_bytes` that of all files written. `bf16_bytes` is the source's size
    with all floats of 16 or more bits as BF16.
    """

    files: tuple[Path, ...]
    raw_bytes: int
    bf16_bytes: int
    file_bytes: int
    n_tensors: int
    n_weights: int
    seconds: float
    left_dense: Mapping[str, str] = field(default_factory=dict)
    """Tensors that the method was to quantize and that are stored as they are, with the reason."""
    notes: tuple[str, ...] = ()
    """Fallbacks that a method took, and what became of a size that was asked for."""
    assets: tuple[str, ...] = ()
    """Files beside the weights that travel with them, by name."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """What else lies there, by name, with the reason why it stays behind."""
    not_given_back: Mapping[str, str] = field(default_factory=dict)
    """Files that the weights were read from and that `unpack` cannot write again, by name, with the reason."""

    @property
    def ratio(self) -> float:
        """Raw over stored, to the source's own dtypes."""
        return self.raw_bytes / self.file_bytes

    @property
    def left_dense_by_reason(self) -> dict[str, list[str]]:
        """Names of tensors by the reason why they are stored as they are."""
        reasons: dict[str, list[str]] = {}
        for name, reason in self.left_dense.items():
            reasons.setdefault(reason, []).append(name)
        return reasons

    def to_json(self) -> dict[str, object]:
        """Return the report as plain data, for `--json`."""
        return asdict(self) | {"files": [str(file) for file in self.files], "ratio": self.ratio}


@dataclass(frozen=True)
class _Prepared:
    """A tensor whose chunks are being encoded by other threads."""

    record: TensorRecord
    content: Task[str] | None = None
    chunks: tuple[tuple[Task[EncodedChunk], ...], ...] = ()
    same_as: Mapping[str, str] = field(default_factory=dict)
    origin: Mapping[str, object] = field(default_factory=dict)


def pack(
    source: str | Path,
    out: str | Path,
    *,
    force: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
    **arguments: Unpack[PackArguments],
) -> PackReport:
    """Pack a model's folder, a pipeline's, an adapter's, a GGUF file or one file of weights into `out`.

    Options as in `spqfmt pack --help`. With `shard_size` several files and NAME.spq.index.json are written instead of
    `out`. Raises OptionError for options that make no sense, ImporterError for the source, EncodeError for a weight
    that cannot be quantized, FileExistsError when `out` exists and `force` is not set, OSError for the disk. Whatever
    is raised, no file is left behind under its final name, and none that was there is lost.
    """
    options = pack_options(**arguments)
    model = open_source(source)
    return pack_model(
        model, given_path(out), options, force=force, resume=resume, progress=progress or Silent()
    )


def pack_model(
    model: SourceModel,
    out: Path,
    options: PackOptions,
    *,
    force: bool,
    progress: Progress,
    resume: bool = False,
) -> PackReport:
    """Pack a source that is open already, as `pack` does. See `pack`."""
    started = time.monotonic()
    check_name(out)
    options = options.for_source(model)
    model = as_packed(model, options)
    plan = plan_pack(model, options)
    bound_torch()
    if not model.tensors:
        raise ImporterError("the source holds no weights")
    alignment = options.chunk_alignment
    output = Output(
        out, plan.segment_alignment, force=force, chunk_alignment=alignment, shard_bytes=options.shard_bytes
    )
    with output, progress, blocks(options.block_log2), ExitStack() as stack:
        stack.enter_context(model.blamed())
        progress.start(plan.raw_bytes)
        folder = None
        if is_calibrated(options.method):
            folder = stack.enter_context(ResumeFolder(out, resume=resume, force=force))
        elif resume:
            raise OptionError(f"method {options.method.name} packs in one go: there is nothing to resume")
        budget = None
        if options.fit is not None:
            room = room_for(model, plan, options)
            # transformers takes seconds to import.
            from spqfmt.packing.fit.survey import fit

            options, budget = fit(model, room, options, progress.stage)
        # Which chunks are worth compressing shows when all are.
        whole = output
        if options.speed:
            whole = stack.enter_context(
                Output(out, plan.segment_alignment, force=True, chunk_alignment=alignment)
            )
        calibrated = None
        if folder is not None:
            # transformers takes seconds to import.
            from spqfmt.packing.calibrated import CalibratedResults

            calibrated = CalibratedResults(model, plan, options, folder, stage=progress.stage)
        description = None
        if options.identity and model.named_files:
            description = SourceDescription(model, plan, options.method)
        cut = {}
        if options.ranks > 1:
            # transformers takes seconds to import.
            from spqfmt.packing.ranks import cut_of_source

            cut = cut_of_source(model)
        encoder = _Encoder(options, calibrated, description, cut)
        waiting: list[tuple[PlannedTensor, _Prepared]] = []

        def write() -> None:
            planned, prepared = waiting.pop()
            content = None if prepared.content is None else prepared.content.result()
            record = replace(prepared.record, content=content)
            whole.add_tensor(
                record,
                ((task.result() for task in tasks) for tasks in prepared.chunks),
                prepared.same_as,
                prepared.origin,
            )
            progress.advance(planned.raw_bytes, planned.source.name)

        for segment, tensors in plan.segments:
            raw_bytes = sum(tensor.raw_bytes for tensor in tensors)
            for number, planned in enumerate(tensors):
                prepared = encoder.prepare(planned)
                if waiting:
                    write()
                if number == 0:
                    whole.begin_segment(segment, raw_bytes)
                waiting.append((planned, prepared))
        write()
        # All is read; nothing has its final name yet.
        model.check_unchanged()
        assets = model.asset_data
        metadata = _metadata(model, options, calibrated)
        sources: Json | None = None
        whole_files: set[str] = set()
        lost: Mapping[str, str] = dict.fromkeys(model.own_files, "packed with --no-identity")
        if description is not None:
            found, literals, lost = description.finish()
            sources = found.to_json()
            whole_files = {file.name for file in found.files if file.pieces is not None}
            assets = {**assets, **{asset.name: asset.data for asset in literals}}
        if options.speed:
            progress.stage("choosing chunks")
            reader = stack.enter_context(Reader(whole.seal_unpublished(assets, metadata, sources)))
            sealed = Rewrite([reader], options.speed, options.codec.codec).write(output, Silent())
        else:
            sealed = output.finish(assets, metadata, options.codec.partial_plan, sources=sources)
        if folder is not None:
            folder.remove()
    file_bytes = sum(file.file_bytes for file in sealed)
    left_dense = {} if calibrated is None else calibrated.left_dense()
    notes = () if calibrated is None else calibrated.all_notes()
    notes += (*encoder.kept.notes(left_dense), *array_notes(model, plan, options.method))
    if budget is not None:
        notes += (*room_notes(options.fit, budget.ledger, file_bytes),)
    return PackReport(
        files=tuple(file.path for file in sealed),
        raw_bytes=plan.raw_bytes,
        bf16_bytes=sum(bf16_bytes(tensor.source.dtype, tensor.n_weights) for tensor in plan.tensors),
        file_bytes=file_bytes,
        n_tensors=sum(1 for _ in plan.tensors),
        n_weights=sum(tensor.n_weights for tensor in plan.tensors),
        seconds=time.monotonic() - started,
        left_dense=left_dense,
        notes=notes,
        assets=(*(asset.name for asset in model.assets), *_kept_whole(model, whole_files)),
        left_out=_left_out(model, whole_files),
        not_given_back=lost,
    )


def _left_out(model: SourceModel, whole_files: set[str]) -> dict[str, str]:
    """What the source left out and is not kept as literals, which `whole_files` are.

    A folder of which some files are kept is named by the others.
    """
    held = whole_files | model.asset_data.keys()
    left_out: dict[str, str] = {}
    for name, reason in model.left_out.items():
        inside = [n for n in model.named_files if name.endswith("/") and n.startswith(name)]
        if held.isdisjoint(inside):
            left_out |= {} if name in held else {name: reason}
        else:
            left_out |= {n: reason for n in inside if n not in held}
    return left_out


def _kept_whole(model: SourceModel, whole_files: set[str]) -> list[str]:
    """Which of `whole_files` the source left out, by name or with their folder."""
    return sorted(
        name
        for name in whole_files - model.own_files
        if name in model.left_out or f"{name.partition('/')[0]}/" in model.left_out
    )


class _Encoder:
    """Turns planned tensors into streams and hands their chunks to the other threads."""

    def __init__(
        self,
        options: PackOptions,
        calibrated: "CalibratedResults | None",
        description: SourceDescription | None,
        cut: Mapping[str, bool],
    ) -> None:
        self._options = options
        self._cut = cut
        self._description = description
        self._calibrated = calibrated
        self._weight_chunks = count()
        self._tables = SharedTables()
        # Asked once: to ask whether an object has a protocol's members takes longer than to pack a small tensor.
        self._keeping = options.method if isinstance(options.method, KeepingMethod) else None
        self.kept = KeptTensors(options.method)

    def prepare(self, planned: PlannedTensor) -> _Prepared:
        """Read and quantize one tensor and submit its chunks."""
        source = planned.source
        if source.tied_to is not None:
            return _Prepared(planned.tied_record())
        origin: Mapping[str, object] = {}
        result = None if self._calibrated is None else self._calibrated.take(planned)
        if result is not None:
            encoded, method = planned.encode(result.quantized), self._options.method.name
        elif planned.treatment and not (self._calibrated and self._calibrated.wants(planned)):
            encoded, method = self._quantize(planned), self._options.method.name
            if self._description is not None and source.form:
                origin = self._description.origin_of_codes(source, encoded)
        else:
            dense = _dense(source)
            encoded, method = planned.encode(dense), ""
            if self._description is not None:
                origin = self._description.origin_of(source, dense.values)
        self.kept.add(planned, encoded)
        record = planned.record(encoded, method, result)
        of_columns = self._cut.get(source.name)
        # How codes of a source lie is what gives its bytes again.
        if of_columns is not None and not (of_columns and origin):
            encoded = laid_for_ranks(record, encoded, self._options.ranks, of_columns=of_columns)
            record = planned.record(encoded, method, result)
        content = submit(content_of_encoded, record, encoded) if self._options.identity else None
        return _Prepared(
            record=record,
            content=content,
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


def _metadata(
    model: SourceModel, options: PackOptions, calibrated: "CalibratedResults | None"
) -> dict[str, str]:
    """What a person may want to know of the file's making; the same for the same input, so no times and no paths."""
    given = {key: value for key, value in vars(options.method_options).items() if value is not None}
    more = {} if calibrated is None else calibrated.metadata(options.calibration)
    made = {
        "architecture": model.architecture,
        "source": model.source_kind,
        **({"base_model": model.base_model} if model.base_model else {}),
        "method": options.method.name,
        "method_options": json.dumps(given, sort_keys=True),
        "codec": options.codec.codec,
        **({"block_bytes": str(1 << options.block_log2)} if options.block_log2 else {}),
        "writer": f"spqfmt {__version__}",
    }
    return model.stored_facts | more | made
