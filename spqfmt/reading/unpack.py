"""A .spq file back to a Hugging Face folder."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from spqfmt.asset_names import as_files
from spqfmt.container.model import OpenModel, open_model
from spqfmt.errors import OptionError
from spqfmt.exporters.folder import whole_folder
from spqfmt.exporters.huggingface import export_huggingface
from spqfmt.importers._folders import ADAPTER, ADAPTER_KIND, PARTS_KINDS
from spqfmt.importers._quantized import are_decoded, without_quantizer
from spqfmt.metadata_keys import FACT_PREFIX, NO_MODEL
from spqfmt.models.stacked_heads import has_stacks
from spqfmt.progress import Progress, Silent
from spqfmt.reading.card import CARD, card_of
from spqfmt.reading.exports import export, source_of_form
from spqfmt.reading.restored import RestoredTensor, whole
from spqfmt.reading.settings import is_settings, read_settings
from spqfmt.reading.source_files import CODE, NO_NAME, SourceFiles
from spqfmt.schemes.registry import scheme_of
from spqfmt.stand_ins import given_path

if TYPE_CHECKING:
    pass

_CONFIG = "config.json"
# Methods that hold what the source has.
_KEEPING = ("", "lossless", "keep")


@dataclass(frozen=True)
class UnpackReport:
    """What became of the model's files. `left_out`: names of those that were not written, with the reason.

    `written` are its small files, or with `identical` all files of the source that were written as they were. `changed`
    says of settings what they were written without, since it names code.
    """

    written: tuple[str, ...]
    left_out: Mapping[str, str]
    identical: bool = False
    changed: Mapping[str, str] = field(default_factory=dict)
    made: Mapping[str, str] = field(default_factory=dict)
    """Files of weights that are written and are not the source's, with the reason."""
    plain: Mapping[str, str] = field(default_factory=dict)
    """Tensors whose codes an export holds as the values that they stand for, with what codes these are."""


def unpack(
    path: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    keep_packed: bool = False,
    with_code: bool = False,
    as_: Literal["source", "dense", "compressed-tensors", "gptq", "gguf"] | None = None,
    progress: Progress | None = None,
) -> UnpackReport:
    """Write a packed model into `folder`, which must not hold anything; with `as_` gguf into a file of this name.

    A file that can give its source's files back (FORMAT.md 7.2) gives them, byte for byte and compared with their
    SHA-256; any other, and all with `as_` dense, gives safetensors, config and tokenizer. `as_` source refuses instead.
    Any other `as_` is another program's format, which takes the codes of linear layers as they are: EncodeError names
    the first tensor that does not fit, and nothing is written.

    Quantized tensors are dequantized. With `keep_packed` the weights stay in a copy of the file: transformers loads
    such a folder once spqfmt is imported. Of the model's small files those are written that FORMAT.md 7.1 allows in a
    folder; code among them, and settings that name code, only `with_code`. Raises FormatError for the file,
    FileExistsError and OSError for the folder, EncodeError for a tensor's name that safetensors cannot hold.
    """
    folder = given_path(folder)
    with open_model(path) as model, progress or Silent() as shown:
        model.refuse_lone_shard()
        sources = SourceFiles(model, with_code=with_code)
        if keep_packed and as_ not in (None, "dense"):
            raise OptionError(
                f"a folder that is kept packed is not written as {as_}; leave one of the two out"
            )
        if as_ in (None, "source") and not keep_packed:
            sources.check()
            if sources.has_weights:
                shown.start(sum(file.file_bytes for file in sources.written))
                with whole_folder(folder) as partial:
                    sources.write(partial, shown)
                return _of_source(sources)
            if as_ == "source":
                raise OptionError(
                    f"{path}: it cannot give back the files of its source ({_why_plain(model)}); leave --as source out "
                    "for plain weights"
                )
        if as_ is not None and source_of_form(sources, model, as_, out=folder, progress=shown):
            return _of_source(sources)
        assets, report = _chosen(model, with_code=with_code)
        others = _others(model, sources)
        report = _with_others(report, others, sources, replaced=keep_packed or as_ is not None)
        if keep_packed:
            if model.readers[0].remote is not None:
                raise OptionError(f"{path}: keep_packed copies files of this machine; download this one")
            copies = [reader.path for reader in model.readers]
            copies += [] if copies[0] == Path(path) else [Path(path)]
            copied = [file.name for file in copies]
            report = _with_card(model, copied, report, assets=assets, others=others)
            kept = export_huggingface(folder, [], assets, copies=copies, others=others)
            return replace(report, made=dict.fromkeys(kept, "kept packed"))
        facts = {
            key.removeprefix(FACT_PREFIX): value
            for key, value in model.index.metadata.items()
            if key.startswith(FACT_PREFIX)
        }
        if as_ is not None and as_ != "dense":
            done = export(model, folder, as_, assets=assets, others=others, facts=facts, progress=shown)
            left_out = {name: reason for name, reason in report.left_out.items() if name not in done.files}
            made = dict.fromkeys(done.files, f"written as {as_} has them")
            if done.is_alone:
                report, left_out = UnpackReport((), {}), {}
            return replace(report, made=made, left_out=left_out, plain=done.plain)
        tensors = [RestoredTensor(*model.held(name), shown) for name in model.tensors]
        said = model.index.metadata
        apart = has_stacks(said.get("source"), said.get(NO_MODEL))
        shown.start(sum(t.record.source_bytes for t in tensors if t.tied_to is None))
        report = _say_decoded(model, assets, report)
        stems = _stems(model, assets)
        as_matrices = whole(tensors) if apart else tensors
        names = export_huggingface(folder, as_matrices, assets, facts=facts, stems=stems, others=others)
        why = "plain weights, as --as dense asks" if as_ == "dense" else _why_plain(model)
        left_out = {name: reason for name, reason in report.left_out.items() if name not in names}
        return replace(report, made=dict.fromkeys(names, why), left_out=left_out)


def _with_card(
    model: OpenModel,
    names: Sequence[str],
    report: UnpackReport,
    *,
    assets: dict[str, Iterable[bytes]],
    others: dict[str, Iterable[bytes]],
) -> UnpackReport:
    """Put a section about the packed file into the source's card, or make one.

    Not where other files leave no place for the name.
    """
    files = [name for name in (*assets, *others) if name != CARD]
    if CARD not in as_files([*files, CARD]) or len(as_files([*files, CARD])) <= len(as_files(files)):
        return report
    own = others.pop(CARD, None) or assets.pop(CARD, None)
    text = None if own is None else b"".join(own).decode("utf-8", "replace")
    assets[CARD] = [card_of(model, names, text).encode()]
    written = tuple(name for name in report.written if name != CARD)
    return replace(
        report, written=written, changed={**report.changed, CARD: "with a section about the packed file"}
    )


def _of_source(sources: SourceFiles) -> UnpackReport:
    """The report of the source's own files."""
    changed = {name: settings.reason for name, settings in sources.changed.items()}
    written = tuple(file.name for file in sources.written if file.name not in changed)
    return UnpackReport(written, sources.left_out, identical=True, changed=changed)


def _with_others(
    report: UnpackReport, others: Mapping[str, object], sources: SourceFiles, *, replaced: bool
) -> UnpackReport:
    """The report with files of the source that no asset can be, and with those that are not made.

    `replaced`: what holds weights is asked for in another form, and not missed.
    """
    missing = {
        name: reason
        for name, reason in sources.missing.items()
        if name not in others and not (replaced and name in sources.of_weights)
    }
    changed = {name: sources.changed[name].reason for name in others if name in sources.changed}
    return replace(
        report,
        written=(*report.written, *(name for name in others if name not in changed)),
        changed={**report.changed, **changed},
        left_out={**report.left_out, **missing},
    )


def _others(model: OpenModel, sources: SourceFiles) -> dict[str, Iterable[bytes]]:
    """Files of the source beside plain weights that no asset can be.

    Weights of the root would be the model's. An adapter's config makes libraries fetch its base: of an adapter alone.
    """
    is_adapter = model.index.metadata.get("source") == ADAPTER_KIND
    names = [
        name
        for name in sources.whole
        if not (name.endswith(ADAPTER) and not is_adapter)
        and not ("/" not in name and name.lower().endswith((".safetensors", ".gguf")))
    ]
    return {name: sources.whole[name] for name in names}


def _stems(model: OpenModel, assets: Mapping[str, object]) -> dict[str, str]:
    """What the files of weights are called, by the folder of a part of the model, "" for none."""
    kind = model.index.metadata.get("source")
    if kind == ADAPTER_KIND:
        return {"": "adapter_model"}
    if kind not in PARTS_KINDS:
        return {}
    stems: dict[str, str] = {}
    for part in dict.fromkeys(name.partition("/")[0] for name in model.tensors if "/" in name):
        config = f"{part}/{_CONFIG}"
        is_diffusers = config in assets and b'"_class_name"' in model.read_asset(config)
        stems[part] = "diffusion_pytorch_model" if is_diffusers else "model"
    names = [f"{part}/{stem}.safetensors" for part, stem in stems.items()]
    # A name that may be no folder, or an asset's, gives what any other file gives.
    return stems if len(as_files([*names, *assets])) == len(names) + len(assets) else {}


def _why_plain(model: OpenModel) -> str:
    """Why the weights are not in the files of the source."""
    is_kept = model.index.metadata.get("method", "") in _KEEPING
    if not is_kept and any(record.method not in _KEEPING for record in model.tensors.values()):
        return "quantized"
    if model.index.sources is None:
        return "the packed file does not say what the source's files were"
    return "not all of the source's files of weights are written"


def _chosen(model: OpenModel, *, with_code: bool) -> tuple[dict[str, Iterable[bytes]], UnpackReport]:
    """The assets to write, and the report."""
    names = model.asset_names
    kinds = as_files(names)
    left_out = dict.fromkeys(names, NO_NAME)
    for name, kind in kinds.items():
        if kind == "data" or with_code:
            del left_out[name]
        else:
            left_out[name] = CODE
    holders = model.asset_holders
    chosen: dict[str, Iterable[bytes]] = {}
    changed: dict[str, str] = {}
    for name in [name for name in names if name not in left_out]:
        chosen[name] = holders[name].asset_pieces(name)
        if with_code or not is_settings(name):
            continue
        settings = read_settings(holders[name], name)
        if settings is None:
            left_out[name] = CODE
            del chosen[name]
        elif settings.keys:
            chosen[name], changed[name] = [settings.data], settings.reason
    written = tuple(name for name in chosen if name not in changed)
    return chosen, UnpackReport(written, left_out, changed=changed)


def _say_decoded(model: OpenModel, assets: dict[str, Iterable[bytes]], report: UnpackReport) -> UnpackReport:
    """Take out of the config what it says of a quantizer whose codes are written as the weights that they stand for."""
    records = model.tensors.values()
    has_codes = any(r.scheme != "tied" and scheme_of(r.scheme).is_quantized for r in records)
    if _CONFIG not in assets or not are_decoded(
        ((r.name, r.shape, r.dtype) for r in records), has_codes=has_codes
    ):
        return report
    data = b"".join(assets[_CONFIG])
    plain = without_quantizer(data)
    assets[_CONFIG] = [plain or data]
    if plain is None:
        return report
    left_out = {f"{_CONFIG}: what it says of a quantizer": "the weights are written as they are decoded"}
    return replace(report, left_out={**report.left_out, **left_out})
