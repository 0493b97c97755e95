"""tokenizer.json, tokenizer_config.json and the chat template from a GGUF file's metadata.

Four kinds of vocabulary are rebuilt: byte-level BPE ("gpt2"), split the way `tokenizer.ggml.pre` names, sentencepiece
("llama"), whose merges follow from the scores, its pieces with merges ("gemma4"), and its unigrams ("t5"). What they
give is held against llama.cpp's own tokenizer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    processors,
)

from spqfmt.errors import ImporterError
from spqfmt.gguf_splits import DEFAULT_PRE, IGNORE_MERGES, PRE_TOKENIZERS, split_by
from spqfmt.importers._gguf_unigram import unigram
from spqfmt.importers.base import Asset
from spqfmt.importers.end_tokens import known_ends

_CONTROL, _USER_DEFINED, _BYTE = 3, 4, 6
_UNCUT = {_CONTROL, _USER_DEFINED}
_SPACE = "\u2581"
_PIECE_CHARACTERS = 512
"""Every way to cut a piece is tried. Sentencepiece makes them of 16 characters, some runs of blanks are longer."""


class UnknownTokenizerError(Exception):
    """A sound vocabulary of a kind that is not known here."""


def tokenizer_assets(path: Path, metadata: Mapping[str, Any]) -> tuple[Asset, ...]:
    """The tokenizer's files; none for a GGUF without a vocabulary.

    Raises UnknownTokenizerError for an unknown kind, ImporterError for a vocabulary that contradicts itself.
    """
    kind = metadata.get("tokenizer.ggml.model", "none")
    if kind == "none":
        return ()
    if kind == "llama":
        return _assets(metadata, _sentencepiece(path, metadata), default_bos=True)
    if kind == "gemma4":
        return _assets(metadata, _pieces_with_merges(path, metadata), default_bos=True)
    if kind == "t5":
        tokenizer = unigram(path, metadata, _strings(path, metadata, "tokens"))
        _add_tokens(tokenizer, metadata)
        return _assets(metadata, tokenizer, default_bos=False, default_eos=True)
    pre = metadata.get("tokenizer.ggml.pre", "default")
    if pre == "default":
        pre = DEFAULT_PRE.get(metadata["general.architecture"], pre)
    split = _split_of(pre) if kind == "gpt2" and isinstance(pre, str) else None
    if split is None:
        raise UnknownTokenizerError(f"tokenizer {kind!r} that splits text as {pre!r} is not known")
    return _assets(
        metadata, _byte_level(path, metadata, split, ignore_merges=pre in IGNORE_MERGES), default_bos=False
    )


def _split_of(pre: str) -> Any | None:
    """How text is split for a name; by transformers' table where that of here has it not; None where neither does."""
    if pre in PRE_TOKENIZERS:
        return PRE_TOKENIZERS[pre]
    try:
        from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
    except ImportError:  # a transformers before 5.23 has no such table
        return None
    pattern = GGUF_PRE_TOKENIZER_SPLITS.get(pre)
    return None if pattern is None else split_by(pattern)


def end_token_ids(metadata: Mapping[str, Any]) -> list[int]:
    """Every token that ends a generation: the ends of document, turn and message that the file names, then the known
    ones of its vocabulary.
    """
    named = [metadata.get(f"tokenizer.ggml.{key}_token_id") for key in ("eos", "eot", "eom")]
    ids = [index for index in named if isinstance(index, int) and index >= 0]
    known = known_ends({token: i for i, (token, kind) in enumerate(_kinds(metadata)) if kind in _UNCUT})
    return list(dict.fromkeys([*ids, *known]))


def _kinds(metadata: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Every token with its kind; none for a file without kinds."""
    tokens, kinds = (metadata.get(f"tokenizer.ggml.{key}") for key in ("tokens", "token_type"))
    return (
        list(zip(tokens, kinds, strict=False)) if isinstance(tokens, list) and isinstance(kinds, list) else []
    )


def _special(metadata: Mapping[str, Any]) -> dict[str, str]:
    """The special tokens by the names that transformers gives them."""
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


def _byte_level(path: Path, metadata: Mapping[str, Any], split: Any, *, ignore_merges: bool) -> Tokenizer:
    vocabulary = {token: index for index, token in enumerate(_strings(path, metadata, "tokens"))}
    merges = _merges(path, metadata, vocabulary)
    bpe = models.BPE(vocab=vocabulary, merges=merges, fuse_unk=False, ignore_merges=ignore_merges)
    tokenizer = Tokenizer(bpe)
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    _add_tokens(tokenizer, metadata)
    return tokenizer


def _merges(path: Path, metadata: Mapping[str, Any], vocabulary: Mapping[str, int]) -> list[tuple[str, str]]:
    merges = []
    for merge in filter(
        None, _strings(path, metadata, "merges")
    ):  # an empty one joins nothing (our exporter's)
        left, _, right = merge.partition(" ")
        if not {left, right, left + right} <= vocabulary.keys():
            raise ImporterError(f"{path}: merge {merge!r} is not of the vocabulary; convert the model again")
        merges.append((left, right))
    return merges


def _pieces_with_merges(path: Path, metadata: Mapping[str, Any]) -> Tokenizer:
    """Sentencepiece's pieces, joined as the file lists it. Lines are not joined: no merge is of text and line ends."""
    vocabulary = {token: index for index, token in enumerate(_strings(path, metadata, "tokens"))}
    return _of_pieces(metadata, vocabulary, _merges(path, metadata, vocabulary), prefix_default=False)


def _sentencepiece(path: Path, metadata: Mapping[str, Any]) -> Tokenizer:
    """Sentencepiece joins the pair whose piece has the best score: every way to cut a piece in two is a merge."""
    tokens = _strings(path, metadata, "tokens")
    scores, kinds = metadata.get("tokenizer.ggml.scores"), metadata.get("tokenizer.ggml.token_type")
    if (
        not isinstance(scores, list)
        or not isinstance(kinds, list)
        or not len(tokens) == len(scores) == len(kinds)
    ):
        raise ImporterError(
            f"{path}: tokens, scores and token_type differ in length; convert the model again"
        )
    vocabulary = {token: index for index, token in enumerate(tokens)}
    whole = {_CONTROL, _USER_DEFINED, _BYTE}
    pieces = {token for token, kind in zip(tokens, kinds, strict=True) if kind not in whole}
    longest = max(pieces, key=len, default="")
    if len(longest) > _PIECE_CHARACTERS:
        raise ImporterError(
            f"{path}: a piece of the vocabulary has {len(longest)} characters, {_PIECE_CHARACTERS} are the most; "
            "import the Hugging Face folder"
        )
    merges: list[tuple[str, str]] = []
    for piece in sorted(pieces, key=lambda piece: (-scores[vocabulary[piece]], vocabulary[piece])):
        cuts = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
        merges.extend((left, right) for left, right in cuts if left in pieces and right in pieces)
    return _of_pieces(metadata, vocabulary, merges, prefix_default=True)


def _of_pieces(
    metadata: Mapping[str, Any],
    vocabulary: Mapping[str, int],
    merges: list[tuple[str, str]],
    *,
    prefix_default: bool,
) -> Tokenizer:
    """Pieces whose blanks are written as a sign, and what is none of them byte by byte."""
    unknown = _special(metadata).get("unk_token")
    tokenizer = Tokenizer(
        models.BPE(
            vocab=dict(vocabulary), merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True
        )
    )
    steps: list[normalizers.Normalizer] = [normalizers.Replace(" ", _SPACE)]
    undo: list[decoders.Decoder] = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if metadata.get("tokenizer.ggml.add_space_prefix", prefix_default):
        steps.insert(0, normalizers.Prepend(_SPACE))
        undo.append(decoders.Strip(" ", 1, 0))
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.decoder = decoders.Sequence(undo)
    _add_tokens(tokenizer, metadata)
    return tokenizer


def _add_tokens(tokenizer: Tokenizer, metadata: Mapping[str, Any]) -> None:
    """Tokens that are never cut: control ones are special, user-defined ones (such as <think>) are text.

    An end of generation is special even where the file calls it user-defined: it is no part of an answer.
    """
    ends = set(end_token_ids(metadata))
    kinds = enumerate(_kinds(metadata))
    uncut = [(token, kind == _CONTROL or i in ends) for i, (token, kind) in kinds if kind in _UNCUT]
    control = [AddedToken(token, normalized=False, special=True) for token, special in uncut if special]
    whole = [AddedToken(token, normalized=False, special=False) for token, special in uncut if not special]
    tokenizer.add_special_tokens(control)
    tokenizer.add_tokens(whole)


def _assets(
    metadata: Mapping[str, Any], tokenizer: Tokenizer, *, default_bos: bool, default_eos: bool = False
) -> tuple[Asset, ...]:
    special = _special(metadata)
    ends = {}
    for side, default in (("bos", default_bos), ("eos", default_eos)):
        wanted = metadata.get(f"tokenizer.ggml.add_{side}_token", default)
        ends[side] = special.get(f"{side}_token") if wanted else None
    if any(ends.values()):
        first, last = ends["bos"], ends["eos"]
        around = [[first] if first else [], [last] if last else []]
        template = processors.TemplateProcessing(
            single=[*around[0], "$A", *around[1]],
            pair=[*around[0], "$A", *around[1], *around[0], "$B", *around[1]],
            special_tokens=[(token, tokenizer.token_to_id(token)) for token in ends.values() if token],
        )
        earlier = tokenizer.post_processor
        tokenizer.post_processor = processors.Sequence([earlier, template]) if earlier else template
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": ends["bos"] is not None,
        "add_eos_token": ends["eos"] is not None,
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
