"""Perplexity of a text, and the mean KL divergence to a reference model, in bounded memory."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from spqfmt.calibration.tokens import encode
from spqfmt.errors import SpqError, foreign_errors
from spqfmt.models.config import text_config
from spqfmt.progress import Progress, Silent

DEFAULT_WINDOW = 2048
# Rows of logits that are widened to float32 at once: 128 rows of a 128k vocabulary are 64 MiB.
_ROWS = 128


@dataclass(frozen=True)
class Evaluation:
    """`kl` is KL(reference || model) in nats a token, None without a reference. `tokens` counts the scored ones."""

    perplexity: float
    kl: float | None
    tokens: int
    stride: int

    def to_json(self) -> dict[str, float | int | None]:
        """The object that `spqfmt eval --json` prints; JSON has no number for what is infinite or none: null."""
        found = {"perplexity": self.perplexity, "kl": self.kl}
        known = {name: v if v is not None and math.isfinite(v) else None for name, v in found.items()}
        return {**known, "tokens": self.tokens, "stride": self.stride}


@dataclass(frozen=True)
class _Window:
    """Tokens `begin` to `end` are the input; those from `first` on are scored, each by the logits before it."""

    begin: int
    first: int
    end: int

    @property
    def layout(self) -> tuple[int, int]:
        """Windows of one layout can share a batch."""
        return self.end - self.begin, self.end - self.first


def encode_text(tokenizer: Any, text: str, *, special_tokens: bool = False) -> torch.Tensor:
    """Token ids [n] of a whole text; with the tokenizer's own special tokens around it (once), if asked for.

    Raises SpqError for a text that the tokenizer cannot cut, or takes without bound for.
    """
    return torch.tensor(encode(tokenizer, text, "text", special_tokens=special_tokens), dtype=torch.int64)


def window_limit(model: Any) -> int | None:
    """The longest window the model takes, or None where its config does not say."""
    limit = getattr(text_config(model.config), "max_position_embeddings", None)
    return None if limit is None else int(limit)


def evaluate(
    model: Any,
    ids: torch.Tensor,
    *,
    before: Sequence[int] = (),
    reference: Any = None,
    window: int | None = None,
    stride: int | None = None,
    max_tokens: int | None = None,
    batch: int = 1,
    progress: Progress | None = None,
) -> Evaluation:
    """Score the text `ids` [n] of token ids.

    Every window begins with the tokens `before`, which are context and not scored: what the tokenizer puts before a
    text, so that the model sees each window as it has seen texts in training. A window of `window` tokens, those
    included (by default what the model takes, at most 2048), moves by `stride` tokens (by default, and at most, as
    many as it has of the text); a window scores the tokens that no window before it has seen, given all that stand
    before them in the window. Without `before` the first token of the text, and with whole windows of every window,
    has no context and is not scored. `max_tokens` cuts the text. `reference` is a model of the same vocabulary; both
    models see the same windows. Logits exist for one batch of windows at a time; sums are kept in float64. `progress`
    counts tokens.

    Raises ValueError for settings that do not fit the model or the text, SpqError for another vocabulary and for a
    model that cannot score it.
    """
    limit = window_limit(model)
    window = min(DEFAULT_WINDOW, limit or DEFAULT_WINDOW) if window is None else window
    stride = window if stride is None else stride
    shortest = max(2, len(before) + 1)
    if window < shortest or (limit is not None and window > limit):
        raise ValueError(f"window {window}: this model takes {shortest} to {limit or 'any number of'} tokens")
    if not 1 <= stride <= window:
        raise ValueError(f"stride {stride}: must be 1 to the window's {window} tokens")
    window -= len(before)
    stride = min(stride, window)
    ids = ids[:max_tokens]
    context = torch.tensor(before, dtype=ids.dtype)
    unscored = 0 if len(before) else 1
    if len(ids) <= unscored:
        raise ValueError(f"the text has {len(ids)} tokens; at least {unscored + 1} are needed")
    n_scored, nll, kl = 0, 0.0, 0.0
    with torch.inference_mode(), progress or Silent() as shown:
        shown.start(len(ids))
        for windows in _batches(_windows(len(ids), window, stride, unscored), batch):
            inputs = torch.stack([torch.cat([context, ids[w.begin : w.end]]) for w in windows])
            n_kept = windows[0].layout[1]
            targets = inputs[:, -n_kept:].reshape(-1)
            logits = _logits(model, inputs, n_kept)
            expected = None if reference is None else _logits(reference, inputs, n_kept)
            if expected is not None and expected.shape != logits.shape:
                raise SpqError(
                    f"the reference has a vocabulary of {expected.shape[-1]}, the model one of {logits.shape[-1]}"
                )
            sums = _sums(logits, targets.to(logits.device), expected)
            n_scored, nll, kl = n_scored + len(targets), nll + sums[0], kl + sums[1]
            shown.advance(len(targets), f"perplexity so far {_perplexity(nll / n_scored):.2f}")
    mean = nll / n_scored
    return Evaluation(
        perplexity=_perplexity(mean),
        kl=None if reference is None else kl / n_scored,
        tokens=n_scored,
        stride=stride,
    )


def _perplexity(mean: float) -> float:
    return math.inf if mean >= 700 else math.exp(mean)  # no number stays none


def _windows(n_tokens: int, window: int, stride: int, unscored: int) -> Iterator[_Window]:
    """The first `unscored` tokens of a window have nothing before them."""
    seen = 0
    for begin in range(0, n_tokens, stride):
        end = min(begin + window, n_tokens)
        first = max(seen, begin + unscored)
        if first < end:
            yield _Window(begin, first, end)
        seen = end
        if end == n_tokens:
            return


def _batches(windows: Iterator[_Window], batch: int) -> Iterator[list[_Window]]:
    """Runs of at most `batch` windows of one layout, in order."""
    run: list[_Window] = []
    for item in windows:
        if run and (len(run) == batch or item.layout != run[0].layout):
            yield run
            run = []
        run.append(item)
    if run:
        yield run


def _logits(model: Any, inputs: torch.Tensor, n_kept: int) -> torch.Tensor:
    """Logits [rows, vocabulary] of the last `n_kept` predictions of every window."""
    options: dict[str, Any] = {"use_cache": False}
    # Heads are wide: most models can leave out the positions that are only context.
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        options["logits_to_keep"] = n_kept + 1

    def explained(reason: str) -> SpqError:
        return SpqError(f"{type(model).__name__} cannot score the text: {reason}")

    with foreign_errors(explained):
        found = model(input_ids=inputs.to(model.device), **options)
    # A config may ask for tuples.
    logits: torch.Tensor = found[0] if isinstance(found, tuple) else found.logits
    return logits[:, -n_kept - 1 : -1].reshape(-1, logits.shape[-1])


def _sums(logits: torch.Tensor, targets: torch.Tensor, expected: torch.Tensor | None) -> tuple[float, float]:
    """Sums over rows of the negative log-likelihood and of KL(expected || logits), in nats."""
    nll, kl = 0.0, 0.0
    for start in range(0, len(targets), _ROWS):
        rows = slice(start, start + _ROWS)
        log_q = logits[rows].float().log_softmax(-1)
        nll -= log_q.gather(1, targets[rows, None]).double().sum().item()
        if expected is not None:
            log_p = expected[rows].to(log_q.device).float().log_softmax(-1)
            # A token that the reference rules out adds nothing, whatever the model says of it.
            terms = torch.where(log_p == -math.inf, 0.0, log_p.exp() * (log_p - log_q))
            kl += terms.sum(-1, dtype=torch.float64).sum().item()
    return nll, kl
