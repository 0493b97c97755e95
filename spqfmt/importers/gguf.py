"""GGUF files: float tensors as they are, quantized ones dequantized, config and tokenizer rebuilt from the metadata.

Dtypes: F32, F16, BF16, F64 and integers stay what they are. MXFP4 becomes bf16, which holds its values exactly. Every
other block type becomes f16: a dequantized value is a float16 scale times a small integer (plus a float16 offset),
which in general only f32 holds exactly; rounding it to f16 costs at most 2^-11 of the value, far below the step of the
block, and halves what is stored. A value beyond float16's range is refused, never clipped. Method keep takes the codes
over as they are (_gguf_codes.py), and the bytes of blocks whose values stand in a book of vectors (IQ1 to IQ3), or are
beyond that range.
"""

from __future__ import annotations

from pathlib import Path

from spqfmt.errors import ImporterError
from spqfmt.importers._gguf_architectures import ARCHITECTURES
from spqfmt.importers._gguf_checks import SIGMOID
from spqfmt.importers._gguf_known import KnownModel, NoModelError, as_it_is, table_model
from spqfmt.importers._gguf_library import library_model
from spqfmt.importers._gguf_models import MODELS
from spqfmt.importers._gguf_parts import read_parts
from spqfmt.importers._gguf_reader import MAGIC, GgufHeader
from spqfmt.importers._gguf_t5 import is_umt5
from spqfmt.importers._gguf_tensors import dtype_of
from spqfmt.importers._gguf_tokenizer import UnknownTokenizerError, tokenizer_assets
from spqfmt.importers._layout import execution_key, role_of, segment_of, transposed_weights
from spqfmt.importers._source_file import SourceChangedError
from spqfmt.importers.base import SourceModel, SourceTensor


class GgufImporter:
    """A .gguf file, or one of the parts of a model in several."""

    kind = "gguf"

    def accepts(self, path: Path) -> bool:
        """A file that begins with GGUF, or claims to be one by its name."""
        if not path.is_file():
            return False
        with path.open("rb") as handle:
            return handle.read(len(MAGIC)) == MAGIC or path.suffix == ".gguf"

    def open(self, path: Path) -> SourceModel:
        """Open a GGUF file with its other parts, as `Importer.open` says."""
        files, header = read_parts(path)
        left_out: dict[str, str] = {}
        try:
            model = _known(path, header)
            assets = model.assets
            try:
                assets += tokenizer_assets(path, header.metadata)
            except (UnknownTokenizerError, ImporterError) as error:
                left_out["tokenizer.json"] = f"{_reason(path, error)}; the model takes tokens, no text"
        except (NoModelError, ImporterError) as error:
            # Codes are as good as they were before: metadata that contradict themselves hinder running alone.
            model, assets = as_it_is(header), ()
            left_out["config.json"] = (
                f"{_reason(path, error)}: its tensors have ggml's names, and no model is loaded"
            )
        return SourceModel(
            tensors=_tensors(model),
            assets=assets,
            architecture=model.class_name,
            source_kind=self.kind,
            files=files,
            named_files={file.path.name: file for file in files},
            # The first part may be metadata alone.
            weight_files=frozenset(tensor.file.path.name for tensor in header.tensors),
            own_files=frozenset(file.path.name for file in files),
            left_out=left_out,
            is_complete=model.is_complete,
            no_model=left_out.get("config.json", ""),
        )


def _reason(path: Path, error: Exception) -> str:
    """Why there is none, without the file's name. Raises again what says that the file has changed."""
    if isinstance(error, SourceChangedError):
        raise error
    return str(error).removeprefix(f"{path}: ")


def _known(path: Path, header: GgufHeader) -> KnownModel:
    """The model that the file is of. Raises NoModelError, and ImporterError for metadata that contradict themselves."""
    name = str(header.metadata.get("general.architecture", ""))
    variant = _variant(name, header)
    if variant:
        return library_model(path, header, ARCHITECTURES[variant])
    if name in MODELS:
        return table_model(path, header, MODELS[name])
    if name in ARCHITECTURES:
        return library_model(path, header, ARCHITECTURES[name])
    raise NoModelError(f"GGUF architecture {name!r} is not known")


def _variant(name: str, header: GgufHeader) -> str:
    """What an architecture is here that transformers has several models of; empty for any other."""
    metadata = header.metadata
    has_experts = bool(metadata.get(f"{name}.expert_count"))
    if name == "llama" and has_experts:
        return "mixtral"
    if name == "deepseek2" and metadata.get("deepseek2.expert_gating_func") == SIGMOID:
        return "deepseek3"
    if name == "mistral3" and metadata.get("mistral3.rope.scaling.type") == "yarn":
        return "ministral3"
    if name == "t5" and is_umt5({tensor.name: tensor for tensor in header.tensors}):
        return "umt5"
    return "granitehybrid_dense" if name == "granitehybrid" and not has_experts else ""


def _tensors(model: KnownModel) -> tuple[SourceTensor, ...]:
    """The model's tensors in the order in which they are used."""
    shapes = {placed.name: placed.shape for placed in model.tensors}
    is_float = {placed.name: dtype_of(placed.tensor)[0] in "fb" for placed in model.tensors}
    linear = [name for name in shapes if role_of(name, shapes[name], is_float=is_float[name]) == "linear"]
    transposed = transposed_weights(shapes, linear)
    by_name = {placed.name: placed for placed in model.tensors}
    tensors = []
    for name in sorted({*by_name, *model.tied}, key=execution_key):
        source = model.tied.get(name, name)
        one = by_name[source]
        # A head that is tied may lie in the file nevertheless, its bytes those of the embedding.
        own = one if source == name else model.copies.get(name)
        role = role_of(name, one.shape, is_float=is_float[source])
        tensors.append(
            SourceTensor(
                name=name,
                shape=one.shape,
                dtype=dtype_of(one.tensor),
                segment=segment_of(name),
                role=role,
                transposed=name in transposed or (len(one.shape) > 2 and one.change.transposed),
                tied_to=source if source != name else None,
                load=one.load,
                form=one.form,
                stored=one.stored if one.form else None,
                place=None if own is None else own.place,
                turned=one.turned,
                parts=() if own is None else own.parts,
            )
        )
    return tuple(tensors)


IMPORTER = GgufImporter()
