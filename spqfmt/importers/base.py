"""The records every importer yields, and what an importer is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from spqfmt.importers._source_file import SourceChangedError, SourceFile
from spqfmt.metadata_keys import FACT_PREFIX, NO_MODEL
from spqfmt.schemes.base import Quantized

if TYPE_CHECKING:
    import torch

Role = Literal["linear", "embedding", "head", "other"]


class SourcePlace(NamedTuple):
    """Where a tensor's elements lie in a file of the source: row-major, little-endian, as a dense tensor restores them.

    `file` is a name of `SourceModel.named_files`.
    """

    file: str
    offset: int


class SourcePart(NamedTuple):
    """An array of the source that is made again of a tensor's codes.

    `made` says how, in the terms of a layout of spec/origins; those of one that is no array of its own are of one part.
    """

    place: SourcePlace
    n_bytes: int
    made: Mapping[str, object]
    layout: str = "arrays"
    as_bytes: Mapping[str, object] | None = None
    """How it is made, in the terms of arrays, where `stored` gives the bytes of the source under a named scheme."""
    first: int = 0
    """Where it begins in the bytes that `made` gives: some parts that follow each other are runs of what one gives."""


@dataclass(frozen=True)
class SourceTensor:
    """One tensor of a source model; its values stay in the source until `load` or `stored` is called.

    `dtype` is one that a dense tensor may have (spqfmt.schemes.dense); `load` returns exactly that dtype, as
    spqfmt.kernels.torch_arrays has it, and `shape`, in memory of its own: of codes what they stand for. `role` tells a
    quantization method what it may touch: `linear` is a 2-D projection inside the layers, everything that is not safe
    to quantize is `other`.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    segment: str
    """Unit of residency: "embed", a layer such as "model.layers.0", or "head"."""
    role: Role
    transposed: bool
    """The weight is stored [in, out], as GPT-2's Conv1D does, instead of [out, in]; experts [experts, in, out]."""
    tied_to: str | None
    """Name of the tensor that holds this one's values, or None. `load` then reads that tensor."""
    load: Callable[[], torch.Tensor]
    form: str = ""
    """What codes the source stores it as, such as "Q8_0"; empty where it stores elements of `dtype`."""
    why_no_codes: str = ""
    """Because of what an array of codes is left as it is, where that is known."""
    stored: Callable[[], Quantized] | None = None
    """The codes in the terms of a scheme, which restores the very values of `load`; None where none can hold them."""
    place: SourcePlace | None = None
    """None where the source has other bytes for it, or none of its own."""
    turned: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    """Where these bytes are the elements in another order: dimensions of the elements, and which of them is which
    dimension there (`dims` and `axes` of spec/origins/arrays.md)."""
    view: tuple[int, ...] | None = None
    """The shape in which `stored` has its elements, where its groups do not lie along the tensor's own rows."""
    has_turned_view: bool = False
    """Whether they lie along the columns of that view; `transposed` says nothing of it."""
    parts: tuple[SourcePart, ...] = ()
    """All of the source's arrays that `stored` is taken from, but for single numbers; empty where they cannot be made
    of it again. Without `stored`, where the elements lie in several places."""


@dataclass(frozen=True)
class Asset:
    """A file that travels with the weights: config, tokenizer, licence, code as text. Never pickle, never run."""

    name: str
    data: bytes


@dataclass(frozen=True)
class SourceModel:
    """A checkpoint as tensors in execution order (embeddings, layers ascending, final norm, head) and assets."""

    tensors: tuple[SourceTensor, ...]
    assets: tuple[Asset, ...]
    architecture: str
    """Class name in transformers, such as "LlamaForCausalLM"; empty where the source does not say."""
    source_kind: str
    """The `kind` of the importer that opened it."""
    quantized: str = ""
    """What has quantized it already, such as "gptq"; empty where its tensors are weights."""
    files: tuple[SourceFile, ...] = ()
    """What it was read from, as these files were when it was opened."""
    named_files: Mapping[str, SourceFile] = field(default_factory=dict)
    """All files of the source that can be named, by their names in it, weights, assets and what is left out."""
    weight_files: frozenset[str] = frozenset()
    """Those of them that hold weights, the model's own and others."""
    own_files: frozenset[str] = frozenset()
    """Those of them that the tensors are read from, and the index that says which."""
    needed: frozenset[str] = frozenset()
    """Those of them that are neither and no assets, without which the model does not load all the same."""
    base_model: str = ""
    """Name of the model that an adapter changes."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """What the headers of safetensors files say of the model, such as its licence and base model."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """What lies beside it and is neither weights nor assets, by name, with the reason."""
    is_complete: bool = False
    """Whether it is known to have all tensors of transformers' class of it, and no others."""
    no_model: str = ""
    """Why no model is loaded of it, in words, where it is sound; empty for a model."""
    is_dequantized: bool = False
    """Whether its codes are to be taken for what they stand for, since the user says so."""
    coded: Callable[[], tuple[SourceTensor, ...]] | None = None
    """Gives the tensors with the arrays of a quantizer taken together to weights; None where `tensors` are weights.
    Raises ImporterError for arrays that contradict each other, of which `tensors` are still the bytes."""

    @property
    def asset_data(self) -> dict[str, bytes]:
        """The bytes of the assets by name."""
        return {asset.name: asset.data for asset in self.assets}

    @property
    def stored_facts(self) -> dict[str, str]:
        """The facts, and why no model is loaded where that is known, as a file's metadata."""
        facts = {FACT_PREFIX + key: value for key, value in self.facts.items()}
        return facts | {NO_MODEL: self.no_model} if self.no_model else facts

    def as_weights(self) -> SourceModel:
        """The model with what arrays of a quantizer stand for in place of these. Raises ImporterError."""
        if self.coded is None:
            return self
        return replace(self, tensors=self.coded(), quantized="", coded=None)

    def check_unchanged(self) -> None:
        """Raise ImporterError when a file is not what it was: what was read may be of two models."""
        for file in self.files:
            file.check_unchanged()

    @contextmanager
    def blamed(self) -> Iterator[None]:
        """What is raised in the context may come of a source that changed meanwhile: then that is raised instead."""
        try:
            yield
        except SourceChangedError:
            raise
        except Exception:
            self.check_unchanged()
            raise

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Check at the end of the context too; for what reads all that it gives away inside it."""
        with self.blamed():
            yield
        self.check_unchanged()


class Importer(Protocol):
    """What a module of this folder offers under the name `IMPORTER`."""

    @property
    def kind(self) -> str:
        """Short name, unique among the importers."""

    def accepts(self, path: Path) -> bool:
        """Whether `path`, which exists, looks like this importer's kind. Reads at most a few bytes."""

    def open(self, path: Path) -> SourceModel:
        """Read names, shapes and assets; no weights. Raises ImporterError in one line, OSError as it is."""
