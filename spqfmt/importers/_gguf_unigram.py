"""T5's tokenizer from a GGUF file's metadata: sentencepiece's pieces, of which the likeliest row is a text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from spqfmt.errors import ImporterError, one_sentence

_SPACE = "\u2581"
_UNKNOWN = 2
"""The number that llama.cpp takes where a file names none."""


def unigram(path: Path, metadata: Mapping[str, Any], tokens: list[str]) -> Tokenizer:
    """The tokenizer without its special tokens. Raises ImporterError for a vocabulary that contradicts itself."""
    scores = metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(tokens):
        raise _broken(path, "tokens and scores differ in length")
    if not all(isinstance(score, float) and math.isfinite(score) for score in scores):
        raise _broken(path, "tokenizer.ggml.scores are no finite numbers")
    unknown = metadata.get("tokenizer.ggml.unknown_token_id", _UNKNOWN)
    if type(unknown) is not int or not 0 <= unknown < len(tokens):
        raise _broken(path, f"tokenizer.ggml.unknown_token_id is {str(unknown)[:80]}, no token")
    tokenizer = Tokenizer(
        models.Unigram(list(zip(tokens, scores, strict=True)), unknown, byte_fallback=False)
    )
    characters = _bytes(path, metadata.get("tokenizer.ggml.precompiled_charsmap", []))
    if characters:
        try:
            tokenizer.normalizer = normalizers.Precompiled(characters)
        except Exception as error:  # noqa: BLE001  # tokenizers raises no other
            raise _broken(path, f"tokenizer.ggml.precompiled_charsmap: {one_sentence(error)}") from None
    prefix = "always" if metadata.get("tokenizer.ggml.add_space_prefix", True) is True else "never"
    by_words: list[pre_tokenizers.PreTokenizer] = [
        pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme=prefix, split=True)
    ]
    # As T5 of transformers has it: blanks beside others, and at the end, are nothing.
    if metadata.get("tokenizer.ggml.remove_extra_whitespaces", True) is True:
        by_words.insert(0, pre_tokenizers.WhitespaceSplit())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(by_words)
    tokenizer.decoder = decoders.Metaspace(replacement=_SPACE, prepend_scheme=prefix, split=True)
    return tokenizer


def _broken(path: Path, why: str) -> ImporterError:
    return ImporterError(f"{path}: {why}; convert the model again")


def _bytes(path: Path, numbers: object) -> bytes:
    if not isinstance(numbers, list) or not all(type(one) is int and -128 <= one <= 255 for one in numbers):
        raise _broken(path, "tokenizer.ggml.precompiled_charsmap is no list of bytes")
    return bytes(one & 0xFF for one in numbers)
