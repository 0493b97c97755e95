"""A GGUF file of the shape of a synthetic model, its matrices in blocks of one kind.

    python tools/models/synthetic_gguf.py 1.5b Q4_K OUT.gguf [--seed 0]

For measuring what kinds of blocks cost to pack and to run, beside llama.cpp. Shapes and statistics are those of
synthetic.py. A matrix of each shape is quantized once, by ggml's own quantizer where the package gguf has none (it is
in the package xllamacpp); layers have its rows, each begun elsewhere, and embedding and head those of `up`. Norms are
F32. The vocabulary is of single bytes and of words that mean nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from ggml_quantizer import ggml_blocks
from synthetic import SHAPES, RandomTensor

_CONTEXT = 2048
_ROWS_APART = 7


def quantized(values: Any, kind: gguf.GGMLQuantizationType) -> Any:
    """Blocks of float32 [rows, columns], uint8 [rows, bytes of a row]. SystemExit where nothing makes these."""
    made = ggml_blocks(values, kind)
    if made is None:
        raise SystemExit(f"{kind.name} needs ggml's quantizer: pip install xllamacpp")
    return made


def tensors(shape: dict[str, int], kind: gguf.GGMLQuantizationType, seed: int) -> Iterator[tuple[str, Any]]:
    """The tensors of a Llama in the file's order; matrices as rows of blocks."""
    hidden, inner = shape["hidden_size"], shape["intermediate_size"]

    @lru_cache(3)
    def matrix(rows: int, columns: int) -> Any:
        return quantized(
            RandomTensor("", (rows, columns), seed + rows + columns).load().float().numpy(), kind
        )

    def norm(number: int) -> Any:
        return RandomTensor("", (hidden,), seed + number).load().float().numpy()

    words = np.resize(matrix(inner, hidden), (shape["vocab_size"], matrix(inner, hidden).shape[1]))
    yield "token_embd.weight", words
    sizes = {f"attn_{name}": (hidden, hidden) for name in ("q", "k", "v", "output")}
    sizes |= {"ffn_gate": (inner, hidden), "ffn_up": (inner, hidden), "ffn_down": (hidden, inner)}
    n = 0
    for layer in range(shape["num_hidden_layers"]):
        for name in ("attn_norm", "ffn_norm"):
            yield f"blk.{layer}.{name}.weight", norm(2 * layer)
        for name, size in sizes.items():
            n += 1
            yield f"blk.{layer}.{name}.weight", np.roll(matrix(*size), n * _ROWS_APART, 0)
    yield "output_norm.weight", norm(1)
    yield "output.weight", np.roll(words, _ROWS_APART, 0)


def write(name: str, kind: gguf.GGMLQuantizationType, file: Path, *, seed: int = 0) -> None:
    """Write the model `name` of synthetic.SHAPES."""
    shape = SHAPES[name]
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(_CONTEXT)
    writer.add_embedding_length(shape["hidden_size"])
    writer.add_block_count(shape["num_hidden_layers"])
    writer.add_feed_forward_length(shape["intermediate_size"])
    writer.add_head_count(shape["num_attention_heads"])
    writer.add_head_count_kv(shape["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(shape["hidden_size"] // shape["num_attention_heads"])
    writer.add_vocab_size(shape["vocab_size"])
    _add_vocabulary(writer, shape["vocab_size"])
    for tensor, values in tensors(shape, kind, seed):
        writer.add_tensor(tensor, values, raw_dtype=kind if values.ndim > 1 else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_vocabulary(writer: gguf.GGUFWriter, n: int) -> None:
    kinds = gguf.TokenType
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += [f"w{number}" for number in range(len(tokens), n)]
    types = [kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL, *[kinds.BYTE] * 256]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens[:n])
    writer.add_token_scores([0.0] * n)
    writer.add_token_types([int(kind) for kind in (types + [kinds.NORMAL] * n)[:n]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def main() -> None:
    """Run the tool, whose help is the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("kind", help="as ggml calls it")
    parser.add_argument("file", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    write(given.shape, gguf.GGMLQuantizationType[given.kind], given.file, seed=given.seed)


if __name__ == "__main__":
    main()
