"""What a tensor's name says of its place in the model."""

import re

_IN_A_LAYER = re.compile(r"(?P<layer>.+?\.\d+|\w+?\.\d+)\.(?P<rest>.+)")
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def layer_of(name: str) -> str:
    """model.layers.3.mlp.up_proj.weight -> model.layers.3; a name outside the layers stands for itself."""
    match = _IN_A_LAYER.match(name)
    return match["layer"] if match else name


def projection_of(name: str) -> str:
    """model.layers.3.mlp.experts.7.up_proj.weight -> mlp.experts.*.up_proj.weight: what recurs in every layer."""
    match = _IN_A_LAYER.match(name)
    return _NUMBER.sub("*", match["rest"] if match else name)
