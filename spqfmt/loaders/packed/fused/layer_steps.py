"""Single tokens through layers that follow one another, by one native call, of which each layer has its own output.

When the first of them is called, all are computed: the others then only look whether they are given what that call took
for it, to the bit. What was written to their caches is not seen before. A layer that is given anything else computes
anew, and nothing is computed ahead before all have once been called in their order again.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import DynamicCache

from spqfmt.codecs.threads import wanted_threads
from spqfmt.kernels.context import Context, current
from spqfmt.kernels.token_step import TokenLayer, same_bytes, step_layers
from spqfmt.loaders.packed.fused.attention_step import KIND
from spqfmt.loaders.packed.fused.attentions import has_idle_names
from spqfmt.loaders.packed.fused.cache import CacheRoom, RoomyLayer, appends_as_ever, make_roomy
from spqfmt.loaders.packed.fused.classes import has_global_hooks
from spqfmt.loaders.packed.fused.layer_parts import LayerParts, watched, weight_of
from spqfmt.loaders.packed.modules import PackedLinear
from spqfmt.loaders.packed.weights import NativeProducts
from spqfmt.loaders.schemes.matrix import FEW_TOKENS, TYPES, floats


class PreparedLayer:
    """A layer as its native call has it."""

    def __init__(
        self, module: nn.Module, parts: LayerParts, native: TokenLayer, dtype: torch.dtype, context: Context
    ) -> None:
        form = parts.attention._form
        self.kind: type | None = None
        self._own: Any = type(module)
        self._own_forward = self._own.forward
        """The module's class, once it is taken over."""
        # The module has this: what it has must not keep it.
        self._module = weakref.ref(module)
        self.native = native
        self.dtype = dtype
        self.context = context
        self.cache: str = parts.cache
        self.index: int = parts.attention.layer_idx
        self.n_hidden: int = form.q.in_features
        self.rotary: int = form.rotary
        self.cached: tuple[int, int, int] = (form.n_heads, form.key_size, form.value_size)
        self.config = parts.attention.config
        self._unchanged = watched(module, parts)

    @classmethod
    def of(cls, module: nn.Module, parts: LayerParts) -> PreparedLayer | None:
        """Put the call together; None where a product is none that can be part of it, or a norm has another form."""
        form, network = parts.attention._form, parts.network._form
        sets = ((form.q, form.k, form.v), (form.o,), (network.gate, network.up), (network.down,))
        products = [_together(linears) for linears in sets]
        found = [one for one, _ in products if one is not None]
        if len(found) < len(sets) or len({(one.dtype, id(one.context)) for one in found}) != 1:
            return None
        dtype, n_hidden = found[0].dtype, form.q.in_features
        if form.o.out_features != n_hidden or network.gate.in_features != n_hidden:
            return None
        key, each = form.key_size, form.norms_heads
        sizes = [n_hidden] * 4 + [
            key if each else n_heads * key for n_heads in (form.n_heads * form.n_shared, form.n_heads)
        ]
        norms: list[tuple[int, float, float, bool] | None] = []
        for norm, size in zip(parts.norms, sizes, strict=True):
            if norm is None:
                norms.append(None)
                continue
            weight = weight_of(norm) if hasattr(norm, "_form") else None
            if weight is None or weight.dtype is not dtype or weight.shape != (size,):
                return None
            norms.append((weight.data_ptr(), *norm._form[1:]))
        if network.down.out_features != n_hidden:
            return None
        native = TokenLayer(
            norms=tuple(norms),
            norms_heads=each,
            products=tuple(
                (one.matrices._native, _biases(linears), rounds)
                for linears, (one, rounds) in zip(sets, products, strict=True)
                if one is not None
            ),
            gate=network.function,
            n_heads=form.n_heads,
            n_shared=form.n_shared,
            key_size=key,
            value_size=form.value_size,
            scale=form.scale,
            rotary=form.rotary,
        )
        return cls(module, parts, native, dtype, found[0].context)

    def fits(self, other: PreparedLayer) -> bool:
        """Whether one call can have both."""
        own, its = ((one.dtype, one.n_hidden, one.cache) for one in (self, other))
        return own == its and self.context is other.context

    def is_hooked(self) -> bool:
        """Whether somebody is called when the module is."""
        module = self._module()
        return module is not None and bool(module._forward_hooks or module._forward_pre_hooks)

    def is_unchanged(self) -> bool:
        """Whether the module still computes what the call does."""
        module = self._module()
        if module is None or type(module) is not self.kind or module.training:
            return False
        if self._own.forward is not self._own_forward:
            return False
        return self._unchanged.is_so()

    def room(self, cache: DynamicCache, n_texts: int) -> tuple[RoomyLayer, CacheRoom] | None:
        """Where the layer's next token goes; None: its part of the cache is of another kind, or empty."""
        layers = cache.layers
        if len(layers) <= self.index:
            return None
        kept = layers[self.index]
        make_roomy(kept)
        if type(kept) is not RoomyLayer or "update" in kept.__dict__:
            return None
        room = kept.room_for_one((n_texts, *self.cached), self.dtype)
        return None if room is None else (kept, room)


class _Ahead(NamedTuple):
    """What was computed for layers from `first` on: each one's output, and a copy that nobody else has."""

    first: int
    ys: list[torch.Tensor]
    copies: torch.Tensor
    address: int
    n_bytes: int
    positions: tuple[torch.Tensor, torch.Tensor] | None
    cache: DynamicCache
    rooms: list[tuple[RoomyLayer, CacheRoom]]

    def is_followed(self, number: int, x: Any) -> bool:
        """Whether a layer behind the first is given what the one before it gave, as it was."""
        i = number - self.first - 1
        if not (0 <= i < len(self.ys) and x is self.ys[i]):
            return False
        return same_bytes(x.data_ptr(), self.address + i * self.n_bytes, self.n_bytes)

    def output(self, number: int, x: Any, positions: Any, cache: Any) -> torch.Tensor | None:
        """The layer's output, its token taken into the cache; None where anything is not as it was taken to be."""
        i = number - self.first
        if i >= len(self.ys) or not self.is_followed(number, x):
            return None
        if positions is not self.positions or cache is not self.cache:
            return None
        return self.ys[i] if self.rooms[i][0].take(self.rooms[i][1]) else None


class LayerSteps:
    """Layers that follow one another, and what was computed of them ahead."""

    def __init__(self, layers: Sequence[PreparedLayer]) -> None:
        self._layers = layers
        self._configs = list({id(layer.config): layer.config for layer in layers}.values())
        self._ahead: _Ahead | None = None
        self._goes_on = True
        """Whether layers after one that is called are likely to be called with what it gives."""
        self._n_followed = 0
        self._last: _Ahead | None = None

    def step(self, number: int, x: Any, named: dict[str, Any]) -> torch.Tensor | None:
        """What a layer gives for one token of each text, [texts, 1, hidden]; None: it is for torch to do."""
        name = self._layers[number].cache
        cache, positions = named.get(name), named.get("position_embeddings")
        if not has_idle_names(named, name) or named.get("attention_mask") is not None:
            return None
        ahead = self._ahead
        if ahead is not None:
            y = ahead.output(number, x, positions, cache)
            if y is None or number == ahead.first + len(ahead.ys) - 1:
                self._ahead = None
            if y is not None:
                return y
            self._goes_on = False
        return self._computed(number, x, positions, cache)

    def _computed(self, number: int, x: Any, positions: Any, cache: Any) -> torch.Tensor | None:
        first = self._layers[number]
        if (
            type(x) is not torch.Tensor
            or x.dtype is not first.dtype
            or x.dim() != 3
            or not 0 < x.shape[0] <= FEW_TOKENS
            or x.shape[1:] != (1, first.n_hidden)
            or not (x.is_cpu and x.is_contiguous())
            or torch.is_grad_enabled()
            or torch.is_autocast_enabled("cpu")
            or type(cache) is not DynamicCache
            or cache.offloading
            or not appends_as_ever(cache)
            or current() is not first.context
            or has_global_hooks()
            or any(getattr(config, "_attn_implementation", None) != KIND for config in self._configs)
        ):
            return None
        n_texts = x.shape[0]
        stop = len(self._layers) if self._goes_on else number + 1
        layers: list[PreparedLayer] = []
        rooms: list[tuple[RoomyLayer, CacheRoom]] = []
        turns = _turns(positions, x)
        for layer in self._layers[number:stop]:
            # What a hook of a layer does may be to those behind it: it is computed by itself.
            is_hooked = layer.is_hooked()
            if is_hooked and layers:
                break
            if layer.rotary and (turns is None or turns[0].shape[-1] != layer.rotary):
                break
            if not layer.is_unchanged() or (room := layer.room(cache, n_texts)) is None:
                break
            layers.append(layer)
            rooms.append(room)
            if is_hooked:
                break
        if not layers:
            return None
        threads = wanted_threads(first.context)
        ys = [torch.empty_like(x) for _ in layers]
        copies = torch.empty((len(layers), n_texts, 1, first.n_hidden), dtype=x.dtype, device=x.device)
        cos, sin = (0, 0) if turns is None else (turns[0].data_ptr(), turns[1].data_ptr())
        step_layers(
            [layer.native for layer in layers],
            *(x.data_ptr(), TYPES[x.dtype], n_texts, cos, sin),
            [
                number
                for _, room in rooms
                for number in (
                    room.keys.data_ptr(),
                    room.values.data_ptr(),
                    room.keys.shape[2],
                    room.n_tokens,
                )
            ],
            copies.data_ptr(),
            [y.data_ptr() for y in ys],
            torch.get_num_threads() if threads is None else threads,
        )
        if not rooms[0][0].take(rooms[0][1]):
            return None
        ahead = _Ahead(
            first=number,
            ys=ys,
            copies=copies,
            address=copies.data_ptr(),
            n_bytes=x.nbytes,
            positions=positions,
            cache=cache,
            rooms=rooms,
        )
        if len(layers) > 1:
            self._ahead = ahead
        elif not self._goes_on:
            self._follow(number, x, ahead)
        return ys[0]

    def _follow(self, number: int, x: torch.Tensor, done: _Ahead) -> None:
        """Go on again once all have been called one after the other."""
        last, self._last = self._last, done
        follows = number == 0 or (
            self._n_followed == number and last is not None and last.is_followed(number, x)
        )
        self._n_followed = number + 1 if follows else 0
        if self._n_followed == len(self._layers):
            self._n_followed, self._last, self._goes_on = 0, None, True


def _turns(positions: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """cos and sin [texts, 1, rotary] without gaps; None where these are none."""
    if type(positions) is not tuple or len(positions) != 2:
        return None
    cos, sin = positions
    if (
        cos.shape != sin.shape
        or cos.dtype is not x.dtype
        or sin.dtype is not x.dtype
        or cos.dim() != 3
        or cos.shape[1] != 1
        or cos.shape[0] not in (1, x.shape[0])
    ):
        return None
    whole = (x.shape[0], 1, cos.shape[-1])
    return cos.expand(whole).contiguous(), sin.expand(whole).contiguous()


def _together(linears: Sequence[PackedLinear]) -> tuple[NativeProducts | None, bool]:
    """Products with the same input, and whether it may be rounded; None: not all are plain, or of one kind."""
    engines = {id(linear.engine): linear.engine for linear in linears}
    kinds = {linear._rounding is None for linear in linears}
    if len(engines) != 1 or len(kinds) != 1 or any(linear._direct is None for linear in linears):
        return None, False
    (engine,), (rounds,) = engines.values(), kinds
    return engine.native_products([linear._operand.matrix for linear in linears]), rounds


def _biases(linears: Sequence[PackedLinear]) -> tuple[int, ...]:
    return tuple(number for linear in linears for number in floats(linear.bias))
