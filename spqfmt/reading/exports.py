"""A packed model in the files of another program, codes and all."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from spqfmt.container.model import OpenModel
from spqfmt.errors import EncodeError, OptionError
from spqfmt.exporters.base import Exported, ExportModel
from spqfmt.exporters.folder import check_gguf_name, whole_file, whole_folder
from spqfmt.exporters.registry import exporters
from spqfmt.importers._folders import ADAPTER_KIND, PARTS_KINDS
from spqfmt.importers._quantized import quantizer_of, without_quantizer
from spqfmt.metadata_keys import NO_MODEL
from spqfmt.models.stacked_heads import has_stacks
from spqfmt.progress import Progress
from spqfmt.reading.grids import JoinedWeight, StoredWeight
from spqfmt.reading.restored import JoinedTensor, whole
from spqfmt.reading.source_files import SourceFiles
from spqfmt.records import bf16_bytes

_CONFIG = "config.json"
_GGUF = "gguf"
APART = "codes of matrices whose rows the source has apart"
"""What is written as the values that they stand for, besides codes of embeddings and heads."""


def source_of_form(sources: SourceFiles, model: OpenModel, form: str, out: Path, progress: Progress) -> bool:
    """Write the files of the source where it is of this form already, and still held; whether it was.

    Raises OptionError where that form's one file cannot be `out`.
    """
    if form != _form_of(model):
        return False
    sources.check()
    if not sources.has_weights:
        return False
    if form != _GGUF:
        progress.start(sum(file.file_bytes for file in sources.written))
        with whole_folder(out) as partial:
            sources.write(partial, progress)
        return True
    if len(sources.written) > 1:
        raise OptionError(f"the source is a GGUF in {len(sources.written)} files; --as source writes these")
    check_gguf_name(out)
    [file] = sources.written
    progress.start(file.file_bytes)
    with whole_file(out) as partial:
        sources.write_one(file, partial, progress)
    return True


def _form_of(model: OpenModel) -> str:
    """What form the source had, by the exporters' names: GGUF, or what its config.json says of a quantizer."""
    if model.index.metadata.get("source") == _GGUF:
        return _GGUF
    if _CONFIG not in model.asset_holders:
        return ""
    try:
        config = json.loads(model.read_asset(_CONFIG))
    except ValueError:
        return ""
    said = quantizer_of(config) if isinstance(config, dict) else None
    return str(said.get("quant_method")) if isinstance(said, dict) else ""


def export(
    model: OpenModel,
    out: Path,
    form: str,
    *,
    assets: Mapping[str, Iterable[bytes]],
    others: Mapping[str, Iterable[bytes]],
    facts: Mapping[str, str],
    progress: Progress,
) -> Exported:
    """Write the model as `form`, one of the exporters' names. Raises EncodeError for what the form does not hold."""
    kind = model.index.metadata.get("source")
    if kind == ADAPTER_KIND or kind in PARTS_KINDS:
        raise EncodeError(f"{form} holds a language model, and this is none; --as dense writes plain weights")
    if _CONFIG not in assets:
        raise EncodeError(f"no config.json is written, which {form} needs; --as dense writes plain weights")
    config = b"".join(assets[_CONFIG])
    try:
        found = json.loads(without_quantizer(config) or config)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise EncodeError(f"its config.json is no JSON object, and {form} adds to it")
    weights = [StoredWeight(*model.held(name), progress) for name in model.tensors]
    progress.start(sum(bf16_bytes(w.dtype, w.record.n_weights) for w in weights if w.tied_to is None))
    apart = has_stacks(kind, model.index.metadata.get(NO_MODEL))
    as_matrices: list[StoredWeight | JoinedWeight] = [
        JoinedWeight(w.name, w.stacks) if isinstance(w, JoinedTensor) else w
        for w in (whole(weights) if apart else weights)
    ]
    done = exporters()[form].export(
        ExportModel(as_matrices, found, assets={**assets, _CONFIG: config}, others=others, facts=facts), out
    )
    coded = {weight.name for weight in weights if weight.has_codes}
    joined = [
        w.name for w in as_matrices if isinstance(w, JoinedWeight) and coded & {s.name for s in w.stacks}
    ]
    return replace(done, plain={**done.plain, **dict.fromkeys(joined, APART)})
