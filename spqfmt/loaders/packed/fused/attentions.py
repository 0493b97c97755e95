"""Attention of one token of each text to a cache: rotary positions and attention by a native call each.

For prompts, masks, training, other kinds of attention than torch's own, and whatever else is unusual, the class's own
forward does it.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache

from spqfmt.kernels.token_step import MOST_OF_HEAD
from spqfmt.loaders.packed.fused.attention_step import KIND, AttentionForm, attended, step
from spqfmt.loaders.packed.fused.classes import (
    Front,
    is_in_front,
    is_only_called,
    own_forward,
    packed_linears,
    stand_in_front,
)
from spqfmt.loaders.packed.fused.siblings import Siblings
from spqfmt.loaders.packed.fused.trial import computes_the_same
from spqfmt.loaders.schemes.matrix import TYPES
from spqfmt.models.caches import cache_name

_PROJECTIONS = ("q_proj", "k_proj", "v_proj")
_OUTPUTS = ("o_proj", "out_proj")
_NORMS = ("q_norm", "k_norm")
_TAKEN = frozenset({"hidden_states", "position_embeddings", "attention_mask"})
"""What a step takes, beside its cache."""
_IDLE = frozenset({"position_ids", "cache_position", "use_cache", "tokenizer"})
"""What attention is given, and does not use for one token: with positions that are far away, too (`trial`). Generation
hands its tokenizer on to all layers."""
_FALSE = frozenset({"output_attentions", "output_hidden_states", "return_dict"})


def fuse_attentions(model: nn.Module) -> int:
    """Take over such attentions, and say how many."""
    found = 0
    for module in model.modules():
        if isinstance(module, FusedAttention):
            continue
        for form in _candidates(module):
            if computes_the_same(module, form):
                stand_in_front(module, FusedAttention, form)
                found += 1
                break
    return found


class FusedAttention(Front):
    """What stands in front of the class of an attention."""

    _form: AttentionForm
    config: Any
    layer_idx: int

    def forward(self, *given: Any, **named: Any) -> Any:
        """What the class does, and for one token of each text to a cache by native calls."""
        is_one = not given and not torch.compiler.is_compiling() and not self.training
        if is_one and is_in_front(self, FusedAttention) and _is_plain(self, named):
            y = step(self, self._form, named)
            if y is not None:
                return y, None
        return own_forward(self, FusedAttention)(*given, **named)

    def attended(self, q: torch.Tensor, *, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """What a token's heads see in a cache, as `forward` has it, before the last layer.

        [texts, 1, heads * value_size].
        """
        return attended(self, self._form, q, keys=keys, values=values)


def _is_plain(module: FusedAttention, named: dict[str, Any]) -> bool:
    x, cache = named.get("hidden_states"), module._form.cache
    if (
        type(x) is not torch.Tensor
        or x.dim() != 3
        or x.shape[1] != 1
        or x.dtype not in TYPES
        or named.get("attention_mask") is not None
        or not isinstance(named.get(cache), DynamicCache)
        or getattr(module.config, "_attn_implementation", None) != KIND
    ):
        return False
    return has_idle_names(named, cache) and is_only_called(module, module._form.children)


def has_idle_names(named: dict[str, Any], cache: str) -> bool:
    """Whether nothing is asked for but one token's attention to what the argument `cache` is."""
    for name, value in named.items():
        if name not in _TAKEN and name not in _IDLE and (name not in _FALSE or value) and name != cache:
            return False
    return True


def _candidates(module: nn.Module) -> Iterator[AttentionForm]:
    """Forms that a module could have by its layers and numbers."""
    linears = packed_linears(module, _PROJECTIONS)
    if linears is None:
        return
    q, k, v = linears.values()
    outputs = [found for name in _OUTPUTS if (found := packed_linears(module, (name,)))]
    if len(outputs) != 1 or not isinstance(getattr(module, "layer_idx", None), int):
        return
    (o,) = outputs[0].values()
    norms = _norms(module)
    called = {*linears, *outputs[0], *(_NORMS if norms else ())}
    others = [child for name, child in module.named_children() if name not in called]
    if any(True for other in others for _ in (*other.parameters(), *other.children())):
        return
    size = getattr(module, "head_dim", None)
    if (
        not isinstance(size, int)
        or not 0 < size <= MOST_OF_HEAD
        or q.out_features % size
        or k.out_features % size
    ):
        return
    n_heads, n_queries = k.out_features // size, q.out_features // size
    if n_queries % n_heads or v.out_features % n_heads:
        return
    value_size = v.out_features // n_heads
    if value_size > MOST_OF_HEAD or o.in_features != n_queries * value_size:
        return
    scales = {value for value in vars(module).values() if isinstance(value, float)} | {size**-0.5}
    numbers = {value for value in vars(module).values() if type(value) is int}
    rotaries = {number for number in numbers if number <= size and number % 2 == 0} | {0, size - size % 2}
    siblings, name = Siblings(q, k, v), cache_name(module)
    for scale in sorted(scales, key=lambda value: (value != getattr(module, "scaling", None), value)):
        for rotary in sorted(rotaries, reverse=True):
            yield AttentionForm(
                children=dict(module.named_children()),
                cache=name,
                q=q,
                k=k,
                v=v,
                o=o,
                inputs=siblings,
                norms=norms,
                norms_heads=norms is not None and next(norms[0].parameters()).numel() == size,
                rotary=rotary,
                n_heads=n_heads,
                n_shared=n_queries // n_heads,
                key_size=size,
                value_size=value_size,
                scale=scale,
            )


def _norms(module: nn.Module) -> tuple[nn.Module, nn.Module] | None:
    """Norms of queries and keys, each with one parameter of one dimension."""
    found = [module._modules.get(name) for name in _NORMS]
    norms = [norm for norm in found if norm is not None and len(list(norm.parameters())) == 1]
    return (norms[0], norms[1]) if len(norms) == len(_NORMS) else None
