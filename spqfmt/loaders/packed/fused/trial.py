"""Whether an attention computes what a form says, by what it makes of numbers that its layers are said to give."""

from typing import Any

import torch
from torch import nn

from spqfmt.loaders.packed.fused.attention_step import AttentionForm, step
from spqfmt.loaders.packed.fused.classes import ERRORS, Fake, instead_of_products

_N_TEXTS, _N_BEFORE = 2, 5
_FAR = 100_000
"""A position: what depends on it shows."""
_SIZES = (1.0, 6.0)
"""Sizes of the numbers in float32: scores of some hundreds too, in which a cap or another scale shows."""
_MOST_APART, _MOST_APART_ROUNDED = 1e-4, 2e-2


class _Cache:
    """What attention sees of a cache: some tokens, and what it adds, once."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, layer: int) -> None:
        self._kept, self._layer = (keys, values), layer
        self.n_updates = 0

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, **_: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Take the new token. ValueError: it is another layer's."""
        self.n_updates += 1
        if layer != self._layer:
            raise ValueError("another layer's tokens")
        before = self._kept
        return torch.cat([before[0], keys], -2), torch.cat([before[1], values], -2)


def computes_the_same(module: nn.Module, form: AttentionForm) -> bool:
    """Try it in float32, where all but the order of sums is to agree, and in 16 bits where roundings are.

    Norms of queries and keys say in which: with weights of another dtype they give another.
    """
    own = torch.bfloat16 if form.norms is None else next(form.norms[0].parameters()).dtype
    tries = [(torch.float32, size) for size in _SIZES] + ([(own, 1.0)] if own is not torch.float32 else [])
    was_training = module.training
    module.eval()
    try:
        with torch.inference_mode(False), torch.no_grad():
            return all(_is_same(module, form, dtype, size) for dtype, size in tries)
    finally:
        module.train(was_training)


def _is_same(module: Any, form: AttentionForm, dtype: torch.dtype, size: float) -> bool:
    random = torch.Generator().manual_seed(0)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random)

    products = [numbers(_N_TEXTS, 1, layer.out_features) for layer in (form.q, form.k, form.v)]
    before = numbers(_N_TEXTS, form.n_heads, _N_BEFORE, form.key_size) * size
    angles = numbers(_N_TEXTS, 1, (form.rotary or form.key_size) // 2).repeat(1, 1, 2)
    values = numbers(_N_TEXTS, form.n_heads, _N_BEFORE, form.value_size)
    sizes = (size, size, 1.0)
    q, k, v = ((product * scale).to(dtype) for product, scale in zip(products, sizes, strict=True))

    def gives(product: torch.Tensor) -> Fake:
        return lambda x, bias: product.clone()

    layers = {
        name: child for name, child in form.children.items() if child in (form.q, form.k, form.v, form.o)
    }
    shown: dict[nn.Module, Fake] = {
        form.q: gives(q),
        form.k: gives(k),
        form.v: gives(v),
        form.o: lambda x, bias: x,
    }
    fakes = {name: shown[layer] for name, layer in layers.items()}
    caches = [_Cache(before.to(dtype), values.to(dtype), module.layer_idx) for _ in range(2)]
    named = {
        "hidden_states": torch.zeros(_N_TEXTS, 1, form.q.in_features, dtype=dtype),
        "position_embeddings": (angles.cos().to(dtype), angles.sin().to(dtype)),
        "attention_mask": None,
    }
    positions = {"position_ids": torch.full((_N_TEXTS, 1), _FAR)}
    with instead_of_products(layers, fakes):
        try:
            expected = module(**named, **positions, **{form.cache: caches[0]})
            found = step(module, form, named | {form.cache: caches[1]})
        except ERRORS:
            return False
    if type(expected) is not tuple or len(expected) != 2 or expected[1] is not None or found is None:
        return False
    y = expected[0]
    if y.dtype is not dtype or y.shape != found.shape or any(cache.n_updates != 1 for cache in caches):
        return False
    apart = (y.float() - found.float()).abs().max() / y.float().abs().max()
    return bool(apart <= (_MOST_APART if dtype is torch.float32 else _MOST_APART_ROUNDED))
