"""A cache with room holds what transformers' holds, whatever is done with it between tokens."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from spqfmt.loaders.packed.fused.cache import RoomyLayer, make_roomy


def numbers(n_tokens: int, n_texts: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(n_texts, 3, n_tokens, 4), torch.randn(n_texts, 3, n_tokens, 5)


def two(n_tokens: int) -> tuple[DynamicLayer, DynamicLayer]:
    layers, first = (DynamicLayer(), DynamicLayer()), numbers(n_tokens)
    for layer in layers:
        layer.update(*first)
    make_roomy(layers[0])
    assert type(layers[0]) is RoomyLayer
    return layers


def nothing(layer: Any) -> Any:
    return layer


def cropped(layer: Any) -> Any:
    layer.crop(-3)
    return layer


def reordered(layer: Any) -> Any:
    layer.reorder_cache(torch.tensor([1, 0]))
    return layer


def fewer(layer: Any) -> Any:
    layer.batch_select_indices(torch.tensor([-1]))
    return layer


def more(layer: Any) -> Any:
    layer.batch_repeat_interleave(2)
    return layer


def longer(layer: Any) -> Any:
    torch.manual_seed(layer.keys.shape[2])
    layer.update(*numbers(6, layer.keys.shape[0]))
    return layer


@pytest.mark.parametrize("n_tokens", [1, 30])
@pytest.mark.parametrize(
    "change", [nothing, copy.deepcopy, copy.copy, cropped, reordered, fewer, more, longer]
)
def test_it_holds_the_same(n_tokens: int, change: Callable[[Any], Any]) -> None:
    layers = two(n_tokens)
    kept = []
    for i in range(50):
        if i in (20, 21):
            layers = tuple(change(layer) for layer in layers)
        new = numbers(1, layers[0].keys.shape[0])
        found, expected = (layer.update(*new) for layer in layers)
        kept.append((found, expected))
        assert layers[0].get_seq_length() == layers[1].get_seq_length()
    for found, expected in kept:  # what was given before is as it was
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_copies_go_ways_of_their_own() -> None:
    layer, _ = two(5)
    layer.update(*numbers(1))
    other = copy.copy(layer)
    before = layer.keys.clone()
    a, b = numbers(1), numbers(1)
    layer.update(*a)
    other.update(*b)
    assert torch.equal(layer.keys, torch.cat([before, a[0]], 2))
    assert torch.equal(other.keys, torch.cat([before, b[0]], 2))


def test_what_was_kept_before_a_crop_stays() -> None:
    layer, _ = two(5)
    layer.update(*numbers(1))
    kept, values = layer.keys, layer.keys.clone()
    layer.crop(-2)
    layer.update(*numbers(1))
    assert torch.equal(kept, values)


def test_it_goes_on_outside_of_inference_mode() -> None:
    with torch.inference_mode():
        layers = two(5)
        new = numbers(1)
        for layer in layers:
            layer.update(*new)
    new = numbers(1)
    with torch.no_grad():
        found, expected = (layer.update(*new)[0] for layer in layers)
    assert torch.equal(found, expected)


def test_most_tokens_are_appended_in_place() -> None:
    layer, _ = two(400)
    places = set()
    for _ in range(100):
        layer.update(*numbers(1))
        places.add(layer.keys.data_ptr())
    assert len(places) <= 3


def test_other_layers_stay_what_they_are() -> None:
    layer = DynamicSlidingWindowLayer(sliding_window=4)
    make_roomy(layer)
    assert type(layer) is DynamicSlidingWindowLayer
