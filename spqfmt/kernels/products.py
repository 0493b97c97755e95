"""What a processor multiplies fast: float types, by a measurement of some milliseconds, once in a process."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch

_TOKENS, _CHANNELS, _ROUNDS = 32, 512, 40
"""A product as a prompt has them in a small model, and how often it is repeated: the best counts."""


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute on one thread: steps that are too small to share, sums that must not depend on sharing, times.

    The number is the process's: what computes in other threads meanwhile may see it.
    """
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)


@cache
def product_seconds(dtype: torch.dtype) -> float:
    """Seconds of one product of matrices of `dtype`, by torch on the CPU.

    One thread computes, and its own time counts: other programs do not disturb it. Of several, this one would wait
    for those that a busy machine holds back.
    """
    x = torch.full((_TOKENS, _CHANNELS), 0.5, dtype=dtype)
    weight = torch.full((_CHANNELS, _CHANNELS), 0.5, dtype=dtype)
    best = float("inf")
    with torch.inference_mode(), one_thread():
        for _ in range(1 + _ROUNDS):
            started = time.thread_time()
            torch.nn.functional.linear(x, weight)
            best = min(best, time.thread_time() - started)
    return best
