"""Tied tensors that a model shares by itself are not read twice, and mostly the class alone says which they are."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers

from spqfmt.loaders import lazy
from spqfmt.loaders.tensors import LazyTensor, StoredModel

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 32}


def llama(**more: Any) -> Any:
    return transformers.LlamaConfig(**SIZES, num_attention_heads=2, num_key_value_heads=2, **more)


def gpt2(**more: Any) -> Any:
    return transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=32, **more)


def stored(ties: dict[str, str]) -> StoredModel:
    def tensor(tied_to: str | None) -> LazyTensor:
        return LazyTensor((32, 16), "f32", tied_to, read=lambda *_: torch.zeros(32, 16))

    names = {**dict.fromkeys(ties.values()), **ties}
    return StoredModel({name: tensor(tied_to) for name, tied_to in names.items()}, {}, None)


@pytest.mark.parametrize(
    ("config", "model_class", "head", "embedding"),
    [
        (llama, transformers.LlamaForCausalLM, "lm_head.weight", "model.embed_tokens.weight"),
        (gpt2, transformers.GPT2LMHeadModel, "lm_head.weight", "transformer.wte.weight"),
    ],
)
@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("is_reversed", [True, False])
def test_the_tensors_that_a_model_shares_by_itself(
    config: Callable[..., Any],
    model_class: Any,
    head: str,
    embedding: str,
    is_tied: bool,
    is_reversed: bool,
) -> None:
    ties = {embedding: head} if is_reversed else {head: embedding}
    found = lazy._shared(stored(ties), model_class, config(tie_word_embeddings=is_tied))
    assert found == (set(ties) if is_tied else set())


def test_no_model_is_made_where_the_class_names_the_pairs() -> None:
    class Unmade(transformers.LlamaForCausalLM):  # type: ignore[misc]
        def __init__(self, config: Any) -> None:
            raise AssertionError(config)

    ties = {"lm_head.weight": "model.embed_tokens.weight"}
    assert lazy._shared(stored(ties), Unmade, llama(tie_word_embeddings=True)) == set(ties)
