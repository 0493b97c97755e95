"""What a decoder's layer is made of, and whether it still is."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn

from spqfmt.kernels.token_step import Unchanged


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


_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
"""Those of gradients have nothing to do where there are none, and each dict is memory that products have driven out."""


def watched(module: nn.Module, parts: LayerParts) -> Unchanged:
    """A layer as it is when its native call is put together: everything that the call does not ask for again.

    What is put in a place, hooked, set or switched later is a change. Nothing of it keeps the layer itself.
    """
    attention, network = parts.attention, parts.network
    form = attention._form
    owners = ((module, parts.children), (attention, form.children), (network, network._form.children))
    children = [(owner, name, child) for owner, own in owners for name, child in own.items()]
    norms = [norm for norm in parts.norms if norm is not None]
    linears = (form.q, form.k, form.v, form.o, *network._form[1:4])
    parameters = [(linear, "bias") for linear in linears] + [(norm, norm._form.weight) for norm in norms]
    weights = [owner._parameters.get(name) for owner, name in parameters]
    return Unchanged(
        same=[
            *((owner._modules, name, child) for owner, name, child in children),
            *((vars(child), "forward", None) for _, _, child in children),
            *((vars(one), "training", False) for one in (attention, network)),
            *((vars(linear), "_direct", linear._direct) for linear in linears),
            *(
                (owner._parameters, name, value)
                for (owner, name), value in zip(parameters, weights, strict=True)
            ),
        ],
        empty=[(vars(child), hooks) for _, _, child in children for hooks in _HOOKS],
        kinds=[(front, type(front)) for front in (attention, network, *norms)],
        tensors=[(value, value.data_ptr()) for value in weights if value is not None],
    )


def weight_of(norm: Any) -> torch.Tensor:
    """The weight of a norm that is taken over."""
    weight: torch.Tensor = norm._parameters[norm._form.weight]
    return weight
