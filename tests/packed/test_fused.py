"""Which attentions and gated networks are taken over for single tokens, and that they compute what they did."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers
from fused_models import BASE, HEADS, both, called, logits, packed, taken
from torch import nn
from transformers import DynamicCache

import spqfmt
from spqfmt.loaders.packed.fused import gates, siblings
from spqfmt.loaders.packed.fused.trial import computes_the_same
from spqfmt.models.caches import cache_name

# Family: its config, and how many of its two layers' attentions and networks are taken.
FAMILIES: dict[str, tuple[str, dict[str, Any], int, int]] = {
    "llama": ("LlamaConfig", {}, 2, 2),
    "heads of another size": ("LlamaConfig", HEADS | {"attention_bias": True, "mlp_bias": True}, 2, 2),
    "qwen2": ("Qwen2Config", {}, 2, 2),
    "qwen3, norms of heads": ("Qwen3Config", HEADS, 2, 2),
    "olmo2, norms of all": ("Olmo2Config", {}, 2, 2),
    "gemma, GELU": ("GemmaConfig", HEADS | {"num_key_value_heads": 1}, 2, 2),
    "granite, a scale of its own": ("GraniteConfig", {"attention_multiplier": 0.4}, 2, 2),
    "smollm3, a layer without positions": ("SmolLM3Config", {"no_rope_layers": [1, 0]}, 2, 2),
    "stablelm, part of a head rotated": ("StableLmConfig", {"partial_rotary_factor": 0.5}, 2, 2),
    "mixtral": ("MixtralConfig", {"num_local_experts": 2, "num_experts_per_tok": 1}, 2, 0),
    "gemma2, capped scores": ("Gemma2Config", HEADS | {"attn_logit_softcapping": 30.0}, 0, 2),
    "cohere, turns neighbours": ("CohereConfig", {}, 0, 2),
    "phi3, merged": ("Phi3Config", {}, 0, 0),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_computes_what_it_did(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, changed, n_attentions, n_gates = FAMILIES[family]
    fused, plain = both(packed(tmp_path, getattr(transformers, name)(**BASE | changed)), monkeypatch)
    assert not taken(plain)
    assert (taken(fused)["attentions"], taken(fused)["gates"]) == (n_attentions, n_gates)
    found, expected = logits(fused), logits(plain)
    assert (found - expected).abs().max() <= 0.03 * expected.abs().max()
    probabilities = expected.log_softmax(-1)
    assert (probabilities.exp() * (probabilities - found.log_softmax(-1))).sum(-1).mean() < 1e-4


@pytest.mark.parametrize(("dtype", "most"), [("float32", 1e-5), ("float16", 0.01), ("bfloat16", 0.03)])
@pytest.mark.parametrize("family", ["Qwen3Config", "LlamaConfig"])
def test_all_dtypes(
    family: str, dtype: str, most: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = packed(tmp_path, getattr(transformers, family)(**BASE | HEADS))
    fused, plain = both(path, monkeypatch, dtype)
    assert (taken(fused)["attentions"], taken(fused)["gates"]) == (2, 2)
    found, expected = logits(fused), logits(plain)
    assert (found - expected).abs().max() <= most * expected.abs().max()


def test_layers_of_one_input_are_one_call_with_the_same_bits(
    llamas: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    fused = llamas[0]
    n_calls = Counter[bool]()
    real = siblings.multiplied
    siblings_of = [
        module._form.inputs
        for module in fused.modules()
        if hasattr(module, "_form") and hasattr(module._form, "inputs")
    ]
    assert len(siblings_of) == 4
    assert all(found._together is not None for found in siblings_of)
    monkeypatch.setattr(siblings, "multiplied", lambda *given: n_calls.update([True]) or real(*given))
    found = logits(fused)
    assert not n_calls
    for one in siblings_of:
        monkeypatch.setattr(one, "_together", None)
    assert torch.equal(logits(fused), found)
    assert n_calls


def test_layers_of_one_input_with_other_products_are_called_one_by_one(
    llamas: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    fused = llamas[0]
    found = logits(fused)
    gate = fused.model.layers[0].mlp.gate_proj
    real = gate._direct
    monkeypatch.setattr(gate, "_direct", lambda x, bias: None)  # as where it has been given other weights
    assert torch.equal(logits(fused), found)
    monkeypatch.setattr(gate, "_direct", lambda x, bias: 2 * real(x, bias))
    assert not torch.equal(logits(fused), found)


def test_a_network_takes_a_few_tokens_of_any_shape(
    llamas: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Experts that all tokens share are given them in a row, without texts. 40 are no longer few."""
    n_gated: list[int] = []
    real = gates.gate_values
    monkeypatch.setattr(gates, "gate_values", lambda *given: n_gated.append(given[-1] // 176) or real(*given))
    a, b = (model.model.layers[0].mlp for model in llamas)
    x = torch.randn(40, 64).bfloat16()
    with torch.inference_mode():
        for shape in ((1, 64), (3, 64), (2, 3, 64), (40, 64), (0, 64)):
            given = x[: shape[0]].contiguous() if len(shape) == 2 else x[:6].view(shape)
            found, expected = a(given).float(), b(given).float()
            assert found.shape == expected.shape == shape
            if expected.numel():
                assert (found - expected).abs().max() <= 0.02 * expected.abs().max()
    assert n_gated == [1, 3, 6, 0]


@pytest.fixture(scope="module")
def llamas(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("llama")
        return both(packed(folder, transformers.LlamaConfig(**BASE | {"sliding_window": 8})), patch)


def count_steps(model: Any, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Calls of `step`, which single tokens of attentions that are taken over go through."""
    from spqfmt.loaders.packed.fused import attentions

    calls: list[Any] = []
    real = attentions.step

    def step(module: Any, form: Any, named: Any) -> Any:
        calls.append(module)
        return real(module, form, named)

    monkeypatch.setattr(attentions, "step", step)
    return calls


def test_single_tokens_of_texts_without_padding_are_steps(
    llamas: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    fused, _ = llamas
    calls = count_steps(fused, monkeypatch)
    logits(fused)
    assert len(calls) == 2 * 6
    ids = torch.tensor([[5, 6, 7, 8]])
    calls.clear()
    fused.generate(
        ids, max_new_tokens=4, min_new_tokens=4, do_sample=False, pad_token_id=0, tokenizer=object()
    )
    assert len(calls) == 2 * 3


@pytest.mark.filterwarnings("ignore")
def test_caches_of_two_kinds_of_attention_are_for_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"d_model": 32, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "vocab_size": 260}
    heads = {
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
    }
    torch.manual_seed(0)
    with tiny.quiet():
        config = transformers.BartConfig(**sizes, **heads)
        transformers.BartForConditionalGeneration(config).bfloat16().save_pretrained(tmp_path)
    spqfmt.pack(tmp_path, tmp_path / "m.spq", method="rtn")
    fused, plain = both(tmp_path / "m.spq", monkeypatch)
    assert taken(fused)["attentions"]
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    options = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False}
    assert torch.equal(fused.generate(ids, **options), plain.generate(ids, **options))


def test_padding_is_for_torch(llamas: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    fused, plain = llamas
    calls = count_steps(fused, monkeypatch)
    ids = torch.tensor([[0, 0, 5, 6], [7, 8, 9, 10]])
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    options = {"attention_mask": mask, "max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(fused.generate(ids, **options), plain.generate(ids, **options))
    assert not calls


def test_what_is_hooked_is_called(llamas: tuple[Any, Any]) -> None:
    fused, _ = llamas
    before = logits(fused)
    seen = []
    layer = fused.model.layers[0]
    for child in (layer.self_attn.v_proj, layer.mlp.up_proj, layer.mlp.act_fn):
        hook = child.register_forward_hook(lambda module, given, y: seen.append(module) or y * 2)
        assert (logits(fused) - before).abs().max() > 0.01
        assert seen.count(child) == 7
        hook.remove()
    assert torch.equal(logits(fused), before)


@pytest.mark.filterwarnings("ignore")
def test_what_is_set_in_a_module_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is set: a scale, an epsilon, another function, another layer; train and eval change nothing."""
    fused, plain = both(packed(tmp_path, transformers.Qwen3Config(**BASE | HEADS)), monkeypatch)
    n_taken = taken(fused)
    fused.train().eval()
    assert taken(fused) == n_taken
    changes = {
        "self_attn.scaling": 0.5,
        "self_attn.q_norm.variance_epsilon": 0.7,
        "self_attn.o_proj": nn.AdaptiveAvgPool1d(64),
        "mlp.act_fn": nn.ReLU(),
    }
    before = logits(fused)
    for layer, (name, value) in enumerate(changes.items()):
        for model in (fused, plain):
            path, _, last = f"layers.{layer % 2}.{name}".rpartition(".")
            owner = model.model.get_submodule(path)
            assert hasattr(owner, last)
            setattr(owner, last, value)
        found, expected = logits(fused), logits(plain)
        assert (found - before).abs().max() > 0.01 * before.abs().max()
        assert (found - expected).abs().max() <= 0.03 * expected.abs().max()
        before = found
    assert (taken(fused)["attentions"], taken(fused)["gates"]) == (1, 1)


def test_attentions_are_shown_where_they_are_asked_for(llamas: tuple[Any, Any]) -> None:
    fused, _ = llamas
    cache = DynamicCache(config=fused.config)
    fused.set_attn_implementation("eager")
    try:
        with torch.inference_mode():
            called(fused, torch.tensor([[5, 6]]), cache)
            seen = called(fused, torch.tensor([[7]]), cache, output_attentions=True).attentions
    finally:
        fused.set_attn_implementation("sdpa")
    assert [a.shape for a in seen] == [(1, 4, 1, 3)] * 2


def test_gradients_of_a_cache_and_inputs_are_torchs(llamas: tuple[Any, Any]) -> None:
    fused, plain = llamas
    gradients = []
    for model in (fused, plain):
        x = torch.full((1, 1, 64), 0.1, dtype=torch.bfloat16, requires_grad=True)
        cache = DynamicCache(config=model.config)
        called(model, None, cache, inputs_embeds=x).logits.float().sum().backward()
        gradients.append(x.grad)
    assert gradients[0].abs().sum() > 0
    assert torch.allclose(gradients[0], gradients[1], rtol=0.05, atol=0.05)


def changed_class(form_of: Any, **changes: Any) -> bool:
    """Whether a trial takes the attention as its form says, after its own class does otherwise."""
    own = type(form_of)._own
    changed = type("Changed", (own,), changes)
    kind = type(form_of)
    form_of.__class__ = changed
    try:
        return computes_the_same(form_of, form_of._form._replace(cache=cache_name(form_of)))
    finally:
        form_of.__class__ = kind


def test_a_trial_sees_what_is_done_otherwise(llamas: tuple[Any, Any]) -> None:
    attention = llamas[0].model.layers[1].self_attn
    own = type(attention)._own.forward
    assert changed_class(attention)

    def capped(self: Any, hidden_states: Any, **named: Any) -> Any:
        v = self.v_proj
        y, weights = own(self, hidden_states, **named)
        assert v is self.v_proj
        return 30 * torch.tanh(y / 30), weights

    def by_position(self: Any, hidden_states: Any, position_ids: Any = None, **named: Any) -> Any:
        y, weights = own(self, hidden_states, **named)
        return y * (1 + position_ids[:, :, None] // 8192), weights

    def scaled(self: Any, hidden_states: Any, **named: Any) -> Any:
        before, self.scaling = self.scaling, self.scaling * 1.02
        try:
            return own(self, hidden_states, **named)
        finally:
            self.scaling = before

    def twice(self: Any, hidden_states: Any, **named: Any) -> Any:
        y = own(self, hidden_states, **named)
        named[cache_name(self)].n_updates += 1
        return y

    def with_weights(self: Any, hidden_states: Any, **named: Any) -> Any:
        return own(self, hidden_states, **named)[0], torch.ones(1)

    for forward in (capped, by_position, scaled, twice, with_weights):
        assert not changed_class(attention, forward=forward), forward.__name__


def test_a_cache_has_either_name(llamas: tuple[Any, Any]) -> None:
    """transformers renamed it in 5.24; code of models has the name that it was written with."""
    attention = llamas[0].model.layers[1].self_attn
    own, name = type(attention)._own.forward, attention._form.cache

    def older(self: Any, hidden_states: Any, past_key_values: Any = None, **named: Any) -> Any:
        return own(self, hidden_states, **{name: past_key_values}, **named)

    def newer(self: Any, hidden_states: Any, cache: Any = None, **named: Any) -> Any:
        return own(self, hidden_states, **{name: cache}, **named)

    for forward, expected in ((older, "past_key_values"), (newer, "cache")):
        assert cache_name(type("Named", (), {"forward": forward})()) == expected
        assert changed_class(attention, forward=forward)


def test_a_cache_of_another_kind_is_attended_to(llamas: tuple[Any, Any]) -> None:
    """What an update gives may be in no order that the native call reads."""
    fused, plain = llamas

    class Turned(DynamicCache):
        def update(self, *given: Any, **named: Any) -> Any:
            return tuple(
                t.transpose(2, 3).contiguous().transpose(2, 3) for t in super().update(*given, **named)
            )

    found = []
    for model in (fused, plain):
        cache = Turned(config=model.config)
        with torch.inference_mode():
            called(model, torch.tensor([[5, 6, 7]]), cache)
            found.append(called(model, torch.tensor([[8]]), cache).logits.float())
    assert (found[0] - found[1]).abs().max() <= 0.03 * found[1].abs().max()
