"""Room under a ceiling for weights that a model's own code reads, which are decoded for it."""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable
from types import FrameType

import torch

from spqfmt.errors import MemoryBudgetError
from spqfmt.residency.plan import Plan

_MODULE_CALL = torch.nn.Module._call_impl.__code__


class _Taken:
    n_bytes = 0


class _OfThread(threading.local):
    def __init__(self) -> None:
        self.taken = _Taken()


class Room:
    """What a plan leaves for it, for each thread that runs the model, as each has activations of its own.

    Who reads weights beside the model, to look at them or to keep them, brings memory of his own, and has no ceiling.
    """

    def __init__(self, plan: Plan) -> None:
        self._ceiling = plan.memory_bytes
        self._n_bytes = plan.free_bytes
        self._of_thread = _OfThread()

    def decode(self, what: str, n_bytes: int, decode: Callable[[], torch.Tensor]) -> torch.Tensor:
        """What `decode` makes, `n_bytes` that are taken until nothing uses them any more.

        MemoryBudgetError, which says `what` is decoded, where there is no such room, before anything is.
        """
        if self._ceiling is None or self._n_bytes is None or not _is_in_a_model():
            return decode()
        taken = self._of_thread.taken
        wanted = taken.n_bytes + n_bytes
        if wanted > self._n_bytes:
            enough = self._ceiling + wanted - self._n_bytes
            raise MemoryBudgetError(
                f"{what}: the model's code reads this weight, which is {n_bytes} bytes decoded; memory {self._ceiling} "
                f"leaves no room for them, {enough} does",
                enough,
            )
        values = decode()
        taken.n_bytes = wanted

        def give_back() -> None:
            taken.n_bytes -= n_bytes

        weakref.finalize(values.untyped_storage(), give_back).atexit = False
        return values


def _is_in_a_model() -> bool:
    """Whether a module's `forward` has called, in this thread."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code is _MODULE_CALL:
            return True
        frame = frame.f_back
    return False
