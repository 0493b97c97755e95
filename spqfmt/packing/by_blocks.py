"""Several processes pack one model with a calibrated method: each quantizes its share of the blocks, the first packs.

    embed -> states from the process before -> OUT.spq.resume/block-00007.spq -> states to the next -> all there -> pack

What the first one finds there is what an interrupted pack of one process would have left, so the file is that of one.
"""

from pathlib import Path

from spqfmt.codecs.threads import bound_torch
from spqfmt.importers.base import SourceModel
from spqfmt.packing.dequantized import as_packed
from spqfmt.packing.options import PackOptions
from spqfmt.packing.pack import pack_model
from spqfmt.packing.plan import plan_pack
from spqfmt.packing.report import PackReport
from spqfmt.packing.resume import ResumeFolder
from spqfmt.processes import Processes
from spqfmt.progress import Progress


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
    """Pack with a calibrated method; `options` are those of the source. Raises as `pack_together` does."""
    if processes.number == 0:
        report = pack_model(
            model, out, options, force=force, resume=resume, progress=progress, processes=processes
        )
        return processes.exchange(report)[0]  # type: ignore[no-any-return]
    # transformers takes seconds to import.
    from spqfmt.packing.calibrated import CalibratedResults

    model = as_packed(model, options)
    plan = plan_pack(model, options)
    bound_torch()
    with model.blamed(), ResumeFolder(out, resume=resume, force=force).as_guest() as folder:
        CalibratedResults(model, plan, options, folder, stage=progress.stage).quantize_together(processes)
        return processes.exchange(None)[0]  # type: ignore[no-any-return]
