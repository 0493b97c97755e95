"""What a command imports stays until it ends: nobody looks for garbage in it."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """Collect no garbage in the context, and look at nothing that was there at its end ever again.

    To import torch takes a sixth less so. A process that has it already is somebody's own: nothing is done there.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
