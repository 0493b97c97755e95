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

    One thread computes, and its own time counts: other programs do not disturb it. Of several, this one would wait
    for those that a busy machine holds back.
    """
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _on_this_thread(dtype)
    finally:
        torch.set_num_threads(n_threads)


def _on_this_thread(dtype: torch.dtype) -> float:
    x = torch.full((_TOKENS, _CHANNELS), 0.5, dtype=dtype)
    weight = torch.full((_CHANNELS, _CHANNELS), 0.5, dtype=dtype)
    best = float("inf")
    with torch.inference_mode():
        for _ in range(1 + _ROUNDS):
            started = time.thread_time()
            torch.nn.functional.linear(x, weight)
            best = min(best, time.thread_time() - started)
    return best
