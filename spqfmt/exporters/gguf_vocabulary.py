"""tokenizer.ggml.* from tokenizer.json and the small files beside it.

Two kinds of vocabulary are known: byte-level BPE ("gpt2"), whose way to split text has a name, and sentencepiece's BPE
with bytes to fall back to ("llama"), whose scores are the ranks of merges.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from tokenizers import Tokenizer

from spqfmt.errors import EncodeError
from spqfmt.gguf_splits import IGNORE_MERGES, PRE_TOKENIZERS

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
_SPACE = "\u2581"
_SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
_PROBE = "a"


def vocabulary_keys(files: Mapping[str, bytes], config: Mapping[str, Any], n_rows: int) -> dict[str, Any]:
    """The keys of a vocabulary of `n_rows` tokens, from the files by name; "none" where there is no tokenizer.json.

    Raises EncodeError for a tokenizer of another kind.
    """
    if "tokenizer.json" not in files:
        return {"tokenizer.ggml.model": "none"}
    said = _object(files, "tokenizer.json")
    model = said.get("model") or {}
    if model.get("type") != "BPE":
        raise EncodeError(
            f"tokenizer.json: a tokenizer of the kind {model.get('type')!r} is not written as GGUF"
        )
    try:
        tokenizer = Tokenizer.from_str(files["tokenizer.json"].decode())
    except Exception as error:  # noqa: BLE001 - the library raises no other
        raise EncodeError(f"tokenizer.json cannot be read ({error})") from None
    keys = _sentencepiece(said, tokenizer) if model.get("byte_fallback") else _byte_level(said, tokenizer)
    tokens, kinds = _tokens(said, n_rows, is_bytes=bool(model.get("byte_fallback")))
    keys |= {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": kinds}
    if "tokenizer.ggml.scores" in keys:
        ranks = keys["tokenizer.ggml.scores"]
        keys["tokenizer.ggml.scores"] = [float(ranks.get(token, -len(ranks) - 1)) for token in tokens]
    return keys | _special(files, config, tokens, tokenizer)


def _object(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    """A small file as a JSON object; empty where it is not there."""
    try:
        found = json.loads(files.get(name, b"{}"))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise EncodeError(f"{name} is no JSON object")
    return found


def _tokens(said: dict[str, Any], n_rows: int, *, is_bytes: bool) -> tuple[list[str], list[int]]:
    """Every token and its kind; rows of the embedding that no token has are called so."""
    model = said["model"]
    by_id: dict[int, tuple[str, int]] = {}
    for token, index in model["vocab"].items():
        kind = _BYTE if is_bytes and re.fullmatch("<0x[0-9A-F]{2}>", token) else _NORMAL
        by_id[index] = token, _UNKNOWN if token == model.get("unk_token") and is_bytes else kind
    for token in said.get("added_tokens") or []:
        if by_id.get(token["id"], ("", _NORMAL))[1] == _NORMAL:
            by_id[token["id"]] = token["content"], _CONTROL if token["special"] else _USER_DEFINED
    if (last := max(by_id, default=0)) >= n_rows:
        raise EncodeError(f"tokenizer.json has a token {last}, and the embedding {n_rows} rows")
    filled = [by_id.get(i, (f"[PAD{i}]", _UNUSED)) for i in range(n_rows)]
    return [token for token, _ in filled], [kind for _, kind in filled]


def _merges(said: dict[str, Any]) -> list[tuple[str, str]]:
    """The merges; earlier files have the two parts in one text."""
    merges = said["model"].get("merges") or []
    parts = (merge.split(" ", 1) if isinstance(merge, str) else merge for merge in merges)
    return [(left, right) for left, right in parts]


def _sentencepiece(said: dict[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(_merges(said)):
        ranks.setdefault(left + right, -rank)
    found = tokenizer.encode(_PROBE, add_special_tokens=False).tokens
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.scores": ranks,
        "tokenizer.ggml.add_space_prefix": bool(found) and found[0].startswith(_SPACE),
    }


def _byte_level(said: dict[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
    normalizer = (said.get("normalizer") or {}).get("type", "NFC")
    if normalizer != "NFC":
        raise EncodeError(
            f"tokenizer.json: text is changed by {normalizer} before it is split, not in llama.cpp"
        )
    splits = _plain(said.get("pre_tokenizer"))
    ignores = bool(said["model"].get("ignore_merges"))
    names = (
        name
        for name, pre in PRE_TOKENIZERS.items()
        if _plain(json.loads(pre.__getstate__())) == splits and (name in IGNORE_MERGES) == ignores
    )
    name = next(names, None)
    if name is None:
        raise EncodeError("tokenizer.json: how it splits text has no name in GGUF that is known here")
    # llama.cpp refuses a vocabulary without the key, and gguf writes no empty array: the empty merge joins nothing.
    merges = [" ".join(merge) for merge in _merges(said)] or [""]
    return {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": name, "tokenizer.ggml.merges": merges}


def _plain(pre: Any) -> list[Any]:
    """A pre-tokenizer's steps, without what changes no token."""
    if not isinstance(pre, dict):
        return []
    if pre.get("type") == "Sequence":
        return [step for part in pre["pretokenizers"] for step in _plain(part)]
    return [{key: value for key, value in pre.items() if key != "trim_offsets"}]


def _special(
    files: Mapping[str, bytes], config: Mapping[str, Any], tokens: list[str], tokenizer: Tokenizer
) -> dict[str, Any]:
    """Special tokens, which of them a text begins and ends with, and the template of a conversation."""
    said, generation = _object(files, "tokenizer_config.json"), _object(files, "generation_config.json")
    by_token = {token: i for i, token in reversed(list(enumerate(tokens)))}
    keys: dict[str, Any] = {}
    for name, called in _SPECIAL.items():
        token = said.get(f"{name}_token")
        token = token.get("content") if isinstance(token, dict) else token
        ids = [by_token.get(str(token)), generation.get(f"{name}_token_id"), config.get(f"{name}_token_id")]
        ids = [i[0] if isinstance(i, list) and i else i for i in ids]
        found = next((i for i in ids if type(i) is int and 0 <= i < len(tokens)), None)
        if found is not None:
            keys[f"tokenizer.ggml.{called}_token_id"] = found
    ends = generation.get("eos_token_id")
    others = (
        [i for i in ends if i != keys.get("tokenizer.ggml.eos_token_id")] if isinstance(ends, list) else []
    )
    if others and type(others[0]) is int:
        keys["tokenizer.ggml.eot_token_id"] = others[0]
    whole = tokenizer.encode(_PROBE).ids
    for name, at in (("bos", 0), ("eos", -1)):
        special = keys.get(f"tokenizer.ggml.{name}_token_id")
        keys[f"tokenizer.ggml.add_{name}_token"] = bool(whole) and whole[at] == special
    template = (
        files["chat_template.jinja"].decode() if "chat_template.jinja" in files else said.get("chat_template")
    )
    if isinstance(template, str):
        keys["tokenizer.chat_template"] = template
    return keys
