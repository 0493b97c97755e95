"""Small random models of many architectures, as Hugging Face folders, for tests and benches.

python tools/models/tiny.py llama OUT_DIR [--dtype bfloat16] [--seed 0]
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

VOCABULARY = 264  # 256 bytes, <s>, </s> and six spares
_BOS, _EOS = 256, 257
_LLAMA: Mapping[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": _BOS,
    "eos_token_id": _EOS,
    "pad_token_id": _EOS,
}


def configurations() -> dict[str, Any]:
    """A transformers config by name. Shapes are uneven on purpose: not all are multiples of 64."""
    heads = {"head_dim": 16}
    short = {"vocab_size": VOCABULARY, "bos_token_id": _BOS, "eos_token_id": _EOS, "pad_token_id": _EOS}
    return {
        "llama": transformers.LlamaConfig(**_LLAMA, tie_word_embeddings=False),
        "llama_tied": transformers.LlamaConfig(**_LLAMA, tie_word_embeddings=True),
        "mistral": transformers.MistralConfig(**_LLAMA, sliding_window=32),
        "qwen2": transformers.Qwen2Config(**_LLAMA, tie_word_embeddings=True),
        "qwen3": transformers.Qwen3Config(**_LLAMA, **heads, tie_word_embeddings=True),
        "gemma": transformers.GemmaConfig(**_LLAMA, **heads),
        "mixtral": transformers.MixtralConfig(**_LLAMA, num_local_experts=4, num_experts_per_tok=2),
        "gpt2": transformers.GPT2Config(n_embd=64, n_layer=2, n_head=4, n_positions=128, **short),
        "opt": transformers.OPTConfig(
            hidden_size=64,
            ffn_dim=176,
            num_hidden_layers=2,
            num_attention_heads=4,
            word_embed_proj_dim=48,
            max_position_embeddings=128,
            **short,
        ),
    }


def byte_tokenizer(n_tokens: int | None = None) -> Any:
    """A tokenizer whose tokens are bytes: every text becomes one token a byte and comes back as it was.

    With `n_tokens` there are so many: the others are numbers, which a model can produce and no text becomes.
    """
    special = {"bos_token": "<s>", "eos_token": "</s>"}
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    symbols += [f"\u0120{number}" for number in range(len(symbols), (n_tokens or 0) - len(special))]
    tokenizer = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(symbols)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special.values()))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def build(
    name: str, folder: str | Path, *, dtype: torch.dtype = torch.float32, seed: int = 0, shard: str = "5GB"
) -> None:
    """Write the model `name` of `configurations` with seeded random weights and a byte tokenizer to `folder`.

    Norm weights and biases are random too: ones and zeros would hide a tensor that is put in the wrong place.
    """
    config = configurations()[name]
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config).to(dtype)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    parameter.add_(torch.randn_like(parameter) * 0.2)
        model.save_pretrained(folder, max_shard_size=shard)
        byte_tokenizer().save_pretrained(folder)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars or notes of transformers."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(level)
        transformers.logging.enable_progress_bar()


def main() -> None:
    """Run the tool, whose help is the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=sorted(configurations()))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16", "bfloat16"))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    build(arguments.name, arguments.folder, dtype=getattr(torch, arguments.dtype), seed=arguments.seed)
    print(arguments.folder)


if __name__ == "__main__":
    main()
