"""What a processor multiplies fast: float types, by a measurement of some milliseconds, once in a process."""

import time
from functools import cache

import torch

_TOKENS, _CHANNELS, _ROUNDS = 32, 512, 40
"""A product as a prompt has them in a small model, and how often it is repeated: the best counts. Of five all were
disturbed on a busy machine now and then."""


@cache
def product_seconds(dtype: torch.dtype) -> float:
    """Seconds of one product of matrices of `dtype`, by torch on the CPU.

    The calling thread's own time counts: its share is the same for any dtype, and other programs do not disturb it.
    """
    x = torch.full((_TOKENS, _CHANNELS), 0.5, dtype=dtype)
    weight = torch.full((_CHANNELS, _CHANNELS), 0.5, dtype=dtype)
    best = float("inf")
    with torch.inference_mode():
        for _ in range(1 + _ROUNDS):
            started = time.thread_time()
            torch.nn.functional.linear(x, weight)
            best = min(best, time.thread_time() - started)
    return best
