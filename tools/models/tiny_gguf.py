"""Tiny GGUF files of every architecture that is imported, and what llama.cpp computes with them.

    python tools/models/tiny_gguf.py OUT.npz     write the logits that the importer tests use; needs llama-cpp-python

The weights come from integer arithmetic, so every machine makes the same file. Norms are not ones and biases not
zeros: a tensor in the wrong place shows in the logits.
"""

from __future__ import annotations

import argparse
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np

VOCABULARY, _LAYERS, _HEADS, _CONTEXT = 264, 2, 2, 128
N_TOKENS, N_KEPT = 40, 4
_WIDE_HEADS = frozenset({"qwen3", "gemma", "gemma2"})  # heads wider than hidden / heads
_PLAIN = ("llama", "qwen2", "qwen3", "gemma", "gemma2", "gpt2")
NAMES = (*_PLAIN, "llama_linear", "llama_yarn", "llama_llama3", "llama_tied")


def tokens() -> list[int]:
    """The input of the frozen logits."""
    return [(i * 37 + 11) % VOCABULARY for i in range(N_TOKENS)]


def _noise(name: str, shape: tuple[int, ...]) -> Any:
    """Float32 in [-1, 1): a 32-bit mix of the element's number and the tensor's name."""
    x = np.arange(np.prod(shape), dtype=np.uint64) + sum(
        byte * 131**i % 65521 for i, byte in enumerate(name.encode())
    )
    for _ in range(2):
        x = (x ^ (x >> np.uint64(16))) * np.uint64(0x45D9F3B) & np.uint64(0xFFFFFFFF)
    x ^= x >> np.uint64(16)
    return (x.astype(np.float64) / 2**31 - 1).astype(np.float32).reshape(shape)


def llama3_divisors(n: int, *, theta: float, factor: float, low: float, high: float, original: int) -> Any:
    """What llama.cpp's converter stores for Llama 3's rotary scaling (as transformers states the rule)."""
    per_wavelength = theta ** (-np.arange(n) / n) / (2 * np.pi)
    smooth = np.clip((original * per_wavelength - low) / (high - low), 0, 1)
    return 1 / ((1 - smooth) / factor + smooth)


def write(
    name: str,
    file: Path,
    *,
    quantize: gguf.GGMLQuantizationType | None = None,
    edit: Callable[[gguf.GGUFWriter], None] = lambda writer: None,
    hidden: int = 64,
    inner: int = 96,
) -> None:
    """Write the model `name` of NAMES. `quantize` stores all matrices in blocks; `edit` adds metadata.

    Blocks of 256 weights want `hidden` and `inner` of a multiple of it.
    """
    architecture, _, variant = name.partition("_")
    writer = gguf.GGUFWriter(file, architecture)
    head = 64 if architecture in _WIDE_HEADS else hidden // _HEADS
    writer.add_context_length(_CONTEXT)
    writer.add_embedding_length(hidden)
    writer.add_block_count(_LAYERS)
    writer.add_head_count(_HEADS)
    writer.add_vocab_size(VOCABULARY)
    writer.add_feed_forward_length(inner)
    if architecture == "gpt2":
        writer.add_layer_norm_eps(1e-5)
    else:
        writer.add_head_count_kv(1)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_rope_freq_base(10000.0)
    if architecture == "llama":
        writer.add_rope_dimension_count(head)
    if architecture in _WIDE_HEADS:
        writer.add_key_length(head)
        writer.add_value_length(head)
    if architecture == "gemma2":
        writer.add_sliding_window(16)
        writer.add_attn_logit_softcapping(50.0)
        writer.add_final_logit_softcapping(30.0)
    if variant in {"linear", "yarn"}:
        writer.add_rope_scaling_type(gguf.RopeScalingType(variant))
        writer.add_rope_scaling_factor(4.0)
        writer.add_rope_scaling_orig_ctx_len(32)
    edit(writer)
    for tensor, values in _tensors(architecture, variant, head, hidden=hidden, inner=inner):
        if quantize is None or values.ndim == 1 or values.shape[-1] % gguf.GGML_QUANT_SIZES[quantize][0]:
            writer.add_tensor(tensor, values)
        else:
            writer.add_tensor(tensor, _blocks(values, quantize), raw_dtype=quantize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


FLOATS_AT = {
    "Q2_K": (80, 82), "Q3_K": (108,), "Q4_0": (0,), "Q4_1": (0, 2), "Q4_K": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2),
    "Q5_K": (0, 2), "Q6_K": (208,), "Q8_0": (0,), "IQ4_NL": (0,), "IQ4_XS": (0,), "IQ2_XXS": (0,), "IQ2_XS": (0,),
    "IQ2_S": (0,), "IQ3_XXS": (0,), "IQ3_S": (0,), "IQ1_S": (0,), "TQ1_0": (52,), "TQ2_0": (64,),
}  # fmt: skip
"""Where a block holds numbers in float16."""


def random_blocks(kind: gguf.GGMLQuantizationType, n: int, seed: int = 0) -> Any:
    """Uint8 [n, bytes of a block]: every code is there, and scales are such that weights are of usual size."""
    rng = np.random.default_rng(seed)
    n_weights, n_bytes = gguf.GGML_QUANT_SIZES[kind]
    if kind.name == "TQ1_0":  # not every byte is one of its codes
        return gguf.quants.quantize(rng.standard_normal((n, n_weights)).astype(np.float32), kind)
    blocks = rng.integers(0, 256, (n, n_bytes), np.uint8)
    for at in FLOATS_AT.get(kind.name, ()):
        numbers = rng.uniform(-1, 1, (n, 1)) * (2e-4 if n_weights == 256 and kind.name != "TQ2_0" else 5e-3)
        blocks[:, at : at + 2] = numbers.astype("<f2").view(np.uint8)
    if kind.name == "MXFP4":
        blocks[:, 0] = rng.integers(116, 122, n)
    if kind.name == "TQ2_0":  # three of four codes
        blocks[:, :64] = 0x24
    return blocks


def _blocks(values: Any, kind: gguf.GGMLQuantizationType) -> Any:
    """Rows of blocks: of the values where the package has a quantizer, random ones otherwise."""
    try:
        return gguf.quants.quantize(values, kind)
    except NotImplementedError:
        n_weights, _ = gguf.GGML_QUANT_SIZES[kind]
        seed = zlib.crc32(values.tobytes())  # tied matrices stay alike
        return random_blocks(kind, values.size // n_weights, seed).reshape(len(values), -1)


def _tensors(architecture: str, variant: str, head: int, *, hidden: int, inner: int) -> list[tuple[str, Any]]:
    made: list[tuple[str, Any]] = []

    def matrix(name: str, rows: int, columns: int, scale: float = 1.7) -> None:
        made.append((f"{name}.weight", _noise(name, (rows, columns)) * np.float32(scale / columns**0.5)))

    def norm(name: str, n: int = hidden) -> None:
        made.append((f"{name}.weight", 1 + _noise(name, (n,)) * np.float32(0.2)))

    def bias(name: str, n: int) -> None:
        made.append((f"{name}.bias", _noise(name + "b", (n,)) * np.float32(0.3)))

    is_gpt2 = architecture == "gpt2"
    matrix("token_embd", VOCABULARY, hidden, 8 if "gemma" not in architecture else 1)
    if is_gpt2:
        matrix("position_embd", _CONTEXT, hidden, 4)
    for layer in range(_LAYERS):
        block = f"blk.{layer}."
        norms = ["attn_norm", "ffn_norm"]
        norms += ["post_attention_norm", "post_ffw_norm"] if architecture == "gemma2" else []
        for name in norms:
            norm(block + name)
        sizes = {"attn_q": (_HEADS * head, hidden), "attn_k": (head, hidden), "attn_v": (head, hidden)}
        sizes |= {"attn_output": (hidden, _HEADS * head), "ffn_gate": (inner, hidden)}
        if is_gpt2:
            sizes = {"attn_qkv": (3 * hidden, hidden), "attn_output": (hidden, hidden)}
        sizes |= {"ffn_up": (inner, hidden), "ffn_down": (hidden, inner)}
        for name, (rows, columns) in sizes.items():
            matrix(block + name, rows, columns, 3 if name in {"attn_q", "attn_k"} else 1.7)
            if is_gpt2 or (architecture == "qwen2" and name in {"attn_q", "attn_k", "attn_v"}):
                bias(block + name, rows)
        for name in norms if is_gpt2 else []:
            bias(block + name, hidden)
        if architecture == "qwen3":
            norm(f"{block}attn_q_norm", head)
            norm(f"{block}attn_k_norm", head)
    norm("output_norm")
    if is_gpt2:
        bias("output_norm", hidden)
        made.append(("output.weight", made[0][1]))  # GPT-2 files hold the embedding twice
    elif "gemma" not in architecture and variant != "tied":
        matrix("output", VOCABULARY, hidden)
    if variant == "llama3":
        divisors = llama3_divisors(head // 2, theta=1e4, factor=8, low=1, high=4, original=64)
        made.append(("rope_freqs.weight", divisors.astype(np.float32)))
    return made


def llama_cpp_logits(file: Path) -> Any:
    """Logits [N_KEPT, VOCABULARY] of the last tokens, computed by llama.cpp in float32."""
    import llama_cpp

    model = llama_cpp.Llama(
        str(file), n_ctx=_CONTEXT, n_batch=_CONTEXT, logits_all=True, type_k=0, type_v=0, verbose=False
    )
    model.eval(tokens())
    logits = np.array(model.scores[N_TOKENS - N_KEPT : N_TOKENS], dtype=np.float32)
    model.close()
    return logits


def main() -> None:
    """Run the tool, whose help is the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out

    def no_tokenizer(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model("none")  # llama.cpp insists on a statement

    with tempfile.TemporaryDirectory() as folder:
        logits = {}
        for name in NAMES:
            file = Path(folder) / f"{name}.gguf"
            write(name, file, edit=no_tokenizer)
            logits[name] = llama_cpp_logits(file)
    np.savez_compressed(out, **logits)
    print(out)


if __name__ == "__main__":
    main()
