"""Where a model is cut into shards: by names, shapes and options alone, wherever these tell how large tensors are.

So whoever packs a part of a model knows which files it makes before anything is encoded.
"""

from spqfmt.importers.base import SourceModel
from spqfmt.packing.options import PackOptions
from spqfmt.packing.plan import PackPlan, PlannedTensor
from spqfmt.quantize.base import SizedMethod
from spqfmt.quantize.calibrated import is_calibrated


def is_cut_by_plan(options: PackOptions) -> bool:
    """Whether shards end where the plan says; else where what is encoded would not fit."""
    return not is_calibrated(options.method) and options.fit is None


def shard_starts(model: SourceModel, plan: PackPlan, options: PackOptions) -> tuple[int, ...]:
    """The numbers of the segments that begin a shard; none where a model is one file, or is not cut by the plan.

    With all that its tensors may take, and the first one with its assets, no shard is larger than was asked for, unless
    a segment alone is.
    """
    if not options.shard_bytes or not is_cut_by_plan(options):
        return ()
    starts, at = [0], sum(len(asset.data) for asset in model.assets)
    for number, (_, tensors) in enumerate(plan.segments):
        n_bytes = sum(_most_bytes(tensor, options) for tensor in tensors)
        if number and at + n_bytes > options.shard_bytes:
            starts.append(number)
            at = 0
        at += n_bytes
    return tuple(starts)


def _most_bytes(planned: PlannedTensor, options: PackOptions) -> int:
    if planned.treatment and planned.source.tied_to is None and isinstance(options.method, SizedMethod):
        return options.method.most_bytes(planned.weight, options.method_options)
    return planned.raw_bytes
