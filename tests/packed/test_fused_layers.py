"""Which decoder layers are taken over for single tokens, and that they compute what they did, to the bit."""

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from fused_models import BASE, HEADS, counted_layers, is_same, load, packed, run, taken, without_layers
from torch import nn
from transformers import DynamicCache

import spqfmt
from spqfmt.kernels.context import Context, using
from spqfmt.loaders.packed.fused import SWITCH
from spqfmt.loaders.packed.fused.layers import _parts

N_LAYERS = 2
ROTARY_FLOATS = "olmo2, norms behind, positions in float32"
# Family: its config, and how many of its layers are taken.
FAMILIES: dict[str, tuple[str, dict[str, Any], int]] = {
    "llama": ("LlamaConfig", {}, 2),
    "biases": ("LlamaConfig", HEADS | {"attention_bias": True, "mlp_bias": True}, 2),
    "qwen2": ("Qwen2Config", {}, 2),
    "qwen3, norms of heads": ("Qwen3Config", HEADS, 2),
    "mistral": ("MistralConfig", {"sliding_window": None}, 2),
    ROTARY_FLOATS: ("Olmo2Config", {}, 2),
    "gemma": ("GemmaConfig", HEADS | {"num_key_value_heads": 1}, 2),
    "gemma3, four norms": ("Gemma3TextConfig", HEADS | {"layer_types": ["full_attention"] * 2}, 2),
    "smollm3, a layer without positions": ("SmolLM3Config", {"no_rope_layers": [1, 0]}, 2),
    "granite, sums of parts": ("GraniteConfig", {"residual_multiplier": 0.5}, 0),
    "stablelm, other norms": ("StableLmConfig", {}, 0),
    "mixtral": ("MixtralConfig", {"num_local_experts": 2, "num_experts_per_tok": 1}, 0),
    "cohere, side by side": ("CohereConfig", {}, 0),
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Any:
    changed = HEADS | {"num_hidden_layers": 3}
    return load(tmp_path_factory.mktemp("llama"), "LlamaConfig", **changed)


@pytest.fixture(autouse=True)
def n_at_once(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    return counted_layers(monkeypatch)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_has_the_same_bits(family: str, tmp_path: Path, n_at_once: list[int]) -> None:
    name, changed, n_layers = FAMILIES[family]
    model = load(tmp_path, name, **changed)
    assert taken(model)["layers"] == n_layers
    assert is_same(model)
    n_calls = 6 if n_layers and family != ROTARY_FLOATS else 0
    assert n_at_once == [N_LAYERS] * n_calls


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_all_dtypes(dtype: str, tmp_path: Path, n_at_once: list[int]) -> None:
    assert is_same(load(tmp_path, "Qwen3Config", dtype, **HEADS))
    assert n_at_once == [2] * 6


def test_codes_in_groups_over_threads(tmp_path: Path, n_at_once: list[int]) -> None:
    """Products large enough to be shared out, with a thread that helps and without."""
    config = transformers.LlamaConfig(**BASE | {"hidden_size": 128, "intermediate_size": 512})
    packed(tmp_path, config)
    spqfmt.pack(tmp_path, tmp_path / "g.spq", method="rtn", bits=4, group_size=32)
    found = []
    for threads in (1, 2):
        with using(Context(threads=threads)):
            model, _ = spqfmt.load_model(tmp_path / "g.spq", packed=True)
            assert is_same(model)
            found.append(run(model, DynamicCache(config=model.config), n_texts=3))
    assert torch.equal(*found)
    assert set(n_at_once) == {2}


def test_generation_goes_by_layers(llama: Any, n_at_once: list[int]) -> None:
    ids = torch.tensor([[5, 6, 7, 8]])
    options = {"max_new_tokens": 7, "min_new_tokens": 7, "do_sample": False, "pad_token_id": 0}
    found = llama.generate(ids, **options)
    assert n_at_once == [3] * 6
    with without_layers():
        assert torch.equal(llama.generate(ids, **options), found)


def hooked(module: nn.Module) -> Any:
    return module.register_forward_hook(lambda module, given, y: y * 2).remove


def with_bias(module: Any) -> Any:
    module.bias = nn.Parameter(torch.ones(module.out_features, dtype=torch.bfloat16), requires_grad=False)
    return lambda: setattr(module, "bias", None)


def with_other_numbers(module: Any) -> Any:
    kept = module.weight.data
    module.weight.data = torch.randn(kept.shape).to(kept.dtype)

    def back() -> None:
        module.weight.data = kept

    return back


CHANGES: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "hook of a product": ("layers.1.self_attn.k_proj", hooked),
    "hook of a norm": ("layers.1.post_attention_layernorm", hooked),
    "hook of the gate's function": ("layers.1.mlp.act_fn", hooked),
    "hook of attention": (
        "layers.1.self_attn",
        lambda module: module.register_forward_hook(lambda module, given, y: (y[0] * 2, y[1])).remove,
    ),
    "a bias": ("layers.1.mlp.down_proj", with_bias),
    "another weight of a norm": ("layers.1.input_layernorm", with_other_numbers),
    "training": ("layers.1.self_attn", lambda module: module.train() and module.eval),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_changed_is_for_its_class(change: str, llama: Any, n_at_once: list[int]) -> None:
    assert is_same(llama)
    n_at_once.clear()
    name, make = CHANGES[change]
    back = make(llama.model.get_submodule(name))
    try:
        assert is_same(llama)
        # The layer before and the one behind, each by a call of its own.
        assert n_at_once == [1, 1] * 6
    finally:
        back()
    n_at_once.clear()
    assert is_same(llama)
    assert n_at_once == [3] * 6


def test_weights_of_norms_are_read_anew(llama: Any) -> None:
    """They are the modules' own memory."""
    before = run(llama, DynamicCache(config=llama.config))
    with torch.no_grad():
        llama.model.layers[1].input_layernorm.weight.mul_(2)
    try:
        assert not torch.equal(run(llama, DynamicCache(config=llama.config)), before)
        assert is_same(llama)
    finally:
        with torch.no_grad():
            llama.model.layers[1].input_layernorm.weight.div_(2)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")
def test_adapters_are_added(tmp_path: Path, n_at_once: list[int]) -> None:
    model = load(tmp_path, "LlamaConfig")
    peft = pytest.importorskip("peft")
    plain = run(model, DynamicCache(config=model.config))
    config = peft.LoraConfig(target_modules=["v_proj"], layers_to_transform=[1], init_lora_weights=False)
    torch.manual_seed(0)
    adapted = peft.get_peft_model(model, config).eval()
    n_at_once.clear()
    with torch.inference_mode():
        cache = DynamicCache(config=model.config)
        found = run(adapted.base_model.model, cache)
    assert not torch.equal(found, plain)
    assert n_at_once == [1] * 6
    assert is_same(adapted.base_model.model)


def test_what_is_set_in_a_layer_makes_it_its_own_class(tmp_path: Path, n_at_once: list[int]) -> None:
    model = load(tmp_path, "LlamaConfig")
    own = type(model.model.layers[1])._own
    model.model.layers[1].mlp = nn.Identity()
    assert type(model.model.layers[1]) is own
    assert is_same(model)
    assert set(n_at_once) == {1}


def test_a_model_goes_when_nobody_has_it(tmp_path: Path) -> None:
    model = load(tmp_path, "LlamaConfig")
    run(model, DynamicCache(config=model.config))
    layer = weakref.ref(model.model.layers[0])
    gc.collect()
    gc.disable()
    try:
        del model
        assert layer() is None
    finally:
        gc.enable()


def test_a_model_that_its_own_hook_has_is_found_by_the_collector(tmp_path: Path) -> None:
    """The hook's dict is one that the native part looks into."""
    model = load(tmp_path, "LlamaConfig")
    run(model, DynamicCache(config=model.config))
    layer = weakref.ref(model.model.layers[0])
    model.model.layers[0].mlp.up_proj.register_forward_hook(lambda *_, own=model: None)
    del model
    gc.collect()
    assert layer() is None


def test_the_switch_leaves_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "0")
    assert not taken(load(tmp_path, "LlamaConfig"))


def test_a_trial_sees_what_is_done_otherwise(llama: Any) -> None:
    layer = llama.model.layers[1]
    own = type(layer)._own.forward

    def tried(forward: Any) -> bool:
        kind = type(layer)
        layer.__class__ = type("Changed", (kind._own,), {"forward": forward})
        try:
            return _parts(layer) is not None
        finally:
            layer.__class__ = kind

    def scaled(self: Any, hidden_states: Any, **named: Any) -> Any:
        return own(self, hidden_states, **named) * 1.01

    def by_position(self: Any, hidden_states: Any, position_ids: Any = None, **named: Any) -> Any:
        return own(self, hidden_states, **named) + position_ids[:, :, None] // 8192

    def other_positions(self: Any, hidden_states: Any, position_embeddings: Any = None, **named: Any) -> Any:
        turned = tuple(-one for one in position_embeddings)
        return own(self, hidden_states, position_embeddings=turned, **named)

    def tuples(self: Any, hidden_states: Any, **named: Any) -> Any:
        return (own(self, hidden_states, **named),)

    def twice(self: Any, hidden_states: Any, **named: Any) -> Any:
        self.mlp(hidden_states)
        return own(self, hidden_states, **named)

    assert tried(own)
    for forward in (scaled, by_position, other_positions, tuples, twice):
        assert not tried(forward), forward.__name__
