"""The tensors of an .spq file or of a source model, behind one record: nothing is read until asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch

from spqfmt.container.model import OpenModel, is_packed
from spqfmt.errors import CorruptError, ImporterError, LimitError, OptionError, SpqError, UnsupportedError
from spqfmt.importers import SourceTensor, find_importer
from spqfmt.importers._folders import ADAPTER_KIND, PARTS_KINDS
from spqfmt.importers._quantized import are_decoded, raw_codes
from spqfmt.metadata_keys import NO_MODEL
from spqfmt.models.harmless import SETTINGS
from spqfmt.models.stacked_heads import find_wholes, has_stacks, put_together, whole_dtype, whole_shape
from spqfmt.models.treatments import Treatment
from spqfmt.reading.file import SpqFile
from spqfmt.reading.restore import numbers_of
from spqfmt.reading.rows import Room, heap
from spqfmt.schemes.registry import scheme_of
from spqfmt.wire import DTYPES

FLOATS = {"f64": torch.float64, "f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}

_ASSET_BYTES = 128 << 20
"""The largest tokenizers have about a third of that."""
_SETTINGS_BYTES = 4 << 20
_WHY_CHARACTERS = 300
"""A reason that the file gives becomes part of one line."""


@dataclass(frozen=True)
class LazyTensor:
    """One tensor, by the names of `SourceTensor`.

    `read(exact, room)` returns it in memory of its own, on the CPU, in its dtype. `exact` asks a quantized tensor for
    float32 weights that are not rounded to that dtype; others ignore it. Floats of less than 8 bits come as float32.
    That memory may be what `room` gives.
    """

    shape: tuple[int, ...]
    dtype: str
    tied_to: str | None
    read: Callable[[bool, Room], torch.Tensor]
    treatment: Treatment | None = None
    """What is done with the input of the tensor's layer."""
    read_block: Callable[[Sequence[range], bool], torch.Tensor] | None = None
    """Reads some elements of each dimension, `exact` as `read` does; None: they are taken of the whole."""


@dataclass(frozen=True)
class StoredModel:
    """What a model is loaded from. `opened` is an .spq file; None for a foreign source."""

    tensors: Mapping[str, LazyTensor]
    assets: Mapping[str, bytes]
    opened: OpenModel | None
    is_decoded: bool = False
    """Whether some of them are decoded from codes of another quantizer, and all are weights."""
    raw_codes: str = ""
    """What has quantized those that are its arrays, such as "gptq"; empty where all are weights."""
    no_config: str = ""
    """Why there is no config, where that is known."""
    is_coded: bool = False
    """Whether most weights are codes, whose dtype only says how they are rounded where they are decoded."""

    def bad(self, message: str) -> SpqError:
        """The error of a model that breaks its format's or its class's rules."""
        return CorruptError(message) if self.opened is not None else ImporterError(message)


@contextmanager
def open_stored(path: Path) -> Iterator[StoredModel]:
    """Open an .spq file, a Hugging Face folder or a GGUF file; it stays open while the context lasts.

    Raises FormatError, also for one shard alone, ImporterError and OSError.
    """
    importer = None if is_packed(path) else find_importer(path)
    if importer is not None:
        source = importer.open(path).as_weights()
        tensors = {t.name: LazyTensor(t.shape, t.dtype, t.tied_to, _loader(path, t)) for t in source.tensors}
        if has_stacks(source.source_kind, source.no_model):
            tensors = _whole(tensors)
        has_codes = any(tensor.form for tensor in source.tensors)
        with source.unchanged():
            is_decoded = are_decoded(_facts(tensors), has_codes=has_codes)
            raw = raw_codes(_facts(tensors), has_codes=has_codes)
            no_config = source.left_out.get("config.json", "")
            no_config = no_config or no_model_of(source.source_kind, source.base_model, tensors)
            yield StoredModel(
                tensors,
                source.asset_data,
                None,
                is_decoded=is_decoded,
                raw_codes=raw,
                no_config=no_config,
                is_coded=is_most((prod(t.shape), bool(t.form)) for t in source.tensors if not t.tied_to),
            )
        return
    with SpqFile(path) as file:
        file.model.refuse_lone_shard()
        tied = file.tied
        stored = {}
        for name, handle in file.items():
            source_name = tied.get(name, name)
            stored[name] = LazyTensor(
                shape=handle.shape,
                dtype=handle.dtype,
                tied_to=tied.get(name),
                read=_reader(file, source_name),
                treatment=handle.input_treatment(),
                read_block=_block_reader(file, source_name),
            )
        # Weights by their scheme: records of a hundred thousand tensors are not to be held all at once.
        sizes = Counter[str]()
        for record in file.model.tensors.values():
            if record.tied_to is None:
                sizes[record.scheme] += record.n_weights
        coded = {name for name in sizes if scheme_of(name).is_quantized}
        has_codes = bool(coded)
        is_decoded = are_decoded(_facts(stored), has_codes=has_codes)
        raw = raw_codes(_facts(stored), has_codes=has_codes)
        made = file.metadata
        no_config = no_model_of(made.get("source", ""), made.get("base_model", ""), stored)
        no_config = no_config or " ".join(made.get(NO_MODEL, "").split())[:_WHY_CHARACTERS]
        assets = _Assets(file.model)
        yield StoredModel(
            _whole(stored) if has_stacks(made.get("source"), made.get(NO_MODEL)) else stored,
            assets,
            file.model,
            is_decoded=is_decoded,
            raw_codes=raw,
            no_config=no_config,
            is_coded=is_most((n_weights, scheme in coded) for scheme, n_weights in sizes.items()),
        )


def no_model_of(kind: str, base: str, tensors: Iterable[str]) -> str:
    """Why what was packed of a source of this kind is not one model, and what to do; empty for any other kind.

    `base` is the name of the model that an adapter changes.
    """
    if kind == ADAPTER_KIND:
        return f"an adapter of {base or 'another model'}, which is no model itself; unpack it for a library of adapters"
    if kind in PARTS_KINDS:
        part = next((name.partition("/")[0] for name in tensors if "/" in name), "")
        return f"several models, such as {part}; open(...).part({part!r}) in Python has the tensors of one"
    return ""


def _whole(tensors: dict[str, LazyTensor]) -> dict[str, LazyTensor]:
    """The tensors, stacks of heads that belong together as the matrix that they are."""
    found = find_wholes((name, tensor.shape) for name, tensor in tensors.items())
    if not found:
        return tensors
    taken = {part for parts in found.values() for part in parts}
    made = {name: _of_stacks({part: tensors[part] for part in parts}) for name, parts in found.items()}
    return {name: tensor for name, tensor in tensors.items() if name not in taken} | made


def _of_stacks(stacks: Mapping[str, LazyTensor]) -> LazyTensor:
    return LazyTensor(
        shape=whole_shape({name: tensor.shape for name, tensor in stacks.items()}),
        dtype=whole_dtype([tensor.dtype for tensor in stacks.values()]),
        tied_to=None,
        read=lambda exact, room: put_together(
            {name: tensor.read(exact, heap) for name, tensor in stacks.items()}
        ),
    )


def _facts(tensors: Mapping[str, LazyTensor]) -> Iterator[tuple[str, tuple[int, ...], str]]:
    return ((name, tensor.shape, tensor.dtype) for name, tensor in tensors.items())


class _Assets(Mapping[str, bytes]):
    """The small files of a model, each read when it is asked for; LimitError for one that is not small."""

    def __init__(self, model: OpenModel) -> None:
        self._model = model
        self._sizes = {a.name: a.stream.n for reader in model.readers for a in reader.index.assets}

    def __getitem__(self, name: str) -> bytes:
        is_settings = name.lower() in {*SETTINGS, "generation_config.json"}
        most = _SETTINGS_BYTES if is_settings else _ASSET_BYTES
        if self._sizes[name] > most:
            raise LimitError(
                f"{self._model.path}: asset {name!r} has {self._sizes[name]} bytes; a model is loaded with {most} at "
                "most"
            )
        return self._model.read_asset(name)

    def __contains__(self, name: object) -> bool:
        return name in self._model.asset_names

    def __iter__(self) -> Iterator[str]:
        return iter(self._model.asset_names)

    def __len__(self) -> int:
        return len(self._model.asset_names)


def _loader(path: Path, tensor: SourceTensor) -> Callable[[bool, Room], torch.Tensor]:
    if tensor.dtype == "c64":
        return _refused(path, tensor.name)
    if DTYPES[tensor.dtype].bits < 8:
        return lambda exact, room: numbers_of(tensor.load(), tensor.dtype)
    return lambda exact, room: tensor.load()


def _reader(file: SpqFile, name: str) -> Callable[[bool, Room], torch.Tensor]:
    dtype = file[name].dtype
    if dtype == "c64":
        return _refused(file.path, name)
    # The handle is made when it is asked for: it holds the tensor's record.
    if DTYPES[dtype].bits < 8:
        return lambda exact, room: file[name].read(dtype=torch.float32)
    is_float = dtype in FLOATS
    return lambda exact, room: file[name].read(dtype=torch.float32 if exact and is_float else None, room=room)


def _block_reader(file: SpqFile, name: str) -> Callable[[Sequence[range], bool], torch.Tensor] | None:
    handle = file[name]
    if not handle.shape or handle.dtype == "c64" or DTYPES[handle.dtype].bits < 8:
        return None
    return lambda block, exact: file[name].read_block(block, exact=exact)


def _refused(path: Path, name: str) -> Callable[[bool, Room], torch.Tensor]:
    """What refuses complex numbers, of which transformers would take the real part."""

    def read(_: bool, __: Room) -> torch.Tensor:
        raise UnsupportedError(
            f"{path}: tensor {name!r} is of complex numbers, which no model of transformers computes with",
            "complex",
        )

    return read


def is_most(weights: Iterable[tuple[int, bool]]) -> bool:
    """Whether it holds for more than half, of numbers of weights for which it holds or does not."""
    for_and_against = [0, 0]
    for n, holds in weights:
        for_and_against[not holds] += n
    return for_and_against[0] > for_and_against[1]


def main_dtype(tensors: Iterable[LazyTensor]) -> torch.dtype:
    """The float dtype that most weights have; float32 when there is none. One-byte floats are for storing only."""
    counts: dict[torch.dtype, int] = {}
    for tensor in tensors:
        dtype = FLOATS.get(tensor.dtype)
        if dtype is not None and tensor.tied_to is None:
            counts[dtype] = counts.get(dtype, 0) + prod(tensor.shape)
    return max(counts, key=lambda dtype: counts[dtype], default=torch.float32)


def parse_dtype(dtype: torch.dtype | str) -> torch.dtype:
    """A torch dtype from itself or from its name, torch's ("bfloat16") or ours ("bf16"). OptionError for others."""
    if isinstance(dtype, torch.dtype):
        return dtype
    names = FLOATS | {str(value).removeprefix("torch."): value for value in FLOATS.values()}
    if dtype not in names:
        raise OptionError(f"dtype {dtype!r}: choose one of float32, float16, bfloat16, float64")
    return names[dtype]
