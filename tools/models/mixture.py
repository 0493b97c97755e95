"""A mixture of experts of a real one's shape with random weights and skewed routing, as a sharded Hugging Face folder.

python tools/models/mixture.py OUT_DIR [--gigabytes 8 | --tiny] [--seed 0]

The shape is that of Qwen3-30B-A3B: 128 experts of 768 in each layer, 8 of them for a token, hidden size 2048; as many
layers as take `--gigabytes` in 4 bits with groups of 64, 0.34 each. The folder takes 3.6 times that. Experts of a layer
are the rows of some random matrices, each begun elsewhere. A router's rows differ in size, by factors of a log-normal
distribution, so that some experts are chosen often and others seldom: a quarter of them take about half of all tokens,
as in trained mixtures. Statistics and tokenizer are those of synthetic.py.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from synthetic import RandomTensor
from tiny import byte_tokenizer, quiet

from spqfmt.exporters.huggingface import export_huggingface

SHAPE = {
    "hidden_size": 2048,
    "moe_intermediate_size": 768,
    "intermediate_size": 6144,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "vocab_size": 32000,
}
TINY = {
    "hidden_size": 64,
    "moe_intermediate_size": 32,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_experts": 16,
    "num_experts_per_tok": 4,
    "vocab_size": 264,
}
LAYER_BYTES = 0.34e9
"""What a layer of SHAPE takes in 4 bits."""
_SKEW = 0.35
"""Octaves by which rows of a router differ."""
_MATRICES = 4


@dataclass(frozen=True)
class ExpertTensor:
    """A matrix of one expert: rows of one of some matrices, from another one on."""

    name: str
    shape: tuple[int, ...]
    seed: int
    number: int
    dtype: str = "bf16"
    tied_to: str | None = None

    def load(self) -> torch.Tensor:
        """The values, the same for the same seed and number."""
        made = _matrix(self.shape, self.seed + self.number % _MATRICES)
        return made.roll(self.number // _MATRICES * 7, 0)


@lru_cache(2 * _MATRICES)
def _matrix(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return RandomTensor("", shape, seed).load()


@dataclass(frozen=True)
class RouterTensor(RandomTensor):
    """A router, whose rows are of different size."""

    def load(self) -> torch.Tensor:
        """The values, the same for the same seed."""
        generator = torch.Generator().manual_seed(self.seed)
        sizes = torch.exp2(_SKEW * torch.randn(self.shape[0], 1, generator=generator))
        rows = torch.randn(self.shape, generator=generator) * sizes
        weights: torch.Tensor = 2 * rows / self.shape[1] ** 0.5
        return weights.bfloat16()


def tensors(
    shape: dict[str, int], n_layers: int, seed: int
) -> Iterator[RandomTensor | ExpertTensor | RouterTensor]:
    """The tensors of a Qwen3 MoE of this shape, in execution order."""
    hidden, inner, head = shape["hidden_size"], shape["moe_intermediate_size"], shape["head_dim"]
    queries, keys = head * shape["num_attention_heads"], head * shape["num_key_value_heads"]
    first = seed * 1_000_003
    yield RandomTensor("model.embed_tokens.weight", (shape["vocab_size"], hidden), first)
    for layer in range(n_layers):
        at, number = f"model.layers.{layer}", first + 1000 * (layer + 1)
        sizes = {
            "input_layernorm": (hidden,),
            "self_attn.q_proj": (queries, hidden),
            "self_attn.k_proj": (keys, hidden),
            "self_attn.v_proj": (keys, hidden),
            "self_attn.q_norm": (head,),
            "self_attn.k_norm": (head,),
            "self_attn.o_proj": (hidden, queries),
            "post_attention_layernorm": (hidden,),
        }
        for place, (name, size) in enumerate(sizes.items()):
            yield RandomTensor(f"{at}.{name}.weight", size, number + place)
        yield RouterTensor(f"{at}.mlp.gate.weight", (shape["num_experts"], hidden), number + 50)
        for place, name in enumerate(("gate_proj", "up_proj", "down_proj")):
            size = (hidden, inner) if name == "down_proj" else (inner, hidden)
            for expert in range(shape["num_experts"]):
                yield ExpertTensor(
                    name=f"{at}.mlp.experts.{expert}.{name}.weight",
                    shape=size,
                    seed=number + 100 + 10 * place,
                    number=expert,
                )
    yield RandomTensor("model.norm.weight", (hidden,), first + 1)
    yield RandomTensor("lm_head.weight", (shape["vocab_size"], hidden), first + 2)


def build(folder: Path, shape: dict[str, int], n_layers: int, *, seed: int = 0) -> None:
    """Write a model of a shape to `folder`."""
    config = {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "torch_dtype": "bfloat16",
        "tie_word_embeddings": False,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "num_hidden_layers": n_layers,
        "bos_token_id": shape["vocab_size"] - 2,
        "eos_token_id": shape["vocab_size"] - 1,
        **shape,
    }
    assets = {"config.json": json.dumps(config).encode()}
    with tempfile.TemporaryDirectory() as beside, quiet():
        byte_tokenizer(shape["vocab_size"]).save_pretrained(beside)
        assets |= {path.name: path.read_bytes() for path in Path(beside).iterdir()}
    export_huggingface(folder, list(tensors(shape, n_layers, seed)), assets)


def main() -> None:
    """Run the tool, whose help is the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gigabytes", type=float, default=8)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    shape, n_layers = (
        (TINY, 2) if arguments.tiny else (SHAPE, max(1, round(1e9 * arguments.gigabytes / LAYER_BYTES)))
    )
    build(arguments.folder, shape, n_layers, seed=arguments.seed)


if __name__ == "__main__":
    main()
