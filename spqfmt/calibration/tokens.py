"""What a tokenizer adds to a text of its own accord, and whether a model has rows for what it makes of one."""

from __future__ import annotations

from typing import Any

import torch

from spqfmt.errors import SpqError

# One that becomes tokens in any vocabulary that covers some language at all.
_PROBES = ("a", "the", "0", ".", " ", "\u00e9", "\u4e00")


def added_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Ids that the tokenizer puts before and after every text: BOS or [CLS], EOS or [SEP]; empty for one without.

    Found by what it does, since settings such as `add_bos_token` do not hold for every kind of tokenizer.
    """
    for probe in _PROBES:
        whole = list(tokenizer(probe)["input_ids"])
        alone = list(tokenizer(probe, add_special_tokens=False)["input_ids"])
        if not alone:
            continue
        for start in range(len(whole) - len(alone) + 1):
            if whole[start : start + len(alone)] == alone:
                return whole[:start], whole[start + len(alone) :]
    return [], []


def leading_tokens(tokenizer: Any) -> list[int]:
    """Ids that begin every text, as the model has seen it in training."""
    return added_tokens(tokenizer)[0]


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
