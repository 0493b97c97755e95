"""The ways in which transformers and torch use a model, on one that reads its weights in every pass."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import spqfmt
from spqfmt.errors import SpqError
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


def test_the_whole_model_compiles_and_its_graph_breaks_at_packed_layers(model: Any) -> None:
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    compiled = torch.compile(model, fullgraph=False, backend="eager")
    with torch.inference_mode():
        expected = model(PROMPTS).logits
        assert torch.equal(compiled(PROMPTS).logits, expected)
        assert torch.equal(compiled(PROMPTS[:1]).logits, model(PROMPTS[:1]).logits)
    assert counters["stats"]["unique_graphs"] > 1
    assert counters["graph_break"]


def test_a_full_graph_is_refused_by_the_compiler(model: Any) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(model.model.layers[0].mlp, fullgraph=True, backend="eager")
    with torch.inference_mode(), pytest.raises(torch._dynamo.exc.Unsupported):
        compiled(torch.zeros(1, 2, 64, dtype=torch.bfloat16))


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
    with pytest.raises(SpqError, match="no gradients"):
        layer(torch.zeros(2, 64, requires_grad=True))
