"""What a config claims, against the tensors that there are: no layers, experts and rows without weights for them.

A class makes a module for each layer, and room for each row, as soon as it is built.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules import module as hooks

from spqfmt.errors import CorruptError

_LAYERS = re.compile(r"(.*_)?(layers?|depths?|blocks?|stages|repeats|attention_types)")
_MORE_LAYERS = 256  # some classes run a few layers many times
_EXPERTS = re.compile(r"(.*_)?experts?")
_MORE_EXPERTS = 1 << 16  # many in one tensor, or none where a class is told not to have them
_NUMBERS = re.compile(r"(.*_)?(n|num)_.+")
_MOST = {"num_labels": 1 << 20}  # transformers makes a name for each
_MOST_OTHERS = 1 << 24
_SIZES = re.compile(
    r"(.*_)?(n|num)_([a-z_]+_)?(layers?|heads?|experts)"
    r"|(encoder_|decoder_)?(layers|depth)|(.*_)?(hidden_size|intermediate_size|head_dim|vocab_size|d_model)"
)

_PARAMETERS, _MORE_PARAMETERS = 8, 1 << 14
_MODULES, _MORE_MODULES = 16, 1 << 15
_VALUES, _MORE_VALUES = 8, 1 << 24
_BUFFER_BYTES, _MORE_BUFFER_BYTES = 32, 1 << 27
"""What a class may make for each tensor, and each of their values, and besides: it is built twice, ties weights
afterwards, and cuts tensors that are stored as one."""


def false_claim(folder: Path, n_tensors: int) -> str:
    """What the folder's config.json says that so many tensors cannot fill, or that no class can take, in a few words.

    Empty where nothing is.
    """
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return ""  # transformers says what is wrong with it
    quantizer = config.get("quantization_config") if isinstance(config, dict) else None
    if quantizer and not isinstance(quantizer, dict):
        return "quantization_config is no object"
    for key, number in _numbers(config):
        if number < 0 and _SIZES.fullmatch(key):
            return f"{key} is {number}"
        if number > _most(key, n_tensors):
            return f"{key} is {number}, with {n_tensors} tensors"
    return ""


def _most(key: str, n_tensors: int) -> float:
    if _LAYERS.fullmatch(key):
        return n_tensors + _MORE_LAYERS
    if _EXPERTS.fullmatch(key):
        return n_tensors + _MORE_EXPERTS
    return _MOST.get(key, _MOST_OTHERS) if _NUMBERS.fullmatch(key) else float("inf")


def _numbers(value: Any, key: str = "") -> Iterator[tuple[str, float]]:
    """Numbers of a config by the key that they stand under, lists among them."""
    if isinstance(value, Mapping):
        for name, part in value.items():
            yield from _numbers(part, name)
    elif isinstance(value, list):
        for part in value:
            yield from _numbers(part, key)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield key, value


@contextmanager
def earned(where: str | Path, shapes: Iterable[Sequence[int]]) -> Iterator[None]:
    """While a class is built without memory for its weights: it makes no more than tensors of these shapes may fill.

    Raises CorruptError, which names `where`.
    """
    sizes = [prod(shape) for shape in shapes]
    left = {
        "weights": _PARAMETERS * len(sizes) + _MORE_PARAMETERS,
        "modules": _MODULES * len(sizes) + _MORE_MODULES,
        "values": _VALUES * sum(sizes) + _MORE_VALUES,
        "bytes of buffers": _BUFFER_BYTES * sum(sizes) + _MORE_BUFFER_BYTES,
    }
    builder = threading.get_ident()

    def take(what: str, n: int) -> None:
        left[what] -= n
        if left[what] < 0:
            raise CorruptError(
                f"{where}: its config asks for a model of many more {what} than its {len(sizes)} tensors can fill"
            )

    def parameter(_: Any, __: str, value: torch.Tensor | None) -> None:
        if value is not None and value.is_meta and threading.get_ident() == builder:
            take("weights", 1)
            take("values", value.numel())

    def buffer(_: Any, __: str, value: torch.Tensor | None) -> None:
        if value is not None and value.is_meta and threading.get_ident() == builder:
            take("bytes of buffers", value.nbytes)

    def module(_: Any, __: str, ___: Any) -> None:
        if threading.get_ident() == builder:
            take("modules", 1)

    handles = [
        hooks.register_module_parameter_registration_hook(parameter),
        hooks.register_module_buffer_registration_hook(buffer),
        hooks.register_module_module_registration_hook(module),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
