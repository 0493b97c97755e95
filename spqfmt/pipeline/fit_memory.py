"""A file for a ceiling of memory: files of a size are packed until the plan of one needs just less than the ceiling."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory

from spqfmt import wire
from spqfmt.container.reader import Reader
from spqfmt.errors import OptionError
from spqfmt.pipeline.fit_target import BitsPerWeight, FileBytes, MemoryBytes
from spqfmt.pipeline.options import PackOptions
from spqfmt.pipeline.plan import PackPlan
from spqfmt.pipeline.residency.parts import cut
from spqfmt.pipeline.residency.plan import Inventory, Item, in_memory_bytes
from spqfmt.pipeline.residency.sides import side_bytes
from spqfmt.pipeline.residency.workspace import workspace_bytes
from spqfmt.quantize.ecq.allocation import FEWEST_BITS
from spqfmt.quantize.ecq.method import Ecq
from spqfmt.records import TensorRecord

_AIM = 0.997
"""Of the ceiling: what is held beside the codes is known only when they are."""
_ENOUGH = 0.99
_TRIES = 4
_DRY_BITS = 4.0

PackFile = Callable[[PackOptions, Path], None]


def pack_into_memory(plan: PackPlan, options: PackOptions, out: Path, pack_file: PackFile) -> None:
    """Write `out`, whose weights stay in memory under the ceiling of `options.fit`.

    What a model holds beside its file is first taken from files made without calibration, in seconds. Raises what
    `pack_file` does, and OptionError for a ceiling that is too low.
    """
    asked = options.fit
    assert isinstance(asked, MemoryBytes)
    assert isinstance(options.method, Ecq)
    least = _least(plan)
    if asked.n_bytes < least:
        raise OptionError(
            f"{asked.n_bytes} bytes of memory are too few for this model: what stays in floats and 1 bit for each "
            f"other weight take {least}"
        )
    given = replace(options.method_options, bits_per_weight=_DRY_BITS)
    dry = replace(
        options,
        method=replace(options.method, calibrated=False),
        method_options=given,
        fit=BitsPerWeight(_DRY_BITS),
    )
    with TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
        trial = Path(folder) / out.name
        extra = _column_bytes(plan) if options.method.calibrated else 0
        beside = 0
        for fit in (dry.fit, None):
            pack_file(replace(dry, fit=fit or _file_of(asked, beside)), trial)
            beside = memory_of(trial, plan) - trial.stat().st_size + extra
        for _ in range(_TRIES):
            size = _file_of(asked, beside)
            pack_file(replace(options, fit=size), trial)
            needed = memory_of(trial, plan)
            if needed <= asked.n_bytes and (
                needed >= _ENOUGH * asked.n_bytes or _is_finest(trial, size.n_bytes)
            ):
                trial.replace(out)
                return
            beside = needed - trial.stat().st_size
    raise OptionError(
        f"no file was found whose weights need {asked.n_bytes} bytes of memory; {needed} was nearest"
    )


def _least(plan: PackPlan) -> int:
    """Bytes that are never enough, from names and shapes alone."""
    own = [t.source for t in plan.tensors if t.source.tied_to is None]
    weights = {source.name: prod(source.shape) for source in own}
    itemsize = _itemsize([(source.dtype, weights[source.name]) for source in own])
    packed = {source.name for source in own if _is_packed(source.role, source.shape)}
    floats = sum(n * itemsize for name, n in weights.items() if name not in packed)
    return floats + int(sum(weights[name] for name in packed) * FEWEST_BITS / 8)


def _is_packed(role: str, shape: Sequence[int]) -> bool:
    """Whether a model keeps the tensor as codes, rather than as floats."""
    return role != "other" and len(shape) == 2 and prod(shape) > 0


def _file_of(asked: MemoryBytes, beside: int) -> FileBytes:
    n_bytes = int(_AIM * asked.n_bytes) - beside
    return FileBytes(n_bytes, asked.n_bytes - n_bytes)


def _is_finest(file: Path, target: int) -> bool:
    """Whether the file is smaller than it was allowed to be."""
    return file.stat().st_size < _ENOUGH * target


def _column_bytes(plan: PackPlan) -> int:
    """Memory for the column scales that calibration brings."""
    layers = [
        t.source for t in plan.tensors if t.treatment and t.source.role == "linear" and not t.source.tied_to
    ]
    return sum(4 * (s.shape[0] if s.transposed else s.shape[-1]) for s in layers)


def memory_of(file: Path, plan: PackPlan) -> int:
    """The smallest ceiling under which nothing of the model stays on disk, as `spqfmt plan` has it."""
    with Reader(file) as reader:
        return in_memory_bytes(inventory_of_records(reader.index.tensors, plan))


def inventory_of_records(records: Sequence[TensorRecord], plan: PackPlan) -> Inventory:
    """What a model made from the records holds, its weights in the dtype that most of them have."""
    roles = {t.source.name: t.source.role for t in plan.tensors}
    tied = {t.source.tied_to for t in plan.tensors if t.source.tied_to}
    own = [record for record in records if record.tied_to is None]
    packed = [r for r in own if _is_packed(roles[r.name], r.shape)]
    itemsize = _itemsize([(r.dtype, r.n_weights) for r in own])
    items = []
    for record in packed:
        embedding = roles[record.name] == "embedding"
        items += [Item(part, not embedding or record.name in tied, embedding) for part in cut(record)]
    return Inventory(
        tuple(items),
        sum(r.n_weights * itemsize for r in own if r not in packed),
        side_bytes([item.part for item in items]),
        max((workspace_bytes(*r.matrix_shape, itemsize) for r in packed), default=0),
    )


def _itemsize(tensors: Sequence[tuple[str, int]]) -> int:
    """Bytes of the dtype that most weights have; dtypes with numbers of weights."""
    counts = Counter[str]()
    for dtype, n in tensors:
        counts[dtype] += n
    return wire.DTYPES[counts.most_common(1)[0][0]].bits // 8
