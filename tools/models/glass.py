"""glassllm 0.1.0 (0.85 M trained parameters, FP16, on PyPI) as a Llama model for transformers.

    python tools/models/glass.py OUT_DIR [--language en|pt]

The weights are stored [in, out] and its rotary embedding turns neighbouring pairs instead of the halves of a head. Its
tokenizer is character BPE with spaces shown as U+2581, rebuilt with the tokenizers library. Both are checked: the
logits against glassllm's own forward pass, the token ids against its own tokenizer.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from pathlib import Path
from typing import Any

import glassllm  # type: ignore[import-untyped]
import numpy as np
import torch
import transformers
from tiny import quiet
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

_SPACE = "\u2581"
_SPECIALS = ("<pad>", "<unk>", "<bos>", "<eos>")
_SAMPLE = (
    "Alice was beginning to get very tired of sitting by her sister on the bank, and of having nothing to do:  "
    "once or twice she had peeped into the book\nher sister was reading, but it had no pictures"
)
_MAX_LOGIT_ERROR = 1e-2
_N_LAYERS, _N_HEADS, _N_KV_HEADS = 4, 4, 2
_ROTATED = {"attn.W_Q": _N_HEADS, "attn.W_K": _N_KV_HEADS}
_LAYER_NAMES = {
    "input_layernorm": "norm1.gamma",
    "self_attn.q_proj": "attn.W_Q",
    "self_attn.k_proj": "attn.W_K",
    "self_attn.v_proj": "attn.W_V",
    "self_attn.o_proj": "attn.W_O",
    "post_attention_layernorm": "norm2.gamma",
    "mlp.gate_proj": "ffn.W1",
    "mlp.up_proj": "ffn.W3",
    "mlp.down_proj": "ffn.W2",
}


def _folder() -> Path:
    spec = importlib.util.find_spec("glassllm")
    if spec is None or spec.origin is None:
        raise SystemExit("glassllm is not installed: pip install glassllm==0.1.0")
    return Path(spec.origin).parent / "weights"


def _halves_apart(weight: Any, heads: int) -> Any:
    """Rows of a projection [out, in]: glassllm rotates neighbouring pairs of a head, Llama its two halves."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).transpose(0, 2, 1, 3).reshape(rows, columns)


def state_dict(language: str) -> dict[str, torch.Tensor]:
    """glassllm's arrays under Llama's names, float16."""
    arrays = np.load(_folder() / f"{language}.npz")
    state = {"model.embed_tokens.weight": arrays["E"], "model.norm.weight": arrays["norm_f.gamma"]}
    for layer in range(_N_LAYERS):
        source = {name: arrays[f"blocks.{layer}.{name}"] for name in _LAYER_NAMES.values()}
        for ours, theirs in _LAYER_NAMES.items():
            array = source[theirs].T
            if theirs in _ROTATED:
                array = _halves_apart(array, _ROTATED[theirs])
            state[f"model.layers.{layer}.{ours}.weight"] = array
    return {name: torch.from_numpy(np.ascontiguousarray(array)).half() for name, array in state.items()}


def tokenizer(language: str) -> Any:
    """glassllm's tokenizer for transformers: NFC, spaces to U+2581, chunks that merges do not cross, BPE."""
    data = json.loads((_folder() / f"{language}.tokenizer.json").read_text("utf-8"))
    merges = [tuple(pair) for pair in data["merges"]]
    tokens = [*_SPECIALS, *data["alphabet"], *(left + right for left, right in merges)]
    bpe = models.BPE(
        vocab={token: i for i, token in enumerate(tokens)}, merges=merges, unk_token=_SPECIALS[1]
    )
    built = Tokenizer(bpe)
    built.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(" ", _SPACE)])
    chunk = Regex(rf"\n|{_SPACE}*[^{_SPACE}\n]+|{_SPACE}+")
    built.pre_tokenizer = pre_tokenizers.Split(chunk, behavior="isolated")
    built.decoder = decoders.Sequence([decoders.Replace(_SPACE, " "), decoders.Fuse()])
    built.add_special_tokens(list(_SPECIALS))
    names = dict(zip(("pad_token", "unk_token", "bos_token", "eos_token"), _SPECIALS, strict=True))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=built, **names)


def build(folder: str | Path, *, language: str = "en") -> float:
    """Write the Hugging Face folder and check it; returns the largest difference of a logit to glassllm's own."""
    config = transformers.LlamaConfig(
        vocab_size=1024,
        hidden_size=128,
        intermediate_size=341,
        num_hidden_layers=_N_LAYERS,
        num_attention_heads=_N_HEADS,
        num_key_value_heads=_N_KV_HEADS,
        max_position_embeddings=128,
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
        bos_token_id=2,
        eos_token_id=3,
        pad_token_id=0,
    )
    with quiet():
        model = transformers.LlamaForCausalLM(config).half().eval()
        missing, unexpected = model.load_state_dict(state_dict(language), strict=False)
        if unexpected or missing not in ([], ["lm_head.weight"]):
            raise SystemExit(f"glassllm's tensors do not fit: missing {missing}, unexpected {unexpected}")
        model.tie_weights()
        error = _check(model.float(), tokenizer(language), language)
        model.half().save_pretrained(folder)
        tokenizer(language).save_pretrained(folder)
    return error


def _check(model: Any, rebuilt: Any, language: str) -> float:
    original, original_tokenizer = glassllm.load_pretrained(language)
    ids = original_tokenizer.encode(_SAMPLE)
    if rebuilt(_SAMPLE)["input_ids"] != ids or rebuilt.decode(ids) != original_tokenizer.decode(ids):
        raise SystemExit("the rebuilt tokenizer differs from glassllm's own")
    expected = np.asarray(original.forward(ids).data)[0]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].numpy()
    error = float(np.abs(expected - logits).max())
    if error > _MAX_LOGIT_ERROR:
        raise SystemExit(f"logits differ by {error} from glassllm's own")
    return error


def main() -> None:
    """Run the tool, whose help is the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--language", default="en", choices=("en", "pt"))
    arguments = parser.parse_args()
    error = build(arguments.folder, language=arguments.language)
    print(f"{arguments.folder}: logits within {error:.2e} of glassllm's own")


if __name__ == "__main__":
    main()
