"""Generated text, streamed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers
from tokenizers import processors

from spqfmt.errors import SpqError
from spqfmt.loaders import generate, load_model
from spqfmt.loaders.generate import encode_prompt
from spqfmt.loaders.settings import end_tokens

TEMPLATE = (
    "{% for m in messages %}<s>{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}</s>{% endif %}"
)


@pytest.fixture
def loaded(tiny_folder: Callable[[str], Path]) -> tuple[Any, Any]:
    return load_model(tiny_folder("llama"))


def greedy(loaded: tuple[Any, Any], n: int) -> list[int]:
    """The likeliest tokens after "Hello", one by one."""
    model, tokenizer = loaded
    ids = tokenizer("Hello", return_tensors="pt")["input_ids"]
    for _ in range(n):
        with torch.no_grad():
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], 1)
    return ids[0, -n:].tolist()


def test_greedy_text_is_the_likeliest_token_each_time(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    expected = greedy(loaded, 12)
    pieces: list[str] = []
    result = generate(model, tokenizer, "Hello", max_new_tokens=12, write=pieces.append)
    assert result.text == "".join(pieces) == tokenizer.decode(expected, skip_special_tokens=True)
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


@pytest.mark.parametrize("where", ["one", "list", "tokenizer"])
def test_every_end_that_the_source_names_stops_the_text(loaded: tuple[Any, Any], where: str) -> None:
    model, tokenizer = loaded
    expected = greedy(loaded, 8)
    end = next(i for i in range(1, 8) if expected[i] not in expected[:i])
    if where == "tokenizer":
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(expected[end])
    else:
        model.generation_config.eos_token_id = expected[end] if where == "one" else [257, expected[end]]
    result = generate(model, tokenizer, "Hello", max_new_tokens=8)
    assert result.n_new_tokens == end + 1
    assert result.text == tokenizer.decode(expected[: end + 1])


def test_a_string_that_the_generation_config_names_stops_the_text(
    tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder("llama"), folder)
    whole = generate(*load_model(folder), "Hello", max_new_tokens=12)
    string = next(c for c in whole.text[2:] if c not in whole.text[:2])
    file = folder / "generation_config.json"
    given = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(given | {"stop_strings": [string]}))
    result = generate(*load_model(folder), "Hello", max_new_tokens=12)
    assert result.text == whole.text[: whole.text.index(string) + 1]
    assert result.n_new_tokens < whole.n_new_tokens


def test_the_end_of_a_turn_is_what_the_template_writes(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>", "<|eot_id|>"]})
    tokenizer.add_tokens(["<end_of_turn>"])
    turn = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert end_tokens(model, tokenizer) == [257]
    chatml = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}<end_of_turn>"
    tokenizer.chat_template = chatml
    assert end_tokens(model, tokenizer) == [257, turn]
    tokenizer.chat_template = {"default": chatml, "tools": "<|eot_id|>"}
    assert end_tokens(model, tokenizer) == [257, turn, turn + 1]


@pytest.mark.parametrize(
    "setting",
    [
        {"num_beams": 4},
        {"eos_token_id": []},
        {"return_dict_in_generate": True, "output_scores": True},
        {"num_return_sequences": 3},
        {"repetition_penalty": 0},
        {"do_sample": True, "top_p": 0.1, "temperature": 3.0},
        {"penalty_alpha": 0.6, "top_k": 4},
        {"cache_implementation": "static", "max_length": 3, "min_new_tokens": 100},
        {"prompt_lookup_num_tokens": 3},
        {"eos_token_id": None, "pad_token_id": None},
    ],
    ids=",".join,
)
def test_greedy_text_whatever_the_generation_config_asks_for(
    tiny_folder: Callable[[str], Path], tmp_path: Path, setting: dict[str, Any]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder("llama"), folder)
    (folder / "generation_config.json").write_text(json.dumps(setting))
    loaded = load_model(folder)
    before = loaded[0].generation_config.to_dict()
    assert generate(*loaded, "Hello", max_new_tokens=6).text == loaded[1].decode(greedy(loaded, 6))
    assert loaded[0].generation_config.to_dict() == before


def test_what_the_tokenizer_puts_behind_a_text_is_not_continued(loaded: tuple[Any, Any]) -> None:
    _, tokenizer = loaded
    plain = tokenizer("Hi")["input_ids"]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=["<s>", "$A", "</s>"],
        pair=["<s>", "$A", "$B", "</s>"],
        special_tokens=[("<s>", 256), ("</s>", 257)],
    )
    assert encode_prompt(tokenizer, "Hi")[0].tolist() == [256, *plain]
    assert encode_prompt(tokenizer, "Hi</s>")[0].tolist() == [256, *plain, 257]
    assert encode_prompt(tokenizer, "Hi", ended=True)[0].tolist() == [256, *plain, 257]
    tokenizer.chat_template = TEMPLATE
    assert encode_prompt(tokenizer, "Hi")[0].tolist() == [256, *plain, 257]


@pytest.mark.parametrize("name", ["gpt2", "opt"])
def test_the_text_ends_where_the_table_of_positions_does(
    tiny_folder: Callable[[str], Path], name: str
) -> None:
    loaded = load_model(tiny_folder(name))
    loaded[0].generation_config.eos_token_id = None
    loaded[1].eos_token = None
    result = generate(*loaded, "x" * 120, max_new_tokens=30)
    assert (result.n_prompt_tokens, result.n_new_tokens) == (120, 8)
    with pytest.raises(SpqError, match="the prompt has 128 tokens, the model takes 128 with its answer"):
        generate(*loaded, "x" * 128)
    # Positions that are computed have no end.
    assert generate(*load_model(tiny_folder("llama")), "x" * 140, max_new_tokens=3).n_prompt_tokens == 140


def test_a_model_with_an_encoder_answers(tmp_path: Path) -> None:
    config = transformers.T5Config(
        vocab_size=264, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    with torch.random.fork_rng():
        torch.manual_seed(5)
        transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    tiny.byte_tokenizer().save_pretrained(tmp_path)
    model, tokenizer = load_model(tmp_path)
    ids = tokenizer("Hello", return_tensors="pt")["input_ids"]
    made = torch.zeros(1, 1, dtype=torch.long)
    for _ in range(5):
        with torch.no_grad():
            made = torch.cat([made, model(ids, decoder_input_ids=made).logits[:, -1:].argmax(-1)], 1)
    result = generate(model, tokenizer, "Hello", max_new_tokens=5)
    assert (result.text, result.n_new_tokens) == (tokenizer.decode(made[0, 1:]), 5)


def test_no_template_and_no_text(loaded: tuple[Any, Any]) -> None:
    with pytest.raises(SpqError, match="no chat template"):
        generate(*loaded, "Hi", chat=True)
    with pytest.raises(SpqError, match="the prompt has no tokens"):
        generate(*loaded, "")
