"""What a tensor's name says: its place in execution order, its segment and its role.

Names follow Hugging Face's habits over several families (Llama, GPT-2, OPT, Gemma, Mixtral, BERT, T5). A name that
fits none of the patterns keeps a sound answer: role "other", placed beside its neighbours in name order.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from spqfmt.importers.base import Role

_LAYER = re.compile(
    r"^(?P<segment>(?:.*?\.)?(?:layers|layer|h|blocks|block|blk)\.(?P<index>\d+))\.(?P<rest>.+)$"
)
_EMBED = re.compile(r"embed(?!_out)|_embd\b|\bw[tp]e\b|^shared\.|project_in\b")
_HEAD = re.compile(r"(^|\.)(lm_head|embed_out|score|classifier|qa_outputs|cls|pooler)\b")
_TOWER = re.compile(r"^(?:model\.)?(?P<tower>(?:vision|visual|audio|image|speech)\w*)\.")
_STACK = re.compile(
    r"(^|[._])(experts|moe)\.(\w+\.)?\w*(proj|projs|linear|fc[12]|w[123]|w13)(_?weight|\.weight)?$"
)
"""Experts that a checkpoint holds as one tensor [experts, rows, columns] for each projection."""
_DOWN = re.compile(r"\.(down_projs?|output_linear|fc2|w2)(_?weight|\.weight)?$")
_ROUTER = re.compile(r"(^|\.)(router|gate|shared_expert_gate)(\.|$)")

# Execution order inside a layer. The first pattern that matches the rest of the name gives the rank.
_STAGES = tuple(
    re.compile(pattern)
    for pattern in (
        r"^(input_layernorm|ln_1|ln_attn|norm1|attention_norm|self_attn_layer_norm|attn_norm|layer\.0\.layer_norm)\b",
        r"attn.*\b(q_proj|q)\b|attention.*\b(query|q)\b",
        r"attn.*\b(k_proj|k)\b|attention.*\b(key|k)\b",
        r"attn.*\b(v_proj|v|c_attn|qkv_proj|query_key_value|in_proj)\b|attention.*\b(value|v|query_key_value)\b",
        r"attn.*norm\b(?<!layer_norm)",
        r"attn.*\b(o_proj|out_proj|c_proj|dense|o)\b|attention.*\b(output|o_proj|dense|o)\b",
        r"attn|attention(?!_norm)(?!_layernorm)",
        r"^(post_attention_layernorm|post_attention_norm|ln_2)\b",
        r"^(pre_feedforward_layernorm|ffn_norm|norm2|ln_mlp|layer\.\d\.layer_norm)\b|^final_layer_norm\b",
        r"\b(router|gate)\b",
        r"\b(gate_proj|gate_up_proj|w1|wi_0|c_fc|fc1|wi|intermediate|fc_in|dense_h_to_4h)\b",
        r"\b(up_proj|w3|wi_1)\b",
        r"\b(down_proj|w2|wo|c_proj|fc2|output|fc_out|dense_4h_to_h)\b",
        r"^(post_feedforward_layernorm|output\.LayerNorm)\b",
    )
)


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key in which numbers inside a name count as numbers: experts.10 comes after experts.9."""
    return tuple(
        (0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name) if part
    )


def _is_head(name: str) -> bool:
    return _HEAD.search(name) is not None and _LAYER.match(name) is None


def segment_of(name: str) -> str:
    """Unit of residency of the tensor `name`. What runs after the last layer counts to "head"."""
    if layer := _LAYER.match(name):
        return layer["segment"]
    if tower := _TOWER.match(name):
        return tower["tower"]
    return "embed" if _EMBED.search(name) and not _is_head(name) else "head"


def role_of(name: str, shape: tuple[int, ...], *, is_float: bool) -> Role:
    """What a quantization method may do with the tensor `name`."""
    if is_float and is_stack(name, shape):
        return "linear"
    if len(shape) != 2 or not is_float or not name.endswith(".weight"):
        return "other"
    if _is_head(name):
        return "head"
    layer = _LAYER.match(name)
    if layer is None:
        if "project_" in name:
            return "linear"
        return "embedding" if _EMBED.search(name) else "other"
    rest = layer["rest"]
    module = rest.removesuffix("weight").rstrip(".").rpartition(".")[2]
    # A router decides by small differences of few rows: every method leaves it alone.
    if _ROUTER.search(rest) or "embed" in rest or "bias" in rest or "norm" in module.lower():
        return "other"
    return "linear"


def is_stack(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor holds the matrices of a layer's experts, [experts, rows, columns]."""
    layer = _LAYER.match(name) if len(shape) == 3 and 0 not in shape else None
    return (
        layer is not None and _STACK.search(layer["rest"]) is not None and not _ROUTER.search(layer["rest"])
    )


def execution_key(name: str) -> tuple[object, ...]:
    """Sort key of execution order: towers, encoder, decoder; in each embeddings, layers, final norm; then heads."""
    tower = 0 if _TOWER.match(name) or name.startswith("shared.") else 2
    if re.match(r"(model\.)?encoder\.", name):
        tower = 1
    if _is_head(name):
        return (1, tower, 0, 0, 0, natural_key(name))
    if layer := _LAYER.match(name):
        rest = layer["rest"]
        rank = next((i for i, stage in enumerate(_STAGES) if stage.search(rest)), len(_STAGES))
        return (0, tower, 1, natural_key(layer["segment"]), rank, natural_key(rest))
    phase = 0 if _EMBED.search(name) else 2
    return (0, tower, phase, 0, 0, natural_key(name))


def transposed_weights(shapes: Mapping[str, tuple[int, ...]], candidates: Iterable[str]) -> frozenset[str]:
    """The weights among `candidates` that are stored [in, out], those of experts [experts, in, out].

    A bias has one value an output, so its length tells which side of the weight is the output. A square weight
    says nothing by itself; it follows the others: a model uses one kind of projection throughout. Of experts that is
    told by the projections of one layer, of which the last gives as much as the others take.
    """
    names = list(candidates)
    stacks = [name for name in names if len(shapes[name]) == 3]
    of_experts = _transposed_stacks({name: shapes[name] for name in stacks})
    return of_experts | _transposed_matrices(shapes, [name for name in names if len(shapes[name]) == 2])


def _transposed_stacks(shapes: Mapping[str, tuple[int, ...]]) -> frozenset[str]:
    found = set()
    for down, (_, rows, columns) in shapes.items():
        if not (end := _DOWN.search(down)):
            continue
        others = [name for name in shapes if name != down and name.startswith(down[: end.start() + 1])]
        sizes = {shapes[name][1:] for name in others}
        plain = all(inputs == rows and outputs in {columns, 2 * columns} for outputs, inputs in sizes)
        turned = all(inputs == columns and outputs in {rows, 2 * rows} for inputs, outputs in sizes)
        if turned and not plain:
            found |= {down, *others}
    return frozenset(found)


def _transposed_matrices(shapes: Mapping[str, tuple[int, ...]], candidates: Iterable[str]) -> frozenset[str]:
    transposed, square, plain = set(), set(), False
    for name in candidates:
        bias = shapes.get(name.removesuffix("weight") + "bias")
        if bias is None or len(bias) != 1:
            continue
        rows, columns = shapes[name]
        if rows == columns == bias[0]:
            square.add(name)
        elif bias[0] == columns:
            transposed.add(name)
        elif bias[0] == rows:
            plain = True
    return frozenset(transposed | square if transposed and not plain else transposed)
