"""What a config says of GPTQ: for all layers, and by `dynamic` for some of them."""

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
    """What is said of a layer; None is what is not."""

    version: int
    """How zero points are stored: by 1 less one, by 2 as they are."""
    bits: int | None
    group_size: int | None
    """-1 for one group."""
    carries: bool
    """Whether the one that version 1 takes off was taken off the words, so that it is borrowed of the next number."""


def settings_of(said: Mapping[str, Any], layer: str, name: str) -> GptqSettings:
    """What the config says of a layer whose codes have this name.

    Raises StaysError for a format that is not GPTQ's own, ImporterError for what nobody knows.
    """
    form = said.get("packing_format") or said.get("checkpoint_format") or said.get("format") or "gptq"
    versions = _AUTO_ROUND if said.get("quant_method") == "auto-round" else _VERSIONS
    version = versions.get(str(form))
    if version is None:
        if form in _OTHERS or versions is _AUTO_ROUND:
            raise StaysError(f"the format {form!r}")
        raise ImporterError(
            f"tensor {name!r}: config.json says checkpoint_format {form!r}, which nobody knows"
        )
    overrides = _of_layer(said.get("dynamic"), layer, name)
    meta = said.get("meta")
    makers = meta.get("quantizer") if isinstance(meta, dict) else None
    return GptqSettings(
        version,
        bits=_number("bits", overrides.get("bits", said.get("bits")), name, least=1),
        group_size=_number("group_size", overrides.get("group_size", said.get("group_size")), name, least=-1),
        carries="gptqmodel" in str(makers).lower(),
    )


def _of_layer(dynamic: object, layer: str, name: str) -> Mapping[str, Any]:
    """What overrides the rest for a layer: that of the first pattern that its name begins with, as GPTQModel does."""
    if dynamic is None:
        return {}
    if not isinstance(dynamic, dict):
        raise ImporterError("config.json: its dynamic of quantization is no object")
    for pattern, overrides in dynamic.items():
        try:
            is_it = re.match(pattern.removeprefix("+:").removeprefix("-:"), layer)
        except re.error as error:
            raise ImporterError(
                f"config.json: {pattern!r} of its dynamic quantization is no pattern ({error})"
            ) from None
        if is_it and pattern.startswith("-:"):
            raise ImporterError(
                f"tensor {name!r} is stored as GPTQ, but config.json says by {pattern!r} that it is not; "
                "download both again"
            )
        if is_it:
            return overrides if isinstance(overrides, dict) else {}
    return {}


def _number(key: str, found: object, name: str, least: int) -> int | None:
    if found is None:
        return None
    if type(found) is not int or found < least or found == 0:
        raise ImporterError(f"tensor {name!r}: config.json says {key} {found!r}, which is none")
    return found
