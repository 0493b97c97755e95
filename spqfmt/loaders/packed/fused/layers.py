"""Layers of a decoder that compute single tokens by one native call, from the norms to the sums around their parts.

A layer is one attention and one gated network that are taken over, with norms before or after them, each with its input
added to what comes of it. Which norm is where is told by a trial: its children say certain numbers, and what they are
given shows what the layer's own forward does with these. Everything that a step does not know is the class's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from spqfmt.loaders.packed.fused.attentions import FusedAttention, has_idle_names
from spqfmt.loaders.packed.fused.classes import ERRORS, Front, is_in_front, own_forward, stand_in_front
from spqfmt.loaders.packed.fused.gates import FusedGate
from spqfmt.loaders.packed.fused.layer_parts import LayerParts
from spqfmt.loaders.packed.fused.layer_steps import LayerSteps, PreparedLayer
from spqfmt.loaders.packed.fused.norms import FusedNorm
from spqfmt.models.caches import cache_name

_FAR = 100_000
"""A position: what depends on it shows."""
_N_TEXTS = 2


class LayerPlace(NamedTuple):
    """Which of the layers a module is that follow one another."""

    steps: LayerSteps
    number: int


class FusedLayer(Front):
    """What stands in front of the class of a layer."""

    _form: LayerPlace

    def forward(self, *given: Any, **named: Any) -> Any:
        """What the class does, and for one token of each text to a cache by a native call."""
        if (
            len(given) == 1
            and not torch.compiler.is_compiling()
            and not self.training
            and is_in_front(self, FusedLayer)
        ):
            steps, number = self._form
            y = steps.step(number, given[0], named)
            if y is not None:
                return y
        return own_forward(self, FusedLayer)(*given, **named)


def fuse_layers(model: nn.Module) -> int:
    """Take over such layers, whose attentions, networks and norms are taken over, and say how many."""
    found = 0
    for run in _runs(model):
        steps = LayerSteps([prepared for _, prepared in run])
        for number, (module, prepared) in enumerate(run):
            stand_in_front(module, FusedLayer, LayerPlace(steps, number))
            prepared.kind = type(module)
            found += 1
    return found


def _runs(model: nn.Module) -> Iterator[list[tuple[nn.Module, PreparedLayer]]]:
    """Layers that follow one another in a list, and that can be one call."""
    for several in model.modules():
        if not isinstance(several, nn.ModuleList):
            continue
        run: list[tuple[nn.Module, PreparedLayer]] = []
        for module in several:
            prepared = _prepared(module)
            if run and (prepared is None or not prepared.fits(run[0][1])):
                yield run
                run = []
            if prepared is not None:
                run.append((module, prepared))
        if run:
            yield run


def _prepared(module: nn.Module) -> PreparedLayer | None:
    parts = None if isinstance(module, FusedLayer) else _parts(module)
    return None if parts is None else PreparedLayer.of(module, parts)


def _parts(module: nn.Module) -> LayerParts | None:
    """What the layer's children are to it, by what its forward does with what they say; None: it is none."""
    children = dict(module.named_children())
    attentions = [child for child in children.values() if isinstance(child, FusedAttention)]
    networks = [child for child in children.values() if isinstance(child, FusedGate)]
    if len(attentions) != 1 or len(networks) != 1:
        return None
    norms = [child for child in children.values() if isinstance(child, FusedNorm)]
    for other in children.values():
        is_known = other in (*attentions, *networks, *norms)
        if not is_known and any(True for _ in (*other.parameters(), *other.children())):
            return None
    places = [
        _places(module, attentions[0], networks[0], norms, dtype=dtype)
        for dtype in (torch.float32, torch.bfloat16)
    ]
    if places[0] is None or places[0] != places[1] or set(places[0]) - {None} != set(norms):
        return None
    return LayerParts(children, cache_name(module), attentions[0], networks[0], *places[0])


class _Call(NamedTuple):
    """A child, what it was given, and what it said."""

    module: nn.Module
    x: torch.Tensor
    y: torch.Tensor


def _places(
    module: Any,
    attention: FusedAttention,
    network: nn.Module,
    norms: Sequence[nn.Module],
    *,
    dtype: torch.dtype,
) -> tuple[Any, Any, Any, Any] | None:
    """Norms before and after attention, before and after the network; None: the layer does anything else."""
    random = torch.Generator().manual_seed(0)
    n_hidden = attention._form.q.in_features
    calls: list[_Call] = []

    def numbers() -> torch.Tensor:
        return torch.randn(_N_TEXTS, 1, n_hidden, generator=random).to(dtype)

    def says(child: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
        def forward(x: torch.Tensor, /) -> torch.Tensor:
            calls.append(_Call(child, x.clone(), numbers()))
            return calls[-1].y.clone()

        return forward

    cache, positions = object(), (torch.ones(1, 1, 2), torch.zeros(1, 1, 2))

    def attends(**named: Any) -> tuple[torch.Tensor, None]:
        if (
            named.get("position_embeddings") is not positions
            or named.get("attention_mask") is not None
            or named.get(attention._form.cache) is not cache
            or not has_idle_names(named, attention._form.cache)
        ):
            raise ValueError("not what the layer was given")
        return says(attention)(named["hidden_states"]), None

    x = numbers()
    named = {
        "attention_mask": None,
        "position_ids": torch.full((_N_TEXTS, 1), _FAR),
        "position_embeddings": positions,
        "use_cache": True,
        cache_name(module): cache,
    }
    stubs: dict[nn.Module, Any] = {child: says(child) for child in (*norms, network)} | {attention: attends}
    was_training = module.training
    module.eval()
    try:
        with torch.inference_mode(False), torch.no_grad(), _instead_of(stubs):
            y = module.forward(x.clone(), **named)
    except ERRORS:
        return None
    finally:
        module.train(was_training)
    if type(y) is not torch.Tensor or y.dtype is not dtype:
        return None
    return _told(calls, x, y, (attention, network))


@contextmanager
def _instead_of(stubs: Mapping[nn.Module, Any]) -> Iterator[None]:
    for child, forward in stubs.items():
        vars(child)["forward"] = forward
    try:
        yield
    finally:
        for child in stubs:
            del vars(child)["forward"]


def _told(
    calls: list[_Call], x: torch.Tensor, y: torch.Tensor, parts: tuple[nn.Module, nn.Module]
) -> tuple[Any, Any, Any, Any] | None:
    """Which norm came where, if everything was given what the form says."""
    places: list[nn.Module | None] = []
    left = list(calls)

    def norm_of(given: torch.Tensor) -> tuple[nn.Module | None, torch.Tensor]:
        if left and left[0].module not in parts and torch.equal(left[0].x, given):
            call = left.pop(0)
            return call.module, call.y
        return None, given

    for part in parts:
        before, given = norm_of(x)
        if not left or left[0].module is not part or not torch.equal(left[0].x, given):
            return None
        after, made = norm_of(left.pop(0).y)
        places += (before, after)
        x = x + made
    if left or not torch.equal(x, y):
        return None
    a, b, c, d = places
    return a, b, c, d
