"""What a tensor's name says."""

import pytest

from spqfmt.importers._layout import execution_key, role_of, segment_of, transposed_weights

LLAMA = [
    "model.embed_tokens.weight",
    "model.layers.0.input_layernorm.weight",
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.0.self_attn.k_proj.weight",
    "model.layers.0.self_attn.v_proj.weight",
    "model.layers.0.self_attn.q_norm.weight",
    "model.layers.0.self_attn.o_proj.weight",
    "model.layers.0.post_attention_layernorm.weight",
    "model.layers.0.mlp.gate_proj.weight",
    "model.layers.0.mlp.up_proj.weight",
    "model.layers.0.mlp.down_proj.weight",
    "model.layers.2.input_layernorm.weight",
    "model.layers.10.input_layernorm.weight",
    "model.norm.weight",
    "lm_head.weight",
]
GPT2 = [
    "wpe.weight",
    "wte.weight",
    "h.0.ln_1.weight",
    "h.0.attn.c_attn.weight",
    "h.0.attn.c_proj.weight",
    "h.0.ln_2.weight",
    "h.0.mlp.c_fc.weight",
    "h.0.mlp.c_proj.weight",
    "ln_f.weight",
]
OPT = [
    "model.decoder.embed_positions.weight",
    "model.decoder.embed_tokens.weight",
    "model.decoder.project_in.weight",
    "model.decoder.layers.0.self_attn_layer_norm.weight",
    "model.decoder.layers.0.self_attn.q_proj.weight",
    "model.decoder.layers.0.self_attn.out_proj.weight",
    "model.decoder.layers.0.final_layer_norm.weight",
    "model.decoder.layers.0.fc1.weight",
    "model.decoder.layers.0.fc2.weight",
    "model.decoder.final_layer_norm.weight",
    "model.decoder.project_out.weight",
]
GEMMA2 = [
    "model.layers.0.input_layernorm.weight",
    "model.layers.0.self_attn.o_proj.weight",
    "model.layers.0.post_attention_layernorm.weight",
    "model.layers.0.pre_feedforward_layernorm.weight",
    "model.layers.0.mlp.down_proj.weight",
    "model.layers.0.post_feedforward_layernorm.weight",
]
MIXTRAL = [
    "model.layers.0.post_attention_layernorm.weight",
    "model.layers.0.block_sparse_moe.gate.weight",
    "model.layers.0.block_sparse_moe.experts.2.w1.weight",
    "model.layers.0.block_sparse_moe.experts.10.w1.weight",
    "model.layers.0.block_sparse_moe.experts.2.w3.weight",
    "model.layers.0.block_sparse_moe.experts.2.w2.weight",
]
T5 = [
    "shared.weight",
    "encoder.block.0.layer.0.SelfAttention.q.weight",
    "encoder.final_layer_norm.weight",
    "decoder.block.0.layer.0.SelfAttention.q.weight",
    "decoder.final_layer_norm.weight",
    "lm_head.weight",
]


@pytest.mark.parametrize("names", [LLAMA, GPT2, OPT, GEMMA2, MIXTRAL, T5], ids=lambda names: names[-1])
def test_execution_order(names: list[str]) -> None:
    assert sorted(sorted(names), key=execution_key) == names


@pytest.mark.parametrize(
    ("name", "segment"),
    [
        ("model.embed_tokens.weight", "embed"),
        ("wpe.weight", "embed"),
        ("model.layers.12.mlp.up_proj.weight", "model.layers.12"),
        ("transformer.h.3.attn.c_attn.bias", "transformer.h.3"),
        ("encoder.block.1.layer.0.SelfAttention.q.weight", "encoder.block.1"),
        ("model.norm.weight", "head"),
        ("lm_head.weight", "head"),
        ("model.visual.patch_embed.proj.weight", "visual"),
    ],
)
def test_segment(name: str, segment: str) -> None:
    assert segment_of(name) == segment


@pytest.mark.parametrize(
    ("name", "shape", "role"),
    [
        ("model.embed_tokens.weight", (100, 8), "embedding"),
        ("transformer.wpe.weight", (100, 8), "embedding"),
        ("lm_head.weight", (100, 8), "head"),
        ("embed_out.weight", (100, 8), "head"),
        ("model.layers.0.self_attn.q_proj.weight", (8, 8), "linear"),
        ("model.layers.0.self_attn.q_proj.bias", (8,), "other"),
        ("model.layers.0.mlp.experts.3.w1.weight", (8, 8), "linear"),
        ("model.layers.0.block_sparse_moe.gate.weight", (4, 8), "other"),
        ("model.layers.0.mlp.shared_expert_gate.weight", (1, 8), "other"),
        ("model.layers.0.mlp.gate_proj.weight", (8, 8), "linear"),
        ("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", (32, 8), "other"),
        ("model.decoder.project_in.weight", (8, 4), "linear"),
        ("model.norm.weight", (8,), "other"),
        ("mask_decoder.layers.0.weight", (8, 4), "linear"),
        ("layers.0.norm.weight", (8, 4), "other"),
    ],
)
def test_role(name: str, shape: tuple[int, ...], role: str) -> None:
    assert role_of(name, shape, is_float=True) == role


def test_packed_integers_are_never_linear() -> None:
    assert role_of("model.layers.0.self_attn.q_proj.weight", (8, 8), is_float=False) == "other"


def test_the_bias_tells_which_side_of_a_weight_is_the_output() -> None:
    shapes = {
        "h.0.attn.c_attn.weight": (8, 24),
        "h.0.attn.c_attn.bias": (24,),
        "h.0.attn.c_proj.weight": (8, 8),
        "h.0.attn.c_proj.bias": (8,),
    }
    weights = ["h.0.attn.c_attn.weight", "h.0.attn.c_proj.weight"]
    assert transposed_weights(shapes, weights) == set(weights)


def test_a_square_weight_beside_plain_projections_is_plain() -> None:
    shapes = {"a.q.weight": (8, 8), "a.q.bias": (8,), "a.up.weight": (24, 8), "a.up.bias": (24,)}
    assert transposed_weights(shapes, ["a.q.weight", "a.up.weight"]) == frozenset()


@pytest.mark.parametrize(
    ("name", "shape", "role"),
    [
        ("model.layers.0.mlp.experts.gate_up_proj", (4, 64, 96), "linear"),
        ("model.layers.0.mlp.experts.down_proj", (4, 48, 64), "linear"),
        ("model.layers.0.block_sparse_moe.input_linear.weight", (4, 96, 64), "linear"),
        ("model.layers.3.moe.gate_proj.weight", (4, 96, 64), "linear"),
        ("model.layers.0.mlp.experts.w2_weight", (4, 64, 96), "linear"),
        ("model.layers.0.mlp.experts.gate_up_proj_bias", (4, 96), "other"),
        ("model.layers.0.mlp.experts.gate_up_proj_scale_inv", (4, 1, 1), "other"),
        ("model.layers.0.block_sparse_moe.router.layer.weight", (4, 64), "other"),
        ("model.layers.0.mixer.conv1d.weight", (64, 1, 4), "other"),
        ("model.layers.0.mlp.experts.down_proj", (0, 48, 64), "other"),
    ],
)
def test_stacks_of_experts_are_linear(name: str, shape: tuple[int, ...], role: str) -> None:
    assert role_of(name, shape, is_float=True) == role


@pytest.mark.parametrize(
    ("up", "down", "turned"),
    [
        ((4, 96, 64), (4, 64, 48), False),
        ((4, 64, 96), (4, 48, 64), True),
        ((4, 128, 64), (4, 64, 64), False),
        ((4, 64, 128), (4, 64, 64), True),
        ((4, 48, 64), (4, 64, 48), False),
    ],
)
def test_experts_are_transposed_where_inputs_come_first(
    up: tuple[int, ...], down: tuple[int, ...], *, turned: bool
) -> None:
    shapes = {"layers.0.experts.gate_up_proj": up, "layers.0.experts.down_proj": down}
    assert transposed_weights(shapes, shapes) == (set(shapes) if turned else set())
