"""Source model -> .spq file: one tensor after the other, chunks encoded on all cores.

import -> plan -> quantize -> streams -> encoded chunks -> writer -> index -> fsync -> rename
"""

import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Unpack

from spqfmt.codecs.threads import blocks, bound_torch
from spqfmt.container.output import Output, check_name
from spqfmt.container.reader import Reader
from spqfmt.errors import ImporterError, OptionError
from spqfmt.hub import HubName, fetch_source, not_a_path
from spqfmt.importers.base import SourceModel
from spqfmt.importers.registry import open_source
from spqfmt.packing.dequantized import as_packed
from spqfmt.packing.encoder import Encoder, write_segments
from spqfmt.packing.fit.bounds import room_for, room_notes
from spqfmt.packing.kept import KeptTensors, array_notes
from spqfmt.packing.options import PackArguments, PackOptions, pack_options
from spqfmt.packing.plan import plan_pack
from spqfmt.packing.report import PackReport, metadata_of, report_of, written_beside
from spqfmt.packing.resume import ResumeFolder
from spqfmt.packing.shards import shard_starts
from spqfmt.packing.sources import SourceDescription
from spqfmt.processes import Processes
from spqfmt.progress import Progress, Silent
from spqfmt.quantize.calibrated import is_calibrated
from spqfmt.rewriting.rewrite import Rewrite
from spqfmt.stand_ins import given_path


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

    A text such as "owner/name", "owner/name@revision" or "owner/name/file.gguf" is a model on a hub where no folder
    `owner` is here: what the cache of huggingface_hub lacks of it is fetched, which raises RemoteError.

    Options as in `spqfmt pack --help`. With `shard_size` several files and NAME.spq.index.json are written instead of
    `out`. Raises OptionError for options that make no sense, ImporterError for the source, EncodeError for a weight
    that cannot be quantized, FileExistsError when `out` exists and `force` is not set, OSError for the disk. Whatever
    is raised, no file is left behind under its final name, and none that was there is lost.
    """
    options = pack_options(**arguments)
    name = not_a_path(source) if isinstance(source, str) else None
    model = open_source(source) if name is None else open_named(fetch_source(name), name)
    return pack_model(
        model, given_path(out), options, force=force, resume=resume, progress=progress or Silent()
    )


def open_named(place: Path, name: HubName) -> SourceModel:
    """The source that was fetched to a place, with the name of its repository for what it is made from."""
    model = open_source(place)
    return model if model.base_model else replace(model, base_model=name.repository)


def pack_model(
    model: SourceModel,
    out: Path,
    options: PackOptions,
    *,
    force: bool,
    progress: Progress,
    resume: bool = False,
    processes: Processes | None = None,
) -> PackReport:
    """Pack a source that is open already, as `pack` does. See `pack`.

    `processes`: those that look at the model and quantize its blocks with this one, the first of them; the others are
    in `pack_by_blocks`.
    """
    started = time.monotonic()
    check_name(out)
    options = options.for_source(model)
    model = as_packed(model, options)
    plan = plan_pack(model, options)
    bound_torch()
    if not model.tensors:
        raise ImporterError("the source holds no weights")
    alignment = options.chunk_alignment
    starts = shard_starts(model, plan, options)
    output = Output(
        out,
        plan.segment_alignment,
        force=force,
        chunk_alignment=alignment,
        shard_bytes=None if starts else options.shard_bytes,
        shard_starts=starts,
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
            room = room_for(model, plan, options, processes)
            # transformers takes seconds to import.
            from spqfmt.packing.fit.survey import fit

            options, budget = fit(model, room, options, stage=progress.stage, processes=processes)
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
            if processes is not None:
                calibrated.quantize_together(processes)
        description = None
        if options.identity and model.named_files:
            description = SourceDescription(model, plan, options.method)
        cut = {}
        if options.ranks > 1:
            # transformers takes seconds to import.
            from spqfmt.packing.ranks import cut_of_source

            cut = cut_of_source(model)
        kept = KeptTensors(options.method)
        encoder = Encoder(options, calibrated, description, cut=cut, kept=kept)
        write_segments(
            plan.segments, encoder, whole, lambda done: progress.advance(done.raw_bytes, done.source.name)
        )
        # All is read; nothing has its final name yet.
        model.check_unchanged()
        metadata = metadata_of(model, options, calibrated)
        described = None if description is None else description.finish()
        assets, sources = written_beside(model, described)
        if options.speed:
            progress.stage("choosing chunks")
            reader = stack.enter_context(Reader(whole.seal_unpublished(assets, metadata, sources)))
            sealed = Rewrite([reader], options.speed, options.codec.codec).write(output, Silent())
        else:
            sealed = output.finish(assets, metadata, options.codec.partial_plan, sources=sources)
        if folder is not None:
            folder.remove()
    left_dense = {} if calibrated is None else calibrated.left_dense()
    notes = () if calibrated is None else calibrated.all_notes()
    notes += (*kept.notes(left_dense), *array_notes(model, plan, options.method))
    if budget is not None:
        n_bytes = sum(file.file_bytes for file in sealed)
        notes += (*budget.notes, *room_notes(options.fit, budget.ledger, n_bytes))
    return report_of(
        model, plan, sealed, described, seconds=time.monotonic() - started, left_dense=left_dense, notes=notes
    )
