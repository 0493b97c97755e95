"""Generated text, streamed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from spqfmt.errors import SpqError
from spqfmt.loaders import generate, load_model
from spqfmt.loaders.generate import encode_prompt

TEMPLATE = (
    "{% for m in messages %}<s>{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}</s>{% endif %}"
)


@pytest.fixture
def loaded(tiny_folder: Callable[[str], Path]) -> tuple[Any, Any]:
    return load_model(tiny_folder("llama"))


def test_greedy_text_is_the_likeliest_token_each_time(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    ids = tokenizer("Hello", return_tensors="pt")["input_ids"]
    for _ in range(12):
        with torch.no_grad():
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], 1)
    pieces: list[str] = []
    result = generate(model, tokenizer, "Hello", max_new_tokens=12, write=pieces.append)
    assert result.text == "".join(pieces) == tokenizer.decode(ids[0, 5:], skip_special_tokens=True)
    assert (result.n_prompt_tokens, result.n_new_tokens) == (5, 12)
    assert 0 < result.first_token_seconds <= result.total_seconds
    assert result.tokens_per_second > 0


def test_sampling_repeats_by_seed_and_leaves_the_callers_randomness(loaded: tuple[Any, Any]) -> None:
    torch.manual_seed(7)
    state = torch.get_rng_state()
    texts = [
        generate(*loaded, "Hello", max_new_tokens=20, temperature=1.5, seed=seed).text for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]
    assert torch.equal(torch.get_rng_state(), state)


def test_a_chat_template_is_used_when_there_is_one(loaded: tuple[Any, Any]) -> None:
    _, tokenizer = loaded
    plain = encode_prompt(tokenizer, "Hi")[0].tolist()
    assert plain == tokenizer("Hi")["input_ids"]
    tokenizer.chat_template = TEMPLATE
    assert encode_prompt(tokenizer, "Hi")[0].tolist() == [256, *plain, 257]
    assert encode_prompt(tokenizer, "Hi", chat=False)[0].tolist() == plain


def test_no_template_and_no_text(loaded: tuple[Any, Any]) -> None:
    with pytest.raises(SpqError, match="no chat template"):
        generate(*loaded, "Hi", chat=True)
    with pytest.raises(SpqError, match="the prompt has no tokens"):
        generate(*loaded, "")
