"""One step of several answers: layers see the tokens of all at once, attention each answer's with its own cache.

Rows so need no padding, answers come and go between steps, and an answer is what it would be alone: to the bit where
layers give a token what they would give it alone, as packed ones do. Padded rows would not be: attention adds up in
another order then (spec/decisions/0051).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from transformers.cache_utils import CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from spqfmt.importers._quiet import quiet_transformers
from spqfmt.loaders.packed.fused.attentions import FusedAttention
from spqfmt.loaders.packed.fused.cache import make_roomy
from spqfmt.models.caches import cache_name

_ATTENTION = "spqfmt_together"
_ROWS = "_spqfmt_rows"
_TOLERANCE = 0.05
"""In standard deviations of logits. Floats that are added up in another order differ by far less, a row that sees
another's tokens by more."""
_UNGROUPED = SimpleNamespace(is_causal=False)


class _RowsLayer(CacheLayerMixin):  # type: ignore[misc]  # transformers is untyped here
    """One layer of several caches. What attention is to see of each hangs on the tensors that go there."""

    is_sliding = False

    def __init__(self, rows: Sequence[Any]) -> None:
        super().__init__()
        self._rows = rows
        for row in rows:
            make_roomy(row)
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing: the rows' layers have begun."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append row i of both, [n_rows, n_heads, 1, size], to cache i."""
        found = [
            row.update(key_states[i : i + 1], value_states[i : i + 1]) for i, row in enumerate(self._rows)
        ]
        setattr(key_states, _ROWS, [keys for keys, _ in found])
        setattr(value_states, _ROWS, [values for _, values in found])
        return key_states, value_states

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Give what is not used: there is no mask."""
        return query_length, 0

    def get_seq_length(self) -> int:
        """Tokens of the longest row; positions are given."""
        return max(int(row.get_seq_length()) for row in self._rows)

    def get_max_length(self) -> int:
        """Return -1: no maximum."""
        return -1


def _attend(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, **more: Any
) -> tuple[torch.Tensor, None]:
    """Attention of row i of `query`, [n_rows, n_heads, 1, size], to cache i: [n_rows, 1, n_heads, size].

    AttributeError where a model's code has made other tensors of keys and values before.
    """
    keys, values = getattr(key, _ROWS), getattr(value, _ROWS)
    n_rows, n_heads, _, size = query.shape
    if isinstance(module, FusedAttention):
        rows = [query[i : i + 1].contiguous() for i in range(n_rows)]
        seen = [module.attended(q, keys=keys[i], values=values[i]) for i, q in enumerate(rows)]
        return torch.cat(seen).view(n_rows, 1, n_heads, -1), None
    if query.dtype == torch.float32 or n_heads == key.shape[1] or query.device.type != "cpu":
        found = [
            sdpa_attention_forward(module, query[i : i + 1], keys[i], values[i], None, **more)[0]
            for i in range(n_rows)
        ]
        return torch.cat(found), None
    # Heads that share keys as if they were tokens: a fifth of the time for numbers of 16 bits, and the same ones.
    # For those of 32 bits it is no faster, and other ones.
    packed = query.view(n_rows, key.shape[1], -1, size)
    more["is_causal"] = False
    found = [
        sdpa_attention_forward(_UNGROUPED, packed[i : i + 1], keys[i], values[i], None, **more)[0].transpose(
            1, 2
        )
        for i in range(n_rows)
    ]
    return torch.cat(found).reshape(n_rows, 1, n_heads, -1), None


transformers.AttentionInterface.register(_ATTENTION, _attend)


@contextmanager
def _attention(config: Any) -> Iterator[None]:
    # Under this name transformers makes no masks: a row's token sees all of its cache.
    own = config._attn_implementation
    config._attn_implementation = _ATTENTION
    try:
        yield
    finally:
        config._attn_implementation = own


@contextmanager
def _past(model: Any, caches: Sequence[Any]) -> Iterator[Any]:
    """What the model is given as its cache while it makes a step."""
    if len(caches) == 1:
        # As whoever generates one text does it, which is faster.
        yield caches[0]
        return
    with _attention(model.config):
        rows = zip(*(cache.layers for cache in caches), strict=True)
        yield transformers.Cache(layers=[_RowsLayer(layers) for layers in rows])


def step(model: Any, tokens: Sequence[int], caches: Sequence[Any]) -> torch.Tensor:
    """Logits [n_rows, n_tokens] behind one more token of each answer, whose caches take it up.

    `can_step_together` must have said so of the model. What is raised leaves the caches of no use.
    """
    positions = [[int(cache.get_seq_length())] for cache in caches]
    device = model.device
    with torch.inference_mode(), _past(model, caches) as past:
        outputs = model(
            input_ids=torch.tensor([[token] for token in tokens], device=device),
            position_ids=torch.tensor(positions, device=device),
            use_cache=True,
            return_dict=True,
            **{cache_name(model): past},
        )
    return outputs.logits[:, -1]  # type: ignore[no-any-return]


def can_step_together(model: Any) -> bool:
    """Whether answers of this model can be made in common steps, which five short runs of it tell.

    Not where something else than keys and values is kept of earlier tokens, positions are no numbers that can be given,
    or attention is not transformers' common one.
    """
    if getattr(model.config, "_attn_implementation", None) != "sdpa" or model.config.is_encoder_decoder:
        return False
    try:
        with quiet_transformers(), torch.inference_mode():
            return _same_together(model)
    except Exception:  # noqa: BLE001  # whatever a model's code raises, it does not take it
        return False


def can_read_in_pieces(model: Any) -> bool:
    """Whether a prompt may be given piece by piece to a model that `can_step_together`, which three runs tell."""
    n_ids = int(model.get_input_embeddings().num_embeddings)
    ids = torch.tensor([[(7 * i + 3) % n_ids for i in range(9)]], device=model.device)
    try:
        with quiet_transformers(), torch.inference_mode():
            cache, name = transformers.DynamicCache(config=model.config), cache_name(model)
            for piece in (ids[:, :5], ids[:, 5:]):
                found = model(input_ids=piece, use_cache=True, **{name: cache}).logits[:, -1].float()
            whole = model(input_ids=ids, use_cache=False).logits[:, -1].float()
    except Exception:  # noqa: BLE001  # as above
        return False
    return _alike(found, whole)


def _alike(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((found - expected).square().mean().sqrt() <= _TOLERANCE * expected.std())


def _same_together(model: Any) -> bool:
    n_ids = int(model.get_input_embeddings().num_embeddings)
    prompts = [[(7 * i + 3) % n_ids for i in range(n)] for n in (3, 8)]
    tokens, name = [5 % n_ids, 11 % n_ids], cache_name(model)

    def read(prompt: list[int]) -> Any:
        cache = transformers.DynamicCache(config=model.config)
        model(input_ids=torch.tensor([prompt], device=model.device), use_cache=True, **{name: cache})
        return cache

    caches = [read(prompt) for prompt in prompts]
    if not all(
        type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for cache in caches for layer in cache.layers
    ):
        return False
    together = step(model, tokens, caches).float()
    alone = torch.cat(
        [
            model(input_ids=torch.tensor([[*prompt, token]], device=model.device), use_cache=False).logits[
                :, -1
            ]
            for prompt, token in zip(prompts, tokens, strict=True)
        ]
    ).float()
    return _alike(together, alone)
