"""What a model calls its cache of earlier tokens: transformers has `cache` since 5.24, `past_key_values` before."""

import inspect
from dataclasses import fields
from typing import Any

from transformers.modeling_outputs import CausalLMOutputWithPast

_NEW, _OLD = "cache", "past_key_values"
_USUAL = _NEW if _NEW in {field.name for field in fields(CausalLMOutputWithPast)} else _OLD


def cache_name(module: Any) -> str:
    """The argument of a module's forward that is its cache; transformers' own name where it has neither.

    A class whose forward hands on what it is given says nothing: the one that it stands in front of does.
    """
    for one in type(module).__mro__:
        forward = vars(one).get("forward")
        named = inspect.signature(forward).parameters if inspect.isfunction(forward) else ()
        for name in (_NEW, _OLD):
            if name in named:
                return name
    return _USUAL


def cache_of(outputs: Any) -> Any:
    """The cache among what a model gave; None where it keeps none."""
    found = getattr(outputs, _NEW, None)
    return outputs.past_key_values if found is None else found
