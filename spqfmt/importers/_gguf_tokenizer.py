"""tokenizer.json, tokenizer_config.json and the chat template from a GGUF file's metadata.

Byte-level BPE vocabularies are built here, so that text is split the way the model was trained (`tokenizer.ggml.pre`
names the way); sentencepiece ones are built by transformers' own reader of GGUF files.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from spqfmt.errors import ImporterError
from spqfmt.importers.base import Asset

_CONTROL, _USER_DEFINED = 3, 4
# Splits as the models' own tokenizer.json files state them.
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_BYTE_LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
_GPT2_SPLIT = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _split(pattern: str) -> pre_tokenizers.Sequence:
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), behavior="isolated"), _BYTE_LEVEL])


_DIGITS = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _GPT2_SPLIT])
_PRE_TOKENIZERS = {
    "gpt-2": _GPT2_SPLIT,
    "olmo": _GPT2_SPLIT,
    "mpt": _GPT2_SPLIT,
    "smollm": _DIGITS,
    "starcoder": _DIGITS,
    "refact": _DIGITS,
    "command-r": _DIGITS,
    "codeshell": _DIGITS,
    "llama-bpe": _split(_LLAMA3),
    "smaug-bpe": _split(_LLAMA3),
    "falcon3": _split(_LLAMA3),
    "qwen2": _split(_QWEN2),
    "stablelm2": _split(_QWEN2),
    "deepseek-r1-qwen": _split(_QWEN2),
}
# These vocabularies hold whole words that their merges cannot reach.
_IGNORE_MERGES = frozenset({"llama-bpe", "falcon3"})


def tokenizer_assets(path: Path, metadata: Mapping[str, Any]) -> tuple[Asset, ...]:
    """The tokenizer's files; none for a GGUF without a vocabulary. Raises ImporterError for an unknown kind."""
    kind = metadata.get("tokenizer.ggml.model")
    if kind is None or kind == "none":
        return ()
    pre = metadata.get("tokenizer.ggml.pre", "gpt-2")
    if kind == "gpt2" and isinstance(pre, str) and pre in _PRE_TOKENIZERS:
        return _byte_level_assets(path, metadata, pre)
    return _assets_by_transformers(path, kind, pre)


def _special(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Special tokens by transformers' names."""
    tokens = metadata["tokenizer.ggml.tokens"]
    found = {}
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        index = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if isinstance(index, int) and 0 <= index < len(tokens):
            found[f"{name}_token"] = tokens[index]
    return found


def _strings(path: Path, metadata: Mapping[str, Any], key: str) -> list[str]:
    value = metadata.get(f"tokenizer.ggml.{key}", [])
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ImporterError(f"{path}: tokenizer.ggml.{key} is not a list of strings; convert the model again")
    return value


def _bpe(path: Path, metadata: Mapping[str, Any], pre: str) -> Tokenizer:
    tokens = _strings(path, metadata, "tokens")
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges = []
    for merge in _strings(path, metadata, "merges"):
        left, _, right = merge.partition(" ")
        if not {left, right, left + right} <= vocabulary.keys():
            raise ImporterError(f"{path}: merge {merge!r} is not of the vocabulary; convert the model again")
        merges.append((left, right))
    bpe = models.BPE(vocab=vocabulary, merges=merges, fuse_unk=False, ignore_merges=pre in _IGNORE_MERGES)
    tokenizer = Tokenizer(bpe)
    tokenizer.pre_tokenizer = _PRE_TOKENIZERS[pre]
    tokenizer.decoder = decoders.ByteLevel()
    kinds = metadata.get("tokenizer.ggml.token_type", [])
    for token, kind in zip(tokens, kinds if isinstance(kinds, list) else [], strict=False):
        if kind == _CONTROL:
            tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True)])
        elif kind == _USER_DEFINED:
            tokenizer.add_tokens([AddedToken(token, normalized=False, special=False)])
    return tokenizer


def _byte_level_assets(path: Path, metadata: Mapping[str, Any], pre: str) -> tuple[Asset, ...]:
    tokenizer = _bpe(path, metadata, pre)
    special = _special(metadata)
    adds_bos = bool(metadata.get("tokenizer.ggml.add_bos_token", False)) and "bos_token" in special
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    if adds_bos:
        bos = special["bos_token"]
        template = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
        tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": adds_bos,
        "clean_up_tokenization_spaces": False,
        **special,
    }
    context = metadata.get(f"{metadata['general.architecture']}.context_length")
    if isinstance(context, int):
        config["model_max_length"] = context
    assets = [
        Asset("tokenizer.json", tokenizer.to_str().encode()),
        Asset("tokenizer_config.json", (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()),
    ]
    template_text = metadata.get("tokenizer.chat_template")
    if isinstance(template_text, str):
        assets.append(Asset("chat_template.jinja", template_text.encode()))
    return tuple(assets)


def _assets_by_transformers(path: Path, kind: str, pre: str) -> tuple[Asset, ...]:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    except (ValueError, KeyError, ImportError, NotImplementedError) as error:
        raise ImporterError(
            f"{path}: tokenizer {kind!r} ({pre!r}) cannot be rebuilt ({error}); import the Hugging Face folder instead"
        ) from None
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return tuple(
            Asset(file.name, file.read_bytes()) for file in sorted(Path(folder).iterdir()) if file.is_file()
        )
