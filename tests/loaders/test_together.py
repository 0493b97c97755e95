"""Answers that are made together are what each would be alone."""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
import transformers

import spqfmt
from spqfmt.loaders import Sampling, generate, load_model
from spqfmt.loaders.answering import Answering
from spqfmt.loaders.together import can_read_in_pieces, can_step_together, step
from spqfmt.models.caches import cache_name

WANTED = [
    ("Hello", Sampling(20)),
    ("What is the longest river, and where does it end?", Sampling(9)),
    ("Hi", Sampling(30, temperature=1.5, seed=3)),
    ("a b c", Sampling(25, temperature=0.8, top_p=0.7, top_k=30, seed=(1 << 64) - 1)),
]
WAYS = [("llama", torch.float32), ("llama", torch.bfloat16), ("mistral", torch.float32)]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Loads a small model from its codes. Windows of mistral are shorter than its answers.

    Widths are whole vectors: torch's functions of single elements have other last bits for what is left over of one.
    """
    root = tmp_path_factory.mktemp("together")

    def load(name: str, dtype: torch.dtype) -> tuple[Any, Any]:
        path = root / f"{name}.spq"
        if not path.exists():
            config = tiny.configurations()[name]
            config.intermediate_size = 192
            with torch.random.fork_rng(devices=[]), tiny.quiet():
                torch.manual_seed(0)
                transformers.AutoModelForCausalLM.from_config(config).save_pretrained(root / name)
                tiny.byte_tokenizer().save_pretrained(root / name)
            spqfmt.pack(root / name, path, method="rtn", bits=8, group_size=16)
        return load_model(path, dtype=dtype, packed=True)

    return load


def answered_together(loaded: tuple[Any, Any], wanted: list[tuple[str, Sampling]]) -> list[Any]:
    """An answer begins every three steps."""
    model, tokenizer = loaded
    waiting = list(enumerate(wanted))
    under_way: dict[int, Answering] = {}
    found: dict[int, Any] = {}
    n_steps = 0
    while waiting or under_way:
        if waiting and n_steps % 3 == 0:
            number, (prompt, how) = waiting.pop(0)
            ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
            under_way[number] = Answering(model, tokenizer, ids, how)
            under_way[number].read()
        n_steps += 1
        answers = list(under_way.values())
        logits = step(model, [a.token for a in answers], [a.cache for a in answers])
        for row, answering in zip(logits.split(1), answers, strict=True):
            answering.take(row)
        for number in [n for n, answering in under_way.items() if answering.is_over]:
            found[number] = under_way.pop(number).generation()
    return [found[number] for number in range(len(wanted))]


@pytest.mark.parametrize(("name", "dtype"), WAYS)
def test_answers_are_those_that_each_gets_alone(
    packed: Callable[..., Any], name: str, dtype: torch.dtype
) -> None:
    loaded = packed(name, dtype)
    assert can_step_together(loaded[0])
    alone = [generate(*loaded, prompt, how, chat=False) for prompt, how in WANTED]
    stop = alone[0].text[5:7]
    wanted = [*WANTED, ("Hello", Sampling(20, stop=(stop,)))]
    found = answered_together(loaded, wanted)
    assert [(g.text, g.n_prompt_tokens, g.n_new_tokens, g.finish) for g in found[:-1]] == [
        (g.text, g.n_prompt_tokens, g.n_new_tokens, g.finish) for g in alone
    ]
    assert (found[-1].text, found[-1].finish) == (alone[0].text[: alone[0].text.index(stop)], "stop")


@pytest.mark.parametrize(("name", "dtype"), WAYS)
def test_prompts_in_pieces_are_read_as_generate_reads_them(
    packed: Callable[..., Any], name: str, dtype: torch.dtype
) -> None:
    model, tokenizer = packed(name, dtype)
    assert can_read_in_pieces(model)
    ids = tokenizer("a prompt of several pieces and a rest", return_tensors="pt")["input_ids"]
    answering = Answering(model, tokenizer, ids, Sampling(12))
    n_pieces = 0
    while answering.is_reading:
        answering.read(5)
        n_pieces += 1
    while not answering.is_over:
        answering.take(step(model, [answering.token], [answering.cache]))
    settings = transformers.GenerationConfig(max_new_tokens=12, do_sample=False, prefill_chunk_size=5)
    whole = model.generate(ids, generation_config=settings)
    assert n_pieces == -(-ids.shape[1] // 5)
    assert torch.equal(answering._ids, whole)


@pytest.mark.parametrize(("name", "dtype"), WAYS)
def test_logits_are_the_same_to_the_bit_but_for_windows(
    packed: Callable[..., Any], name: str, dtype: torch.dtype
) -> None:
    model, _ = packed(name, dtype)
    prompts = [torch.arange(n)[None] + n for n in (3, 40, 17)]

    def read() -> list[Any]:
        caches = [transformers.DynamicCache(config=model.config) for _ in prompts]
        for ids, cache in zip(prompts, caches, strict=True):
            model(ids, use_cache=True, **{cache_name(model): cache})
        return caches

    with torch.inference_mode():
        alone = [
            model(torch.tensor([[9]]), use_cache=True, **{cache_name(model): cache}).logits[:, -1]
            for cache in read()
        ]
        together = step(model, [9, 9, 9], read())
    # Alone, a token in a window has a mask, with which attention adds up in another order.
    tolerance = 1e-5 if name == "mistral" else 0
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=tolerance)
    assert model.config._attn_implementation == "sdpa"


def test_models_that_cannot_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1}
    with tiny.quiet():
        mamba = transformers.MambaForCausalLM(transformers.MambaConfig(**small, state_size=4)).eval()
        bloom = transformers.BloomForCausalLM(transformers.BloomConfig(**small, n_head=2, n_layer=1)).eval()
        llama = transformers.AutoModelForCausalLM.from_config(tiny.configurations()["llama"]).eval()
    assert not can_step_together(mamba)  # states in place of keys and values
    assert not can_step_together(bloom)  # distances in its mask
    assert can_step_together(llama)
    assert can_read_in_pieces(llama)
    forgets = llama.register_forward_pre_hook(
        lambda _, args, given: (args, {**given, cache_name(llama): None}), with_kwargs=True
    )
    assert not can_read_in_pieces(llama)
    forgets.remove()
    # What comes out otherwise is noticed: here rows that are attended to in another order.
    monkeypatch.setattr(
        "spqfmt.loaders.together.zip",
        lambda *rows, **_: (row[::-1] for row in zip(*rows, strict=True)),
        raising=False,
    )
    assert not can_step_together(llama)


def test_a_cancelled_answer_ends(packed: Callable[..., Any]) -> None:
    model, tokenizer = packed("llama", torch.float32)
    cancelled: list[int] = []
    ids = torch.arange(5)[None]
    answering = Answering(model, tokenizer, ids, Sampling(20), cancelled=lambda: bool(cancelled))
    answering.read()
    assert not answering.is_over
    cancelled.append(1)
    answering.take(step(model, [answering.token], [answering.cache]))
    assert answering.is_over
    assert (answering.generation().n_new_tokens, answering.generation().finish) == (2, "cancelled")


def test_keys_and_values_go_with_their_answer(packed: Callable[..., Any]) -> None:
    """At once, and not when Python next looks for circles: each may have hundreds of MiB."""
    model, tokenizer = packed("llama", torch.float32)
    gc.collect()
    gc.disable()
    try:
        answers = [Answering(model, tokenizer, torch.arange(5)[None], Sampling(20)) for _ in range(2)]
        for answering in answers:
            answering.read()
        for n in (2, 2, 1):
            logits = step(model, [a.token for a in answers[:n]], [a.cache for a in answers[:n]])
            for row, answering in zip(logits.split(1), answers, strict=False):
                answering.take(row)
        layers = [weakref.ref(layer) for a in answers for layer in a.cache.layers]
        del answers, answering
        assert [layer() for layer in layers] == [None] * len(layers)
    finally:
        gc.enable()
