"""The ways in which transformers and torch use a model, on one that reads its weights in every pass."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import spqfmt
from spqfmt.loaders.packed import PackedEmbedding, PackedLinear
from spqfmt.loaders.plan import plan_model

PROMPTS = torch.tensor([[(i * 37 + 11 * k) % 256 for i in range(20)] for k in range(3)])


@pytest.fixture
def model(packed_llama: Path) -> Iterator[Any]:
    loaded, _ = spqfmt.load_model(packed_llama, memory=plan_model(packed_llama).plan.smallest_bytes)
    assert {part.residency for part in loaded.packed_weights.plan.parts} == {"disk"}
    yield loaded
    loaded.packed_weights.close()


def continued(model: Any, ids: torch.Tensor, n: int = 8, **options: Any) -> torch.Tensor:
    mask = options.pop("attention_mask", torch.ones_like(ids))
    output: torch.Tensor = model.generate(
        ids, attention_mask=mask, max_new_tokens=n, min_new_tokens=n, pad_token_id=0, **options
    )
    return output


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_the_whole_model_compiles_without_a_break(model: Any, backend: str) -> None:
    """That reads its weights from disk in every pass, too: a graph has one operation for a packed layer."""
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    with torch.inference_mode():
        expected = model(PROMPTS).logits
        assert torch.equal(compiled(PROMPTS).logits, expected)
        assert torch.equal(compiled(PROMPTS[:1]).logits, model(PROMPTS[:1]).logits)
    assert not counters["graph_break"]


def test_a_compiled_layer_gives_the_same_gradients(model: Any) -> None:
    torch._dynamo.reset()
    layer = model.model.layers[0].mlp
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    gradients = []
    for module in (layer, compiled):
        x = torch.linspace(-2, 2, 6 * 64).view(1, 6, 64).bfloat16().requires_grad_()
        module(x).float().square().sum().backward()
        gradients.append(x.grad)
    assert gradients[0].abs().max() > 0
    assert torch.equal(*gradients)


def test_hooks_see_and_change_what_goes_through_packed_modules(model: Any) -> None:
    layer, embedding = model.model.layers[3].mlp.down_proj, model.model.embed_tokens
    assert isinstance(layer, PackedLinear)
    assert isinstance(embedding, PackedEmbedding)
    seen: list[tuple[int, ...]] = []
    handles = [
        layer.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape))),
        embedding.register_forward_hook(lambda _, args, rows: seen.append(tuple(rows.shape))),
    ]
    with torch.inference_mode():
        plain = model(PROMPTS).logits
        assert seen == [(3, 20, 64), (3, 20, 176)]
        handles.append(layer.register_forward_hook(lambda _, args, y: torch.zeros_like(y)))
        assert not torch.equal(model(PROMPTS).logits, plain)
        for handle in handles:
            handle.remove()
        assert torch.equal(model(PROMPTS).logits, plain)


def test_generation_is_the_same_in_batches_with_padding_beams_and_chunks(model: Any) -> None:
    with torch.inference_mode():
        greedy = continued(model, PROMPTS, do_sample=False)
        assert greedy.shape == (3, 28)
        assert torch.equal(continued(model, PROMPTS, do_sample=False), greedy)
        assert torch.equal(continued(model, PROMPTS[1:2], do_sample=False), greedy[1:2])
        padded = nn.functional.pad(PROMPTS[:1], (4, 0))
        mask = nn.functional.pad(torch.ones_like(PROMPTS[:1]), (4, 0))
        left = continued(model, padded, do_sample=False, attention_mask=mask)
        assert torch.equal(left[:, 4:], greedy[:1])
        assert continued(model, PROMPTS[:1], num_beams=2, do_sample=False).shape == (1, 28)
        torch.manual_seed(0)
        sampled = continued(model, PROMPTS, do_sample=True, temperature=1.5)
        torch.manual_seed(0)
        assert torch.equal(continued(model, PROMPTS, do_sample=True, temperature=1.5), sampled)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_every_gradient_mode_gives_the_same_and_none_a_gradient(model: Any, mode: Any) -> None:
    with torch.inference_mode():
        expected = model(PROMPTS).logits.clone()
    with mode():
        logits = model(PROMPTS).logits
    assert torch.equal(logits, expected)
    assert not logits.requires_grad


def test_inputs_as_embeddings_and_in_any_order_of_memory(model: Any) -> None:
    with torch.inference_mode():
        embedded = model.model.embed_tokens(PROMPTS)
        assert torch.equal(model(inputs_embeds=embedded).logits, model(PROMPTS).logits)
        layer = model.model.layers[0].mlp.up_proj
        x = torch.randn(2, 64).to(model.dtype)
        exact = layer(x)
        assert torch.allclose(layer(x.t().contiguous().t()), exact)
    inputs = torch.randn(2, 64, dtype=model.dtype, requires_grad=True)
    layer(inputs).sum().backward()
    assert torch.allclose(inputs.grad, layer.weight.clone().sum(0), atol=0.02)
