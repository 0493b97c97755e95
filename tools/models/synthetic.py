"""A model of a real one's shape with random weights of a real one's statistics, as a sharded Hugging Face folder.

python tools/models/synthetic.py 7b OUT_DIR [--seed 0]

For measuring packing and loading at a size that no package carries: 7b takes 13.5 GB of disk, 1.5b 3.1 GB, 270m
0.5 GB. Each weight is normal, times a log-normal scale of its row and of its column (spread 0.25 octaves each, as
projections of trained models show), over the root of the inputs. One tensor is in memory at a time. Its tokenizer is
that of tiny.py: text goes in byte by byte, and what comes out are numbers.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tiny import byte_tokenizer, quiet

from spqfmt.exporters.huggingface import export_huggingface

SHAPES: dict[str, dict[str, int]] = {
    "7b": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 32000,
    },
    "1.5b": {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "vocab_size": 32000,
    },
    "270m": {
        "hidden_size": 1024,
        "intermediate_size": 2816,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "vocab_size": 32000,
    },
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 176,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "vocab_size": 264,
    },
}
_SPREAD = 0.25


@dataclass(frozen=True)
class RandomTensor:
    """A tensor that is made when it is written. A norm's weights lie near 1."""

    name: str
    shape: tuple[int, ...]
    seed: int
    dtype: str = "bf16"
    tied_to: str | None = None

    def load(self) -> torch.Tensor:
        """The values, the same for the same seed and name."""
        generator = torch.Generator().manual_seed(self.seed)
        if len(self.shape) == 1:
            return (1 + 0.1 * torch.randn(self.shape, generator=generator)).bfloat16()
        rows, columns = self.shape
        weight = torch.randn(self.shape, generator=generator)
        weight *= torch.exp2(_SPREAD * torch.randn(rows, 1, generator=generator)) / columns**0.5
        weight *= torch.exp2(_SPREAD * torch.randn(columns, generator=generator))
        return weight.bfloat16()


def tensors(shape: dict[str, int], seed: int) -> Iterator[RandomTensor]:
    """The tensors of a Llama of this shape, in execution order."""
    hidden, inner, vocabulary = shape["hidden_size"], shape["intermediate_size"], shape["vocab_size"]
    shapes: list[tuple[str, tuple[int, ...]]] = [("model.embed_tokens.weight", (vocabulary, hidden))]
    for layer in range(shape["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        shapes += [(f"{at}.input_layernorm.weight", (hidden,))]
        shapes += [(f"{at}.self_attn.{name}_proj.weight", (hidden, hidden)) for name in "qkvo"]
        shapes += [(f"{at}.post_attention_layernorm.weight", (hidden,))]
        shapes += [(f"{at}.mlp.{name}_proj.weight", (inner, hidden)) for name in ("gate", "up")]
        shapes += [(f"{at}.mlp.down_proj.weight", (hidden, inner))]
    shapes += [("model.norm.weight", (hidden,)), ("lm_head.weight", (vocabulary, hidden))]
    for number, (name, size) in enumerate(shapes):
        yield RandomTensor(name, size, seed * 1_000_003 + number)


def build(name: str, folder: Path, *, seed: int = 0) -> None:
    """Write the model `name` of SHAPES to `folder`."""
    shape = SHAPES[name]
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "bfloat16",
        "tie_word_embeddings": False,
        "bos_token_id": shape["vocab_size"] - 2,
        "eos_token_id": shape["vocab_size"] - 1,
        **shape,
    }
    assets = {"config.json": json.dumps(config).encode()}
    with tempfile.TemporaryDirectory() as beside, quiet():
        byte_tokenizer(shape["vocab_size"]).save_pretrained(beside)
        assets |= {path.name: path.read_bytes() for path in Path(beside).iterdir()}
    export_huggingface(folder, list(tensors(shape, seed)), assets)


def main() -> None:
    """Run the tool, whose help is the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    build(arguments.shape, arguments.folder, seed=arguments.seed)


if __name__ == "__main__":
    main()
