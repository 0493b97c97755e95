"""Layers whose tokens are computed ahead: what is done with inputs, caches and threads on the way counts."""

import copy
import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from fused_models import (
    HEADS,
    called,
    counted_layers,
    is_same,
    load,
    run,
    without_layers,
)
from torch import nn
from transformers import DynamicCache, StaticCache

from spqfmt.kernels.context import Context, using

N_LAYERS = 2


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Any:
    changed = HEADS | {"num_hidden_layers": 3}
    return load(tmp_path_factory.mktemp("llama"), "LlamaConfig", **changed)


@pytest.fixture(autouse=True)
def n_at_once(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    return counted_layers(monkeypatch)


def test_what_a_layer_is_given_counts(llama: Any, n_at_once: list[int]) -> None:
    """A layer with a hook is computed by itself: the hook may change its output, in place too, or what is behind it."""

    def in_place(module: Any, given: Any, y: torch.Tensor) -> None:
        y.mul_(1.5)

    plain = run(llama, DynamicCache(config=llama.config))
    for hook in (in_place, lambda module, given, y: y * 1.5, lambda module, given, y: y.clone()):
        run(llama, DynamicCache(config=llama.config))
        n_at_once.clear()
        handle = llama.model.layers[0].register_forward_hook(hook)
        try:
            assert is_same(llama)
        finally:
            handle.remove()
        assert n_at_once == [1, 2] * 6
    n_at_once.clear()
    assert torch.equal(run(llama, DynamicCache(config=llama.config)), plain)
    assert n_at_once == [3] * 6


def test_hooks_may_change_the_layers_behind(llama: Any) -> None:
    weight = llama.model.layers[2].input_layernorm.weight
    before = weight.detach().clone()

    def as_before(*_: Any) -> None:
        weight.data.copy_(before)

    def three_times(*_: Any) -> None:
        weight.data.mul_(3)

    first = llama.model.layers[0]
    handles = [first.register_forward_pre_hook(as_before), first.register_forward_hook(three_times)]
    try:
        assert is_same(llama)
    finally:
        for handle in handles:
            handle.remove()
        weight.data.copy_(before)


def test_who_appends_to_a_cache_in_another_way_is_called(
    llama: Any, n_at_once: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def counting(real: Callable[..., Any], n: list[int]) -> Callable[..., Any]:
        def update(*given: Any, **named: Any) -> Any:
            n.append(1)
            return real(*given, **named)

        return update

    calls: list[int] = []
    cache = DynamicCache(config=llama.config)
    cache.update = counting(cache.update, calls)
    run(llama, cache)
    assert len(calls) == 3 * 7
    calls.clear()
    monkeypatch.setattr(DynamicCache, "update", counting(DynamicCache.update, calls))
    run(llama, DynamicCache(config=llama.config))
    assert len(calls) == 3 * 7
    monkeypatch.undo()
    assert not n_at_once


def test_a_class_whose_forward_is_replaced(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    own = type(llama.model.layers[1])._own
    real, calls = own.forward, []

    def forward(self: Any, *given: Any, **named: Any) -> Any:
        calls.append(1)
        return real(self, *given, **named)

    monkeypatch.setattr(own, "forward", forward)
    run(llama, DynamicCache(config=llama.config), n_tokens=1)
    assert len(calls) == 2 * 3


def test_a_forward_that_somebody_has_kept(tmp_path: Path) -> None:
    """It is called when the module's class is its own again, since something was set in it."""
    model = load(tmp_path, "LlamaConfig")
    expected = run(model, DynamicCache(config=model.config))
    for part in (
        model.model.layers[0],
        model.model.layers[0].self_attn,
        model.model.layers[0].mlp,
        model.model.norm,
    ):
        kept = part.forward
        part.forward = lambda *given, kept=kept, **named: kept(*given, **named)
        # What is the class's own again rounds as that does.
        assert (run(model, DynamicCache(config=model.config)) - expected).abs().max() < 0.05 * expected.std()
    norm = model.model.layers[1].input_layernorm
    kept = norm.forward
    norm.variance_epsilon = 5.0
    x = torch.ones(1, 1, norm.weight.numel(), dtype=norm.weight.dtype)
    assert torch.equal(kept(x), type(norm).forward(norm, x))
    model.model.layers[1].register_forward_pre_hook(lambda module, given: setattr(module, "seen", given))
    run(model, DynamicCache(config=model.config))


def test_a_cache_is_saved(llama: Any) -> None:
    cache = DynamicCache(config=llama.config)
    run(llama, cache)
    file = io.BytesIO()
    torch.save(cache, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    assert all(torch.equal(a.keys, b.keys) for a, b in zip(again.layers, cache.layers, strict=True))
    with torch.inference_mode():
        token = torch.full((2, 1), 7)
        assert torch.equal(called(llama, token, again).logits, called(llama, token, cache).logits)


def test_layers_in_another_order(llama: Any, n_at_once: list[int]) -> None:
    run(llama, DynamicCache(config=llama.config))
    n_at_once.clear()
    own = list(llama.model.layers)
    llama.model.layers = nn.ModuleList([own[0], own[2], own[1]])
    try:
        assert is_same(llama)
    finally:
        llama.model.layers = nn.ModuleList(own)
    assert n_at_once == [3] + [1] * (2 + 3 * 5)
    assert is_same(llama)
    assert n_at_once[-1] == 3


def test_a_layer_that_is_left_out_has_done_nothing(llama: Any, n_at_once: list[int]) -> None:
    """It was computed ahead, and nobody sees that."""
    n_layers = llama.config.num_hidden_layers
    caches = [DynamicCache(config=llama.config) for _ in range(2)]
    found = []
    for context, cache in zip((nullcontext, without_layers), caches, strict=True):
        with context():
            run(llama, cache, n_tokens=2)
            n_at_once.clear()
            llama.config.num_hidden_layers = 2
            try:
                with torch.inference_mode():
                    found.append([called(llama, torch.full((2, 1), 7), cache).logits for _ in range(3)])
            finally:
                llama.config.num_hidden_layers = n_layers
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    for a, b in zip(caches[0].layers, caches[1].layers, strict=True):
        assert torch.equal(a.keys, b.keys)
    assert [layer.keys.shape[2] for layer in caches[0].layers] == [11, 11, 8]


OTHERS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "a window": lambda config: {
        "new_cache": lambda: DynamicCache(config=type(config)(**config.to_dict() | {"sliding_window": 4}))
    },
    "room from the start": lambda config: {"new_cache": lambda: StaticCache(config=config, max_cache_len=32)},
    "a class of its own": lambda config: {"new_cache": lambda: OwnCache(config=config)},
}


class OwnCache(DynamicCache):
    def update(self, *given: Any, **named: Any) -> Any:
        """Do something else with it."""
        keys, values = super().update(*given, **named)
        return keys * 0.5, values


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("other", OTHERS)
def test_other_caches_and_wishes_are_for_torch(other: str, llama: Any, n_at_once: list[int]) -> None:
    assert is_same(llama)
    assert n_at_once[-1] == 3
    n_at_once.clear()
    with torch.inference_mode():
        assert is_same(llama, **OTHERS[other](llama.config))
    assert not n_at_once


def asked(llama: Any, ids: list[list[int]], **options: Any) -> torch.Tensor:
    """Logits of the last tokens of some texts, behind the others."""
    mask = options.get("attention_mask")
    before = {} if mask is None else {"attention_mask": mask[:, :-1]}
    cache = DynamicCache(config=llama.config)
    called(llama, torch.tensor(ids)[:, :-1], cache, **before)
    found: torch.Tensor = called(llama, torch.tensor(ids)[:, -1:], cache, **options).logits
    return found


def test_masks_gradients_and_contexts_are_for_torch(llama: Any, n_at_once: list[int]) -> None:
    ids = [[9, 9, 5, 6, 7], [5, 6, 7, 8, 9]]
    padded = {"attention_mask": torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])}
    wishes: list[tuple[Callable[[], Any], dict[str, Any]]] = [
        (nullcontext, padded),
        (torch.enable_grad, {}),
        (lambda: torch.autocast("cpu", torch.bfloat16), {}),
        (lambda: using(Context()), {}),
    ]
    with torch.no_grad():
        run(llama, DynamicCache(config=llama.config))
        n_at_once.clear()
        asked(llama, ids)
        assert n_at_once == [3]
        for context, options in wishes:
            with context():
                found = asked(llama, ids, **options)
                with without_layers():
                    assert torch.equal(asked(llama, ids, **options), found)
    assert n_at_once == [3]


def test_hidden_states_are_each_layers(tmp_path: Path) -> None:
    model = load(tmp_path, "LlamaConfig")
    cache = DynamicCache(config=model.config)
    with torch.inference_mode():
        called(model, torch.tensor([[5, 6, 7]]), cache)
        found = []
        for context, its in ((nullcontext, copy.deepcopy(cache)), (without_layers, cache)):
            with context():
                outputs = called(model, torch.tensor([[8]]), its, output_hidden_states=True)
                found.append(outputs.hidden_states)
    assert len(found[0]) == N_LAYERS + 1
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert len({t.data_ptr() for t in found[0]}) == N_LAYERS + 1


def test_a_cache_that_is_cropped_copied_or_shared(llama: Any, n_at_once: list[int]) -> None:
    """Between tokens: what others keep of it stays as it is."""

    def history() -> list[torch.Tensor]:
        run(llama, DynamicCache(config=llama.config))
        n_at_once.clear()
        cache = DynamicCache(config=llama.config)
        found = [run(llama, cache)]
        other, keys = copy.deepcopy(cache), cache.layers[1].keys
        before = keys.clone()
        cache.crop(-3)
        with torch.inference_mode():
            for token in (4, 5):
                found += [called(llama, torch.full((2, 1), token), one).logits for one in (cache, other)]
            cache.reorder_cache(torch.tensor([1, 0]))
            found.append(called(llama, torch.full((2, 1), 9), cache).logits)
        assert torch.equal(keys, before)
        return found

    found = history()
    assert set(n_at_once) == {3}
    with without_layers():
        expected = history()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_threads_with_one_model(llama: Any) -> None:
    with without_layers():
        expected = run(llama, DynamicCache(config=llama.config))
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(run, llama, DynamicCache(config=llama.config)) for _ in range(12)]
        assert all(torch.equal(job.result(), expected) for job in jobs)
