"""What an attention computes for one token of each text, by native calls around its products and its cache."""

from typing import Any, NamedTuple

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from spqfmt.codecs.threads import n_threads
from spqfmt.kernels.token_step import attend, rotate
from spqfmt.loaders.packed.fused.cache import make_roomy
from spqfmt.loaders.packed.fused.classes import multiplied, wants_more
from spqfmt.loaders.packed.fused.siblings import Siblings
from spqfmt.loaders.packed.modules import PackedLinear
from spqfmt.loaders.schemes.matrix import TYPES

KIND = "sdpa"
"""The kind of attention that this is the same as: torch's own."""


class AttentionForm(NamedTuple):
    """What an attention computes for a token, and the children that it calls."""

    children: dict[str, nn.Module]
    cache: str
    """The argument that is the cache."""
    q: PackedLinear
    k: PackedLinear
    v: PackedLinear
    o: PackedLinear
    inputs: Siblings
    """q, k and v."""
    norms: tuple[nn.Module, nn.Module] | None
    norms_heads: bool
    """Whether norms are of each head, and not of all together."""
    rotary: int
    """How many numbers of a head are turned by its position; 0: none."""
    n_heads: int
    n_shared: int
    key_size: int
    value_size: int
    scale: float


def step(module: Any, form: AttentionForm, named: dict[str, Any]) -> torch.Tensor | None:
    """What attention gives for one token of each text, [texts, 1, hidden]; None, and nothing done: it is for torch."""
    x, positions = named["hidden_states"], named.get("position_embeddings")
    dtype, n_texts = x.dtype, x.shape[0]
    if wants_more(x):
        return None
    if form.rotary:
        if type(positions) is not tuple or len(positions) != 2:
            return None
        cos, sin = positions
        if (
            cos.shape != sin.shape
            or cos.dtype is not dtype
            or sin.dtype is not dtype
            or cos.shape[-1] != form.rotary
            or cos.dim() != 3
            or cos.shape[1] != 1
        ):
            return None
        cos, sin = (t.expand(n_texts, 1, form.rotary).contiguous() for t in (cos, sin))
    q, k, v = products = form.inputs(x)
    if any(y.requires_grad or not y.is_contiguous() or y.dtype is not dtype for y in products):
        return None
    n_queries = form.n_heads * form.n_shared
    if form.norms is not None:
        q_norm, k_norm = form.norms
        if form.norms_heads:
            q, k = q.view(n_texts, n_queries, -1), k.view(n_texts, form.n_heads, -1)
        q, k = q_norm(q), k_norm(k)
        if not (q.is_contiguous() and k.is_contiguous() and q.dtype is dtype and k.dtype is dtype):
            return None
    number = TYPES[dtype]
    if form.rotary:
        by = cos.data_ptr(), sin.data_ptr(), form.rotary
        rotate(q.data_ptr(), number, n_texts, n_queries, form.key_size, *by)
        rotate(k.data_ptr(), number, n_texts, form.n_heads, form.key_size, *by)
    k = k.view(n_texts, form.n_heads, 1, form.key_size)
    v = v.view(n_texts, form.n_heads, 1, form.value_size)
    cache, layer = named[form.cache], module.layer_idx
    if len(layers := getattr(cache, "layers", ())) > layer:
        make_roomy(layers[layer])
    keys, values = cache.update(k, v, layer)
    return multiplied(form.o, attended(module, form, q, keys=keys, values=values))


def attended(
    module: Any, form: AttentionForm, q: torch.Tensor, *, keys: torch.Tensor, values: torch.Tensor
) -> torch.Tensor:
    """What the heads of `q` see in the cache, [texts, 1, heads * value_size]."""
    n_texts, n_queries = keys.shape[0], form.n_heads * form.n_shared
    if not (
        _is_fit(keys, q, form.n_heads, form.key_size) and _is_fit(values, q, form.n_heads, form.value_size)
    ):
        q = q.view(n_texts, n_queries, 1, form.key_size)
        function: Any = ALL_ATTENTION_FUNCTIONS[KIND]
        seen, _ = function(module, q, keys, values, None, dropout=0.0, scaling=form.scale)
        joined: torch.Tensor = seen.reshape(n_texts, 1, -1).contiguous()
        return joined
    n_tokens = keys.shape[2]
    y = torch.empty((n_texts, 1, n_queries * form.value_size), dtype=q.dtype, device=q.device)
    attend(
        *(q.data_ptr(), TYPES[q.dtype]),
        *(keys.data_ptr(), keys.stride(0), keys.stride(1), keys.stride(2)),
        *(values.data_ptr(), values.stride(0), values.stride(1), values.stride(2)),
        *(n_texts, form.n_heads, form.n_shared, n_tokens, form.key_size, form.value_size),
        form.scale,
        *(y.data_ptr(), n_threads()),
    )
    return y


def _is_fit(cached: torch.Tensor, q: torch.Tensor, n_heads: int, size: int) -> bool:
    return (
        type(cached) is torch.Tensor
        and cached.dtype is q.dtype
        and cached.is_cpu
        and cached.shape[1] == n_heads
        and cached.shape[3] == size
        and cached.shape[2] > 0
        and cached.stride(3) == 1
    )
