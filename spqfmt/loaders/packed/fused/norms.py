"""Root-mean-square norms of a packed model by one native call each, where a module computes what that does.

torch computes such a norm by six operations, of which each takes as long as the whole for a token of a small model. No
class is known by its name: a module is taken for a norm by what it makes of some numbers (decision 0049).
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import nn

from spqfmt.codecs.threads import n_threads
from spqfmt.kernels.norm import root_mean_square
from spqfmt.loaders.packed.fused.classes import ERRORS, Front, is_in_front, own_forward, stand_in_front
from spqfmt.loaders.schemes.matrix import FEW_TOKENS, TYPES

_SCALES = (1.0, 0.0, 1e-4, 1e-3, 30.0, 400.0)
"""Sizes of the tokens that a module is tried with: the epsilon counts in the small ones."""

_PLAIN = (nn.Parameter, torch.Tensor)


class NormForm(NamedTuple):
    """y = (offset + weight) * x / sqrt(mean(x^2) + epsilon); the quotient may be rounded before it is multiplied."""

    weight: str
    epsilon: float
    offset: float
    rounds_first: bool


def fuse_norms(model: nn.Module) -> int:
    """Let modules that are such norms compute natively from now on, and say how many."""
    found = 0
    forms: dict[tuple[Any, ...], NormForm | None] = {}
    for module in model.modules():
        if isinstance(module, FusedNorm) or (kind := _kind(module)) is None:
            continue
        if kind not in forms:
            forms[kind] = _form(module)
        form = forms[kind]
        if form is not None:
            stand_in_front(module, FusedNorm, form)
            found += 1
    return found


def normed(x: torch.Tensor, weight: torch.Tensor, form: NormForm) -> torch.Tensor | None:
    """The norm of `x` [..., columns]; None where torch is to compute it: gradients, autocast, unusual tensors."""
    if (
        type(x) is not torch.Tensor
        or type(weight) not in _PLAIN
        or x.dtype is not weight.dtype
        or x.dtype not in TYPES
        or not (shape := x.shape)
        or weight.shape != shape[-1:]
        or not (x.is_cpu and weight.is_cpu)
        or not (x.is_contiguous() and weight.is_contiguous())
        or torch.is_autocast_enabled("cpu")
        or (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad))
    ):
        return None
    n_columns = shape[-1]
    n_tokens = x.numel() // n_columns
    y = torch.empty_like(x)
    root_mean_square(
        *(x.data_ptr(), TYPES[x.dtype], n_tokens, n_columns, weight.data_ptr()),
        *form[1:],
        y.data_ptr(),
        1 if n_tokens <= FEW_TOKENS else n_threads(),
    )
    return y


class FusedNorm(Front):
    """What stands in front of the class of a norm."""

    _form: NormForm

    def forward(self, *given: Any, **named: Any) -> Any:
        """What the class does, by a native call."""
        is_one = len(given) == 1 and not named and not torch.compiler.is_compiling()
        if is_one and is_in_front(self, FusedNorm):
            form = self._form
            weight = self._parameters.get(form.weight)
            y = None if weight is None else normed(given[0], weight, form)
            if y is not None:
                return y
        return own_forward(self, FusedNorm)(*given, **named)


def _kind(module: nn.Module) -> tuple[Any, ...] | None:
    """What modules have alike that compute alike, but for their weights; None for what cannot be such a norm."""
    parameters = list(module.named_parameters())
    others = any(True for _ in module.buffers()) or any(True for _ in module.children())
    if len(parameters) != 1 or others or parameters[0][1].dim() != 1 or not parameters[0][1].numel():
        return None
    name, weight = parameters[0]
    if weight.dtype not in TYPES or not weight.is_cpu or name not in module._parameters:
        return None
    numbers = tuple(
        sorted(item for item in vars(module).items() if isinstance(item[1], bool | int | float | str))
    )
    return type(module), name, weight.dtype, weight.shape, numbers


def _form(module: nn.Module) -> NormForm | None:
    """What the module computes, by its outputs for random weights and tokens of many sizes; None: no such norm."""
    name, own = next(module.named_parameters())
    dtype = own.dtype
    candidates = list(_candidates(module, name))
    if not candidates:
        return None
    random = torch.Generator().manual_seed(0)
    with torch.inference_mode(False), torch.no_grad():
        weight = torch.randn(own.shape, generator=random).to(dtype)
        tokens = torch.randn(2, len(_SCALES), own.numel(), generator=random) * torch.tensor(_SCALES)[:, None]
        x = tokens.to(dtype)
        try:
            y = torch.func.functional_call(module, {name: weight}, (x,))
        except ERRORS:  # of a module that is none, called like one
            return None
        if type(y) is not torch.Tensor or y.dtype is not dtype or y.shape != x.shape:
            return None
        for form in candidates:
            found = normed(x, weight, form)
            if found is not None and _is_same(found, y):
                return form
    return None


def _candidates(module: nn.Module, name: str) -> Iterator[NormForm]:
    epsilons = {v for v in vars(module).values() if isinstance(v, float) and 0 <= v < 0.1}
    for epsilon in sorted(epsilons):
        for offset in (0.0, 1.0):
            for rounds_first in (True, False):
                yield NormForm(name, epsilon, offset, rounds_first)


def _is_same(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether all agree within a place, of 16 bits nearly all to the bit: sums differ by their order alone."""
    place = torch.finfo(expected.dtype).eps
    a, b = found.float(), expected.float()
    near = (a - b).abs() <= 2 * place * b.abs() + torch.finfo(expected.dtype).smallest_normal
    if expected.dtype is torch.float32:
        near = (a - b).abs() <= 8 * place * b.abs()
        return bool(near.all())
    return bool(near.all()) and (a == b).float().mean().item() > 0.99
