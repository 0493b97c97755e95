"""What a tokenizer adds to a text of its own accord, and whether a model has rows for what it makes of one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from spqfmt.errors import SpqError, foreign_errors
from spqfmt.models.bounded import bounded_ids

# One that becomes tokens in most vocabularies that cover some language at all.
_PROBES = ("a", "the", "0", ".", " ", "\u00e9", "\u4e00")
_PROBE_CHARACTERS = 1000
_PROBE_TOKENS = 1000


def added_tokens(tokenizer: Any, text: str = "") -> tuple[list[int], list[int]]:
    """Ids that the tokenizer puts before and after every text: BOS or [CLS], EOS or [SEP]; empty for one without.

    Found by what it does, since settings such as `add_bos_token` do not hold for every kind of tokenizer: to common
    words, to `text`, and to its own tokens, for one that knows none of the words (DNA, another alphabet). That is not
    bounded here, as it is by `leading_tokens`.
    """
    for probe in _probes(tokenizer, text):
        try:
            alone, whole = (_ids(tokenizer, probe, special_tokens=s) for s in (False, True))
        except SpqError:  # a vocabulary without this word, and without a token for unknown ones
            continue
        # A token for unknown words may be BOS too: only what stands in one place tells before from after.
        starts = [
            start
            for start in range(len(whole) - len(alone) + 1)
            if alone and whole[start : start + len(alone)] == alone
        ]
        if len(starts) == 1:
            return whole[: starts[0]], whole[starts[0] + len(alone) :]
    return [], []


def leading_tokens(tokenizer: Any, text: str = "") -> list[int]:
    """Ids that begin every text, as the model has seen it in training. `text` as for `added_tokens`.

    Raises SpqError for a tokenizer that takes without bound.
    """
    return bounded_ids(
        lambda: added_tokens(tokenizer, text)[0],
        text,
        lambda reason: SpqError(f"the tokenizer cannot cut a text: {reason}"),
    )


def encode(tokenizer: Any, text: str, what: str, *, special_tokens: bool = False) -> list[int]:
    """Token ids of `text`.

    Raises SpqError, which calls it `what`, where the tokenizer cannot cut it, or takes without bound.
    """
    return bounded_ids(
        lambda: _ids(tokenizer, text, special_tokens=special_tokens),
        text,
        lambda reason: SpqError(f"the tokenizer cannot cut the {what}: {reason}"),
    )


def _ids(tokenizer: Any, text: str, *, special_tokens: bool) -> list[int]:
    with foreign_errors(SpqError):
        return list(tokenizer(text, add_special_tokens=special_tokens, verbose=False)["input_ids"])


def _probes(tokenizer: Any, text: str) -> Iterator[str]:
    yield from _PROBES
    yield text[:_PROBE_CHARACTERS]
    yield text
    special = set(tokenizer.all_special_ids)
    ids = sorted(set(tokenizer.get_vocab().values()) - special)
    for index in ids[:: len(ids) // _PROBE_TOKENS + 1]:
        yield tokenizer.decode([index])


def described(tokenizer: Any, ids: list[int]) -> str:
    """Tokens by name, for a line that says what a text begins with."""
    return " ".join(str(token) for token in tokenizer.convert_ids_to_tokens(ids))


def check_ids(model: Any, tokenizer: Any, ids: torch.Tensor) -> None:
    """Raise SpqError for an id without a row in the model's embedding."""
    try:
        n_rows = getattr(model.get_input_embeddings(), "num_embeddings", None)
    except NotImplementedError:  # transformers does not know which of the model's embeddings takes the ids
        n_rows = None
    if n_rows is None or not ids.numel() or int(ids.max()) < n_rows:
        return
    worst = int(ids[ids >= n_rows][0])
    token = tokenizer.convert_ids_to_tokens(worst)
    raise SpqError(
        f'the tokenizer does not fit the model: token "{token}" has id {worst}, the embedding has {n_rows} rows; '
        "take the model's own tokenizer"
    )
