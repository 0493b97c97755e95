"""T5 and UMT5 as GGUF has them: an encoder and a decoder, whose blocks are `enc.blk` and `dec.blk`."""

from __future__ import annotations

from collections.abc import Mapping

from spqfmt.importers._gguf_models import Config, Facts
from spqfmt.importers._gguf_reader import GgufTensor

# Old checkpoints have it, and nothing reads it.
_UNUSED = "dec.blk.0.cross_attn_rel_b.weight"


def t5_config(facts: Facts, tensors: Mapping[str, GgufTensor]) -> Config:
    """What the metadata say of encoder and decoder. Raises ValueError for what they lack."""
    layers = facts.count("block_count")
    is_gated = "enc.blk.0.ffn_gate.weight" in facts.shapes
    start = facts.number("decoder_start_token_id", 0)
    if not isinstance(start, int) or not 0 <= start < facts.vocabulary:
        raise ValueError(f"{facts.architecture}.decoder_start_token_id is {start!r}, no token")
    rms = f"{facts.architecture}.attention.layer_norm_rms_epsilon" in facts.metadata
    return {
        "d_ff": facts.count("feed_forward_length"),
        "d_kv": facts.count("attention.key_length"),
        "d_model": facts.count("embedding_length"),
        "decoder_start_token_id": start,
        "feed_forward_proj": "gated-gelu" if is_gated else "relu",
        "is_encoder_decoder": True,
        "layer_norm_epsilon": facts.positive(f"attention.layer_norm_{'rms_' if rms else ''}epsilon"),
        "num_decoder_layers": facts.count("decoder_block_count", layers),
        "num_heads": facts.count("attention.head_count"),
        "num_layers": layers,
        "relative_attention_num_buckets": facts.count("attention.relative_buckets_count"),
    }


def is_umt5(tensors: Mapping[str, object]) -> bool:
    """Whether blocks after the first have distances of their own, as UMT5's do, which GGUF calls t5."""
    return any(f"{half}.blk.1.attn_rel_b.weight" in tensors for half in ("enc", "dec"))


def unused_distances(name: str, config: Config) -> str:
    """Name what transformers leaves of old checkpoints; empty for any other tensor."""
    return "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight" if name == _UNUSED else ""
