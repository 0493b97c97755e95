"""Several processes pack one model of which the first writes the file: with a calibrated method, or to a size.

    look at a share of the model -> the same plans for all
    embed -> states from the process before -> OUT.spq.resume/block-00007.spq -> states to the next -> all there -> pack

What the first one finds there is what an interrupted pack of one process would have left, so the file is that of one.
"""

from contextlib import ExitStack
from pathlib import Path

from spqfmt.codecs.threads import bound_torch
from spqfmt.importers.base import SourceModel
from spqfmt.packing.dequantized import as_packed
from spqfmt.packing.fit.bounds import room_for
from spqfmt.packing.options import PackOptions
from spqfmt.packing.pack import pack_model
from spqfmt.packing.plan import plan_pack
from spqfmt.packing.report import PackReport
from spqfmt.packing.resume import ResumeFolder, check_alike
from spqfmt.processes import Processes
from spqfmt.progress import Progress
from spqfmt.quantize.calibrated import is_calibrated


def is_by_blocks(options: PackOptions) -> bool:
    """Whether the method packs so: others share the shards."""
    return is_calibrated(options.method) or options.fit is not None


def pack_by_blocks(
    model: SourceModel,
    out: Path,
    options: PackOptions,
    processes: Processes,
    *,
    force: bool,
    resume: bool,
    progress: Progress,
) -> PackReport:
    """Pack as `is_by_blocks` says; `options` are those of the source. Raises as `pack_together` does."""
    # transformers takes seconds to import.
    from spqfmt.packing.calibrated import CalibratedResults, identity_of

    # What they share from here on goes by it.
    check_alike(identity_of(model, options, ""), processes)
    if processes.number == 0:
        report = pack_model(
            model, out, options, force=force, resume=resume, progress=progress, processes=processes
        )
        return processes.exchange(report)[0]  # type: ignore[no-any-return]
    model = as_packed(model, options)
    plan = plan_pack(model, options)
    bound_torch()
    with model.blamed(), ExitStack() as stack:
        if options.fit is not None:
            # transformers takes seconds to import.
            from spqfmt.packing.fit.survey import fit

            room = room_for(model, plan, options, processes)
            options, _ = fit(model, room, options, stage=progress.stage, processes=processes)
        if is_calibrated(options.method):
            folder = stack.enter_context(ResumeFolder(out, resume=resume, force=force).as_guest())
            CalibratedResults(model, plan, options, folder, stage=progress.stage).quantize_together(processes)
        return processes.exchange(None)[0]  # type: ignore[no-any-return]
