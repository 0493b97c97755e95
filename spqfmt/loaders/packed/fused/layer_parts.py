"""What a decoder's layer is made of, and whether it still is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from spqfmt.loaders.packed.fused.attention_step import KIND
from spqfmt.loaders.packed.modules import PackedLinear


class LayerParts(NamedTuple):
    """A layer's children, all of them by name, and what they are to it. Norms are None where there are none."""

    children: dict[str, nn.Module]
    cache: str
    """The argument of the layer that is the cache."""
    attention: Any
    network: Any
    before_attention: Any
    after_attention: Any
    before_network: Any
    after_network: Any

    @property
    def norms(self) -> tuple[Any, ...]:
        """Norms in the order of the native call, those of queries and keys behind the layer's."""
        return (*self[4:], *(self.attention._form.norms or (None, None)))


class LayerWatch:
    """A layer as it was when its native call was put together: everything that the call does not ask for again."""

    def __init__(self, module: nn.Module, parts: LayerParts) -> None:
        attention, network = parts.attention, parts.network
        owners = (
            (module, parts.children),
            (attention, attention._form.children),
            (network, network._form.children),
        )
        self._children: list[tuple[Mapping[str, Any], str, nn.Module]] = [
            (owner._modules, name, child) for owner, children in owners for name, child in children.items()
        ]
        self._modes = (attention, network)
        self._config = attention.config
        fronts = (attention, network, *(norm for norm in parts.norms if norm is not None))
        self._kinds = [(front, type(front)) for front in fronts]
        form = attention._form
        linears = (form.q, form.k, form.v, form.o, *network._form[1:4])
        self._products: list[tuple[PackedLinear, Any]] = [(linear, linear._direct) for linear in linears]
        parameters = [(linear, "bias") for linear in linears] + [
            (norm, norm._form.weight) for norm in parts.norms if norm is not None
        ]
        self._parameters = [
            (owner._parameters, name, value, value.data_ptr())
            for owner, name in parameters
            if (value := owner._parameters.get(name)) is not None
        ]
        self._no_biases = [linear._parameters for linear in linears if linear.bias is None]

    def is_unchanged(self) -> bool:
        """Whether nothing was put in a place, hooked, set or switched since."""
        for own, name, child in self._children:
            if (
                own.get(name) is not child
                or child._forward_hooks
                or child._forward_pre_hooks
                or child._backward_hooks
                or child._backward_pre_hooks
                or "forward" in child.__dict__
            ):
                return False
        for front, kind in self._kinds:
            if type(front) is not kind:
                return False
        for module in self._modes:
            if module.training:
                return False
        for linear, direct in self._products:
            if linear._direct is not direct:
                return False
        for values, name, value, address in self._parameters:
            if values.get(name) is not value or value.data_ptr() != address:
                return False
        for values in self._no_biases:
            if values.get("bias") is not None:
                return False
        return getattr(self._config, "_attn_implementation", None) == KIND


def weight_of(norm: Any) -> torch.Tensor:
    """The weight of a norm that is taken over."""
    weight: torch.Tensor = norm._parameters[norm._form.weight]
    return weight
