"""Perplexity and KL against plain computations."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from spqfmt.errors import SpqError
from spqfmt.loaders import encode_text, evaluate, load_model

IDS = torch.tensor([(i * i * 31 + i * 7 + 3) % 256 for i in range(101)])


@pytest.fixture(scope="module")
def llama(tiny_folder: Callable[[str], Path]) -> Any:
    return load_model(tiny_folder("llama"))[0]


@pytest.fixture(scope="module")
def other(tiny_folder: Callable[[str], Path]) -> Any:
    return load_model(tiny_folder("llama_tied"))[0]


def plain_perplexity(model: Any, window: int, stride: int) -> tuple[float, int]:
    """The loop of transformers' own guide to perplexity: labels of -100 for what is only context."""
    total, count, previous = 0.0, 0, 0
    for begin in range(0, len(IDS), stride):
        end = min(begin + window, len(IDS))
        inputs = IDS[None, begin:end]
        labels = inputs.clone()
        labels[:, : -(end - previous)] = -100
        n = int((labels[:, 1:] != -100).sum())
        if n:
            with torch.no_grad():
                total += model(inputs, labels=labels).loss.item() * n
            count += n
        previous = end
        if end == len(IDS):
            break
    return math.exp(total / count), count


@pytest.mark.parametrize(
    ("window", "stride"), [(128, 128), (32, 32), (32, 16), (32, 5), (33, 32), (2, 1), (101, 50)]
)
def test_perplexity_is_the_plain_computation(llama: Any, window: int, stride: int) -> None:
    expected, count = plain_perplexity(llama, window, stride)
    result = evaluate(llama, IDS, window=window, stride=stride)
    assert result.perplexity == pytest.approx(expected, rel=1e-5)
    assert (result.tokens, result.stride, result.kl) == (count, stride, None)


@pytest.mark.parametrize("name", ["gpt2", "opt", "gemma"])
def test_other_heads(tiny_folder: Callable[[str], Path], name: str) -> None:
    model, _ = load_model(tiny_folder(name))
    expected, _ = plain_perplexity(model, 32, 16)
    assert evaluate(model, IDS, window=32, stride=16).perplexity == pytest.approx(expected, rel=1e-5)


def test_overlap_scores_all_tokens_but_the_first(llama: Any) -> None:
    assert evaluate(llama, IDS, window=32, stride=16).tokens == 100
    assert evaluate(llama, IDS, window=32, stride=32).tokens == 97  # four windows, each with a first token


def test_the_default_is_whole_windows_of_what_the_model_takes(llama: Any) -> None:
    result = evaluate(llama, IDS.repeat(3))
    assert (result.stride, result.tokens) == (128, 303 - 3)


def test_kl_to_itself_is_zero(llama: Any) -> None:
    assert evaluate(llama, IDS, reference=llama, window=32, stride=16).kl == 0


def test_kl_is_the_plain_computation(llama: Any, other: Any) -> None:
    result = evaluate(llama, IDS, reference=other, window=101)
    with torch.no_grad():
        log_q = llama(IDS[None]).logits[0, :-1].double().log_softmax(-1)
        log_p = other(IDS[None]).logits[0, :-1].double().log_softmax(-1)
    expected = (log_p.exp() * (log_p - log_q)).sum(-1).mean().item()
    assert expected > 1e-3
    assert result.kl == pytest.approx(expected, rel=1e-4)


def test_a_model_that_computes_no_numbers_has_no_perplexity(llama: Any) -> None:
    hook = llama.lm_head.register_forward_hook(lambda module, inputs, output: output * math.nan)
    found = evaluate(llama, IDS, window=32)
    hook.remove()
    assert math.isnan(found.perplexity)


def test_batches_and_runs_agree(llama: Any, other: Any) -> None:
    one = evaluate(llama, IDS, reference=other, window=16, stride=8)
    assert evaluate(llama, IDS, reference=other, window=16, stride=8) == one
    many = evaluate(llama, IDS, reference=other, window=16, stride=8, batch=5)
    assert many.tokens == one.tokens
    assert many.perplexity == pytest.approx(one.perplexity, rel=1e-6)
    assert many.kl == pytest.approx(one.kl, rel=1e-5)


def test_a_cut_text_is_a_shorter_text(llama: Any) -> None:
    assert evaluate(llama, IDS, max_tokens=40, window=16) == evaluate(llama, IDS[:40], window=16)


def test_logits_are_kept_for_scored_tokens_of_one_window_only(
    llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    head = llama.lm_head
    hook = head.register_forward_hook(
        lambda module, inputs, output: rows.append(output.shape[0] * output.shape[1])
    )
    evaluate(llama, IDS, window=32, stride=8)
    hook.remove()
    assert rows[0] == 32
    assert set(rows[1:-1]) == {9}


def test_a_reference_of_another_vocabulary(llama: Any, other: Any) -> None:
    small = load_small(other)
    with pytest.raises(SpqError, match="the reference has a vocabulary of 100, the model one of 264"):
        evaluate(llama, IDS % 100, reference=small, window=32)


def load_small(model: Any) -> Any:
    config = type(model.config).from_dict(model.config.to_dict() | {"vocab_size": 100, "pad_token_id": None})
    return type(model)(config).eval()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": 1}, "window 1"),
        ({"window": 129}, "window 129: this model takes 2 to 128 tokens"),
        ({"window": 16, "stride": 17}, "stride 17: must be 1 to the window's 16 tokens"),
        ({"stride": 0}, "stride 0"),
        ({"max_tokens": 1}, "the text has 1 tokens"),
    ],
)
def test_settings_that_make_no_sense(llama: Any, settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(llama, IDS, **settings)


def test_text_becomes_tokens_once(tiny_folder: Callable[[str], Path]) -> None:
    _, tokenizer = load_model(tiny_folder("llama"))
    ids = encode_text(tokenizer, "abc\n" * 100)
    assert ids.shape == (400,)
    assert tokenizer.decode(ids) == "abc\n" * 100
