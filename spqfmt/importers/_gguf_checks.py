"""Whether metadata of a GGUF file ask for what the model of its architecture has."""

from __future__ import annotations

import re

from spqfmt.importers._gguf_models import Facts

_BLOCK = re.compile(r"(enc\.|dec\.)?blk\.(\d+)\.")
EMBEDDING, HEAD = "token_embd.weight", "output.weight"
SIGMOID, _NONE = 2, (None, 0, 1)
_SOFTMAX = 1
_BY_SIGMOID = {"glm4moe", "lfm2moe", "llama4", "minimax-m2", "nemotron_h_moe"}
_GROUPED = {"deepseek2", "nemotron_h_moe"}
"""Those whose experts may be in groups, and weighed by a factor."""
_NORMED = {"ernie4_5-moe", "lfm2moe", "minimax-m2", "qwen3moe", "qwen3next", "qwen3vlmoe", "qwen35moe"}


def check_meaning(facts: Facts) -> None:
    """Raise ValueError where the metadata ask for another model than transformers has of the architecture."""

    def said(key: str) -> object:
        return facts.metadata.get(f"{facts.architecture}.{key}")

    by, norm = said("expert_gating_func"), said("expert_weights_norm")
    is_sigmoid, is_latent = by == SIGMOID, facts.architecture == "deepseek2"
    foreign = {
        "attention.causal": said("attention.causal") is False,
        "attention.temperature_scale": is_latent and said("attention.temperature_scale") not in _NONE,
        "expert_gating_func": bool(by)
        and (
            by not in (_SOFTMAX, SIGMOID) if is_latent else is_sigmoid != (facts.architecture in _BY_SIGMOID)
        ),
        "expert_group_count": facts.architecture not in _GROUPED and said("expert_group_count") not in _NONE,
        "expert_weights_norm": norm is False and facts.architecture in _NORMED,
        "expert_weights_scale": said("expert_weights_scale") not in _NONE
        and facts.architecture not in {"glm4moe", *_GROUPED},
        "rope.scaling.attn_factor": said("rope.scaling.type") == "yarn"
        and said("rope.scaling.attn_factor") not in _NONE,
    }
    for epsilon in ("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"):
        if facts.number(epsilon, 0.0) < 0:
            raise ValueError(f"{facts.architecture}.{epsilon} is {said(epsilon)}, which is below 0")
    key = next((key for key, is_foreign in foreign.items() if is_foreign), None)
    if key is not None:
        raise ValueError(
            f"{facts.architecture}.{key} is {str(said(key))[:80]}, which transformers' model has not"
        )


def check_counts(facts: Facts) -> None:
    """Raise ValueError where the metadata count other layers, experts or channels than the tensors have."""
    _check_layers(facts)
    width, has = facts.count("embedding_length"), facts.shapes[EMBEDDING][-1]
    if width != has:
        raise ValueError(
            f"{facts.architecture}.embedding_length is {width}, but {EMBEDDING} has rows of {has}"
        )
    experts = [shape[0] for name, shape in facts.shapes.items() if "_exps.weight" in name]
    if experts and set(experts) != {facts.count("expert_count")}:
        n, has = facts.count("expert_count"), next(n for n in experts if n != facts.count("expert_count"))
        raise ValueError(f"{facts.architecture}.expert_count is {n}, but there are tensors of {has} experts")
    if experts:
        n, used = facts.count("expert_count"), facts.count("expert_used_count")
        if used > n:
            raise ValueError(f"{facts.architecture}.expert_used_count is {used}, but there are {n} experts")


def _check_layers(facts: Facts) -> None:
    """Raise ValueError where the metadata count other layers than there are tensors of, also of a decoder apart."""
    found = [match for name in facts.shapes if (match := _BLOCK.match(name))]
    of_decoder = {int(match[2]) for match in found if match[1] == "dec."}
    _check_blocks(facts, "block_count", {int(match[2]) for match in found if match[1] != "dec."})
    if of_decoder:
        name = "decoder_block_count"
        has_own = f"{facts.architecture}.{name}" in facts.metadata
        _check_blocks(facts, name if has_own else "block_count", of_decoder)


def _check_blocks(facts: Facts, key: str, numbers: set[int]) -> None:
    n_blocks = max(numbers, default=-1) + 1
    counted = facts.count(key)
    if counted != n_blocks:
        raise ValueError(
            f"{facts.architecture}.{key} is {counted}, but there are tensors of {n_blocks} blocks"
        )
    if len(numbers) != n_blocks:  # nothing is made for a number that the file has not earned
        raise ValueError(f"there are tensors of {len(numbers)} blocks, but one of block {n_blocks - 1}")
