"""What a config says of GPTQ: for all layers, and by `dynamic` for some of them.

Which layers an entry of `dynamic` is for is a regular expression, and the first that matches counts. One that may take
for ever is not looked at: then what the arrays of a layer are must be said for some layer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from spqfmt.errors import ImporterError
from spqfmt.importers.quantizers.packed_layers import StaysError

METHODS = ("gptq", "auto-round")
_VERSIONS = {"gptq": 1, "gptq_v2": 2}
_AUTO_ROUND = {"auto_round:auto_gptq": 1}
_OTHERS = frozenset({"gptq_p", "marlin", "bitblas", "qqq"})
"""Formats that lay codes out in another way: these stay arrays."""


@dataclass(frozen=True)
class GptqSettings:
    """What is said of layers."""

    version: int | None
    """How zero points are stored: by 1 less one, by 2 as they are; None where nothing is said at all."""
    grids: tuple[tuple[int | None, int | None], ...]
    """The bits and group sizes of layers, those of most of them first; None is what is not said, -1 one group."""
    is_symmetric: bool
    """Whether all zero points are said to be the middle of the codes."""
    is_ordered: bool
    """Whether all layers have their columns in an order of their own (act-order)."""
    carries: bool
    """Whether the one that version 1 takes off was taken off the words, so that it is borrowed of the next number."""


def settings_of(said: Mapping[str, Any], name: str) -> GptqSettings:
    """What the config says of the layer whose codes have this name.

    Raises StaysError for a format that is not GPTQ's own, ImporterError for what nobody knows.
    """
    of_auto_round = said.get("quant_method") == "auto-round"
    versions = _AUTO_ROUND if of_auto_round else _VERSIONS
    plain = said.get("checkpoint_format") or said.get("format") or "gptq"
    form = str(said.get("packing_format") if of_auto_round else plain)
    version = versions.get(form)
    if version is None:
        if form in _OTHERS or of_auto_round:
            raise StaysError(f"the format {form!r}")
        raise ImporterError(
            f"tensor {name!r}: config.json says checkpoint_format {form!r}, which nobody knows"
        )
    meta = said.get("meta")
    makers = meta.get("quantizer") if isinstance(meta, dict) else None
    own = _own_override(said, name)
    layers = (said, *({**said, **some} for some in _overrides(said))) if own is None else ({**said, **own},)
    return GptqSettings(
        version if said else None,
        tuple(_grid_of(one, name) for one in layers),
        is_symmetric=all(one.get("sym") is True for one in layers),
        is_ordered=all(one.get("desc_act") for one in layers),
        carries="gptqmodel" in str(makers).lower(),
    )


def _overrides(said: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What `dynamic` says of layers that are quantized; "-:" begins the pattern of others."""
    dynamic = said.get("dynamic") or {}
    if not isinstance(dynamic, dict) or not all(isinstance(one, dict) for one in dynamic.values()):
        raise ImporterError("config.json: its dynamic of quantization is no object of objects")
    return [one for pattern, one in dynamic.items() if not pattern.startswith("-:")]


_PLAIN_PATTERN = re.compile(r"(?:[\w\-|^$]|\\[.dw]|\.|\[[\w\-]*\]|\((?:\?:)?|\)(?![*+?{])|[*+](?![*+?{]))*")
"""Expressions of letters, classes and groups without repetition."""
_MOST_REPEATED, _LONGEST_NAME = 3, 200
"""With so many repetitions an expression tries each at most at every place of a name."""


def _own_override(said: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    """What `dynamic` says of the layer of these codes, nothing without an entry; None where that cannot be told.

    Raises ImporterError where it says that the layer is not quantized.
    """
    _overrides(said)
    module = name.rpartition(".")[0]
    for pattern, one in (said.get("dynamic") or {}).items():
        matches = _matches(pattern.removeprefix("-:").removeprefix("+:"), module)
        if matches is None:
            return None
        if matches and pattern.startswith("-:"):
            raise ImporterError(
                f"tensor {name!r} holds codes, but config.json says under dynamic, {pattern[:80]!r}, that there are "
                "none; download both again"
            )
        if matches:
            return dict(one)
    return {}


def _matches(pattern: str, module: str) -> bool | None:
    """Whether an expression matches a name; None for one that is too complex to try."""
    is_plain = _PLAIN_PATTERN.fullmatch(pattern) and len(module) <= _LONGEST_NAME
    if not is_plain or sum(map(pattern.count, "*+")) > _MOST_REPEATED:
        return None
    try:
        return re.match(pattern, module) is not None
    except re.error:
        return None


def _grid_of(said: Mapping[str, Any], name: str) -> tuple[int | None, int | None]:
    if said.get("quant_method") == "gptq" and said.get("bits") is None:
        raise ImporterError(f"tensor {name!r}: what config.json says of GPTQ has no bits; download it again")
    return _number("bits", said.get("bits"), name, least=1), _number(
        "group_size", said.get("group_size"), name, -1
    )


def _number(key: str, found: object, name: str, least: int) -> int | None:
    if found is None:
        return None
    if type(found) is not int or found < least or found == 0:
        raise ImporterError(f"tensor {name!r}: config.json says {key} {found!r}, which is none")
    return found
