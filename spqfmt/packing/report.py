"""What a pack tells: the metadata of the file, and the report of its making."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from spqfmt.container.strict_json import Json
from spqfmt.container.writer import Sealed
from spqfmt.importers.base import SourceModel
from spqfmt.packing.options import PackOptions
from spqfmt.packing.plan import PackPlan
from spqfmt.packing.sources import Described
from spqfmt.records import bf16_bytes
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


def written_beside(model: SourceModel, described: Described | None) -> tuple[dict[str, bytes], Json | None]:
    """The assets, and the record of the source's files where it is written."""
    if described is None:
        return model.asset_data, None
    literals = {asset.name: asset.data for asset in described.assets}
    return model.asset_data | literals, described.sources.to_json()


def report_of(
    model: SourceModel,
    plan: PackPlan,
    sealed: Sequence[Sealed],
    described: Described | None,
    *,
    seconds: float,
    left_dense: Mapping[str, str],
    notes: Sequence[str],
) -> PackReport:
    """The report of a pack that wrote these files. `described` None: nothing gives the source's files back."""
    lost: Mapping[str, str] = dict.fromkeys(model.own_files, "packed with --no-identity")
    whole_files: set[str] = set()
    if described is not None:
        lost = described.lost
        whole_files = {file.name for file in described.sources.files if file.pieces is not None}
    return PackReport(
        files=tuple(file.path for file in sealed),
        raw_bytes=plan.raw_bytes,
        bf16_bytes=sum(bf16_bytes(tensor.source.dtype, tensor.n_weights) for tensor in plan.tensors),
        file_bytes=sum(file.file_bytes for file in sealed),
        n_tensors=sum(1 for _ in plan.tensors),
        n_weights=sum(tensor.n_weights for tensor in plan.tensors),
        seconds=seconds,
        left_dense=left_dense,
        notes=tuple(notes),
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


def metadata_of(
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
