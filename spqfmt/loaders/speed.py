"""How long a loaded model takes for a prompt, or for each further token."""

import inspect
import time
from dataclasses import dataclass
from typing import Any

import torch

from spqfmt.models.caches import cache_name, cache_of
from spqfmt.models.config import text_config

_SHORT_PROMPT = 8


@dataclass(frozen=True)
class Workload:
    """`prompt_tokens` > 0: one pass over a prompt of so many; else `steps` passes of one token after a short prompt."""

    name: str
    batch: int
    prompt_tokens: int = 0
    steps: int = 0


def seconds_per_pass(model: Any, workload: Workload) -> float:
    """Mean time of a pass over `workload.batch` sequences. Tokens are arbitrary, as is what comes out."""
    accepted = inspect.signature(model.forward).parameters
    options = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
    vocabulary = text_config(model.config).vocab_size

    def tokens(n: int) -> torch.Tensor:
        ids = torch.arange(workload.batch * n).view(workload.batch, n)
        found: torch.Tensor = (ids * 7919 + 11) % vocabulary
        return found

    with torch.inference_mode():
        if workload.prompt_tokens:
            ids = tokens(workload.prompt_tokens)
            started = time.perf_counter()
            model(ids, **options)
            return time.perf_counter() - started
        name = cache_name(model)
        state = cache_of(model(tokens(_SHORT_PROMPT), use_cache=True, **options))
        step = tokens(1)
        started = time.perf_counter()
        for _ in range(workload.steps):
            state = cache_of(model(step, use_cache=True, **{name: state}, **options))
        return (time.perf_counter() - started) / workload.steps
