"""Models of GGUF files by what transformers and the package gguf know of an architecture.

transformers gives the config's keys, the model with its tensors, and what a checkpoint calls these; gguf gives ggml's
name of each. What neither says is an entry of `_gguf_architectures.py`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from spqfmt.errors import ImporterError, SpqError, foreign_errors
from spqfmt.importers._gguf_architectures import Architecture, Experts
from spqfmt.importers._gguf_changes import AS_STORED, Change
from spqfmt.importers._gguf_checks import EMBEDDING, HEAD, check_counts, check_meaning
from spqfmt.importers._gguf_config import config_of
from spqfmt.importers._gguf_known import (
    KnownModel,
    NoModelError,
    checked,
    config_assets,
    facts_of,
    is_tied,
    whole_config,
)
from spqfmt.importers._gguf_models import Config, Facts
from spqfmt.importers._gguf_reader import GgufHeader, GgufTensor
from spqfmt.importers._gguf_tensors import StoredTensor, part_of, rows_of
from spqfmt.importers._quiet import quiet_transformers

_EXPERT = re.compile(r"(?P<experts>.*\.experts)\.(?P<number>\d+)\.(?P<rest>.*)")
_GATE_UP = re.compile(r"(?P<experts>.*\.experts)\.gate_up_proj(?P<bias>_bias)?")


class _Built(NamedTuple):
    """transformers' model: its class, what a checkpoint calls its tensors, with their shapes, and its config."""

    class_name: str
    shapes: Mapping[str, tuple[int, ...]]
    head: str
    """Name of the matrix that gives the logits."""
    config: Config


def library_model(path: Path, header: GgufHeader, architecture: Architecture) -> KnownModel:
    """The model of an architecture. Raises NoModelError, and ImporterError for contradicting metadata."""
    if find_spec("gguf") is None:
        raise NoModelError("names of its tensors need the gguf package (pip install 'spqfmt[gguf]')")
    facts = facts_of(path, header)
    try:
        check_counts(facts)
        check_meaning(facts)
        config = config_of(facts, header, architecture)
    except ValueError as error:
        raise ImporterError(f"{path}: {error}; convert the model again") from None
    tied = is_tied(header)
    built = _built(path, header, config, tied=tied)
    by_name = {tensor.name: tensor for tensor in header.tensors}
    names = _Names(facts, architecture)
    stored = _stored(path, names, by_name, architecture=architecture, config=built.config)
    shapes = _in_file(built, architecture, lambda name, shape: stored(name, shape) is not None)
    found = {name: stored(name, shape) for name, shape in shapes.items()}
    lacking = [name for name, one in found.items() if one is None and not (tied and name == built.head)]
    if lacking:
        raise NoModelError(f"it has no tensor for {lacking[0]} of {built.class_name}")
    here = {name: one for name, one in found.items() if one is not None}
    _check_parts(path, by_name, here.values())
    taken = {tensor.name.partition(" ")[0] for one in here.values() for tensor in one.tensors}
    left = [tensor for tensor in header.tensors if tensor.name not in taken | architecture.factors]
    twice = {one for name in built.shapes.keys() - shapes.keys() for one in names.of(name)[0]}
    aside = [
        (
            _of_layer(tensor.name) if tensor.name in twice else architecture.aside(tensor.name, built.config),
            tensor,
        )
        for tensor in left
    ]
    foreign = [tensor.name for name, tensor in aside if not name]
    if foreign and not (tied and foreign == [HEAD]):
        raise NoModelError(f"tensor {foreign[0]} is not part of {built.class_name} as known here")
    embedding = next((name for name, one in here.items() if one.tensors[0].name == EMBEDDING), None)
    if embedding is None:
        raise NoModelError(f"{built.class_name} has no embedding as known here")
    is_tied_head = tied and built.head in built.shapes
    copy = here.pop(built.head, None) if is_tied_head else None
    return KnownModel(
        class_name=built.class_name,
        tensors=(
            *here.values(),
            *(StoredTensor(name, tensor.shape, (tensor,), AS_STORED) for name, tensor in aside if name),
        ),
        assets=config_assets(header, built.config),
        tied={built.head: embedding} if is_tied_head else {},
        copies={} if copy is None else {built.head: copy},
        is_complete=True,
    )


def _built(path: Path, header: GgufHeader, config: Config, *, tied: bool) -> _Built:
    """The model of a config. Raises ImporterError where transformers makes none of it."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForSeq2SeqLM
    from transformers.core_model_loading import revert_weight_conversion

    def explained(reason: str) -> SpqError:
        return ImporterError(
            f"{path}: transformers makes no model of its metadata: {reason}; convert the model again"
        )

    whole = whole_config(header, config, "", tied=tied)
    # Of the list itself transformers changes the last.
    layers = tuple(config["layer_types"]) if "layer_types" in config else None
    with foreign_errors(explained), quiet_transformers():
        made = CONFIG_MAPPING[config["model_type"]](
            **{key: value for key, value in whole.items() if key != "architectures"}
        )
        if layers is not None and tuple(made.layer_types) != layers:
            # Gemma 4's last layer is made one of full attention, with a warning.
            raise NoModelError(f"transformers has no {config['model_type']} of layers in this order")
        with torch.device("meta"):
            kind = AutoModelForSeq2SeqLM if made.is_encoder_decoder else AutoModelForCausalLM
            model = kind.from_config(made)
        state = revert_weight_conversion(model, model.state_dict())
    head = model.get_output_embeddings()
    head_name = next((f"{name}.weight" for name, module in model.named_modules() if module is head), "")
    name = type(model).__name__
    # An encoder and a decoder have the embedding of both.
    copies = model.all_tied_weights_keys.keys() - {head_name}
    shapes = {key: tuple(value.shape) for key, value in state.items() if key not in copies}
    return _Built(name, shapes, head_name, whole | {"architectures": [name]})


def _check_parts(path: Path, by_name: Mapping[str, GgufTensor], found: Iterable[StoredTensor]) -> None:
    """Raise ImporterError where rows of a tensor that several of the model's are made of are none of these."""
    taken: Counter[str] = Counter()
    for one in found:
        for tensor in one.tensors:
            name, is_part, _ = tensor.name.partition(" ")
            taken[name] += tensor.n_bytes if is_part else by_name[name].n_bytes
    for name, n_bytes in taken.items():
        if n_bytes < by_name[name].n_bytes:
            raise _other_rows(path, by_name[name])


def _other_rows(path: Path, tensor: GgufTensor) -> ImporterError:
    return ImporterError(
        f"{path}: tensor {tensor.name} has {tensor.shape[0]} rows, which are not those of its metadata; "
        "convert the model again"
    )


def _in_file(
    built: _Built, architecture: Architecture, is_there: Callable[[str, tuple[int, ...]], bool]
) -> dict[str, tuple[int, ...]]:
    """The model's tensors, those that the file has as stacks of heads as these, also beside the matrix itself."""
    found: dict[str, tuple[int, ...]] = {}
    for name, shape in built.shapes.items():
        stacks = architecture.stacks(name, shape, built.config)
        as_stacks = stacks and (all(is_there(*one) for one in stacks.items()) or not is_there(name, shape))
        found |= stacks if as_stacks else {name: shape}
    return found


def _of_layer(name: str) -> str:
    """Name a tensor that has no place in the model as one of its layer."""
    return re.sub(r"^blk\.", "model.layers.", name)


class _Names:
    """ggml's names of a model's tensors."""

    def __init__(self, facts: Facts, architecture: Architecture) -> None:
        import gguf

        number = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == facts.architecture)
        n_blocks = facts.count("block_count")
        n_blocks = max(n_blocks, facts.count("decoder_block_count", n_blocks))
        self._table = gguf.get_tensor_name_map(number, n_blocks)
        self._architecture = architecture

    def of(self, name: str) -> tuple[list[str], int | None]:
        """The names in the file that a tensor may have, and the expert that it is there."""
        stem, suffix = _split(name)
        expert = _EXPERT.fullmatch(stem)
        if expert is not None:
            stem, number = f"{expert['experts']}.{expert['rest']}", int(expert["number"])
        else:
            number = None
        found = self._one(stem)
        if found is None:
            return [], number
        return [found + suffix] if suffix else [f"{found}.weight", found, f"{found}.bias"], number

    def joined(self, name: str) -> list[str]:
        """The names of the tensors that the model's one is, where it is several."""
        stem, suffix = _split(name)
        template, layer = _template(stem)
        own = self._architecture.joined.get(template)
        if own is not None:
            return [one.format(layer) + (suffix or ".weight") for one in own]
        gate_up = _GATE_UP.fullmatch(stem)
        if gate_up is None:
            return []
        found = [self._one(f"{gate_up['experts']}.{half}_proj") for half in ("gate", "up")]
        return [f"{one}{'.bias' if gate_up['bias'] else '.weight'}" for one in found]

    def _one(self, stem: str) -> str | None:
        template, layer = _template(stem)
        own = self._architecture.names.get(template)
        if own is not None:
            return own.format(layer)
        # Some were converted from the model without its head.
        found: str | None = self._table.get_name(stem) or self._table.get_name(stem.partition(".")[2])
        return found


def _split(name: str) -> tuple[str, str]:
    stem, dot, last = name.rpartition(".")
    if last in {"weight", "bias"}:
        return stem, dot + last
    # As gpt-oss has those of its experts.
    return (name.removesuffix("_bias"), ".bias") if name.endswith("down_proj_bias") else (name, "")


def _template(stem: str) -> tuple[str, str]:
    """A name with a place for the number of the layer, and that number."""
    match = re.search(r"\.(\d+)\.", stem)
    return (stem, "") if match is None else (f"{stem[: match.start()]}.{{}}.{stem[match.end() :]}", match[1])


def _stored(
    path: Path,
    names: _Names,
    by_name: Mapping[str, GgufTensor],
    *,
    architecture: Architecture,
    config: Config,
) -> Callable[[str, tuple[int, ...]], StoredTensor | None]:
    """Gives the tensors of a model by name and shape; None where the file has not got one."""

    def one(name: str, shape: tuple[int, ...]) -> StoredTensor | None:
        change = architecture.change(name, shape, config)
        joined = names.joined(name)
        # Some have gate and up of their experts in one tensor, as most models have them.
        is_whole = architecture.experts == Experts() and not any(part in by_name for part in joined)
        if joined and not is_whole:
            if not all(part in by_name for part in joined):
                return None
            sources = tuple(by_name[part] for part in joined)
            if len({(tensor.ggml_type, tensor.shape) for tensor in sources}) > 1:
                raise NoModelError(f"the tensors {' and '.join(joined)} are of different types or shapes")
            is_bias = joined[0].endswith(".bias")
            change = _gate_up(shape, architecture.experts, is_bias=is_bias)
        else:
            may_be, number = names.of(name)
            found = next((by_name[called] for called in may_be if called in by_name), None)
            if found is None or (number is not None and number >= found.shape[0]):
                return None
            runs = architecture.runs(name, shape, config)
            # One run alone is a part, beside which there are others (_check_parts).
            n_rows = sum(runs[0]) if len(runs) == 1 else sum(n for _, n in runs)
            if n_rows > found.shape[0] or (len(runs) > 1 and n_rows < found.shape[0]):
                raise _other_rows(path, found)
            sources = tuple(rows_of(found, first, n) for first, n in runs)
            sources = sources or (found if number is None else part_of(found, number),)
            if architecture.experts.transposed and name.endswith(".experts.down_proj"):
                change = Change(transposed=True)
        return checked(path, StoredTensor(name, shape, sources, change))

    return one


def _gate_up(shape: tuple[int, ...], experts: Experts, *, is_bias: bool) -> Change:
    """Gate and up of all experts, of the first, the second and so on, which the file has in two tensors.

    Those of one net are as the file has them: all rows of the gate first.
    """
    if len(shape) < (2 if is_bias else 3):
        return AS_STORED
    n, both = shape[0], shape[-1] if is_bias or experts.transposed else shape[1]
    rows = ((n, both // 2, 2), (2, 0, 1)) if experts.pairs else ((n, 2, both // 2), (1, 0, 2))
    return Change(rows=rows, transposed=experts.transposed and not is_bias)
