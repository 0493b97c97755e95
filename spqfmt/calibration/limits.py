"""Where the system, or whoever said so, wants few threads: torch and transformers start no more either."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from spqfmt.codecs.threads import bound_torch, n_threads
from spqfmt.kernels import native

_LOADING = "HF_DEACTIVATE_ASYNC_LOAD"
_LOADING_THREADS = 4
"""What transformers starts to load a model, at most."""


@contextmanager
def within_limits() -> Iterator[None]:
    """While transformers puts weights into a model: it raises, and torch's runtime ends the process, where a thread
    cannot be started."""
    bound_torch()
    n = _LOADING_THREADS + 1
    if n_threads() > 1 and native.startable_threads(n) == n:
        yield
        return
    before = os.environ.get(_LOADING)
    os.environ[_LOADING] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_LOADING]
        else:
            os.environ[_LOADING] = before
