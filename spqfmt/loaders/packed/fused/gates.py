"""Feed-forward networks with a gate, down(f(gate(x)) * up(x)), for few tokens: f and its product are one call."""

from typing import Any, NamedTuple

import torch
from torch import nn

from spqfmt.kernels.token_step import GELU_TANH, SILU, gate_values
from spqfmt.loaders.packed.fused.classes import (
    ERRORS,
    Front,
    instead_of_products,
    is_in_front,
    is_only_called,
    multiplied,
    own_forward,
    packed_linears,
    stand_in_front,
    wants_more,
)
from spqfmt.loaders.packed.fused.siblings import Siblings
from spqfmt.loaders.packed.modules import PackedLinear
from spqfmt.loaders.schemes.matrix import FEW_TOKENS, TYPES

_NAMES = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"))
_N_TRIED = 40
_SIZES = (0.0, 0.1, 1.0, 4.0)


class GateForm(NamedTuple):
    """y = down(f(gate(x)) * up(x)): what the module calls by its names, its layers, and f as a form of gate_values."""

    children: dict[str, nn.Module]
    gate: PackedLinear
    up: PackedLinear
    down: PackedLinear
    inputs: Siblings
    """The gate and up."""
    function: int


def fuse_gates(model: nn.Module) -> int:
    """Take over such networks, and say how many."""
    found = 0
    for module in model.modules():
        if not isinstance(module, FusedGate) and (form := _form(module)) is not None:
            stand_in_front(module, FusedGate, form)
            found += 1
    return found


class FusedGate(Front):
    """What stands in front of the class of a network."""

    _form: GateForm

    def forward(self, *given: Any, **named: Any) -> Any:
        """What the class does, and for a few tokens by native calls."""
        is_one = len(given) == 1 and not named and not self.training and not torch.compiler.is_compiling()
        if is_one and is_in_front(self, FusedGate):
            form = self._form
            if is_only_called(self, form.children):
                y = _computed(form, given[0])
                if y is not None:
                    return y
        return own_forward(self, FusedGate)(*given, **named)


def _computed(form: GateForm, x: torch.Tensor) -> torch.Tensor | None:
    """What the network makes of a few tokens [..., hidden]; None: it is for torch to do."""
    if (
        type(x) is not torch.Tensor
        or x.dtype not in TYPES
        or not (shape := x.shape)
        or x.numel() > FEW_TOKENS * shape[-1]
        or wants_more(x)
    ):
        return None
    a, b = form.inputs(x)
    if a.requires_grad or b.requires_grad or not (a.is_contiguous() and b.is_contiguous()):
        return None
    gate_values(a.data_ptr(), b.data_ptr(), TYPES[a.dtype], form.function, a.numel())
    return multiplied(form.down, a)


def _form(module: nn.Module) -> GateForm | None:
    """What the module computes, by what it makes of the numbers that its layers are said to give."""
    for names in _NAMES:
        linears = packed_linears(module, names)
        if linears is None:
            continue
        others = [child for name, child in module.named_children() if name not in linears]
        if any(True for other in others for _ in (*other.parameters(), *other.children())):
            return None
        gate, up, down = (linears[name] for name in names)
        if gate.out_features != up.out_features or up.out_features != down.in_features:
            return None
        siblings = Siblings(gate, up)
        for function in (SILU, GELU_TANH):
            form = GateForm(
                dict(module.named_children()), gate=gate, up=up, down=down, inputs=siblings, function=function
            )
            if all(_is_same(module, form, linears, dtype) for dtype in (torch.float32, torch.bfloat16)):
                return form
    return None


def _is_same(module: nn.Module, form: GateForm, linears: dict[str, PackedLinear], dtype: torch.dtype) -> bool:
    random = torch.Generator().manual_seed(0)
    sizes = torch.tensor(_SIZES)[:, None]

    def numbers() -> torch.Tensor:
        drawn = torch.randn(len(_SIZES), form.down.in_features, generator=random)[:, :_N_TRIED]
        return (drawn * sizes).to(dtype)[:, None]

    a, b = numbers(), numbers()
    # The last layer shows what it is given.
    fakes = dict(
        zip(linears, (lambda x, bias: a.clone(), lambda x, bias: b.clone(), lambda x, bias: x), strict=True)
    )
    x = torch.zeros(len(_SIZES), 1, form.gate.in_features, dtype=dtype)
    with torch.inference_mode(False), torch.no_grad(), instead_of_products(linears, fakes):
        try:
            expected = module(x)
        except ERRORS:
            return False
        found = _computed(form, x)
    if type(expected) is not torch.Tensor or found is None:
        return False
    if expected.dtype is not dtype or expected.shape != found.shape:
        return False
    places = 8 if dtype is torch.float32 else 2
    near = (found.float() - expected.float()).abs() <= places * torch.finfo(dtype).eps * (a * b).abs().float()
    return bool(near.all())
