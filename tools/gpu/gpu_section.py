"""One section of tools/gpu/gpu_check.py, which starts this as a process of its own: MODULE:FUNCTION and its options."""

import argparse
import importlib
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from gpu_lines import NoDeviceError, Options
from gpu_runner import NO_DEVICE


def main(arguments: Sequence[str] | None = None) -> int:
    """Call the function with the options."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target")
    parser.add_argument("--alarm", type=int)
    parser.add_argument("--section", required=True)
    for name in ("lines", "folder", "model"):
        parser.add_argument(f"--{name}", type=Path, required=name != "model")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--kernels")
    given = vars(parser.parse_args(arguments))
    module, _, function = given.pop("target").partition(":")
    if (seconds := given.pop("alarm")) and hasattr(signal, "alarm"):
        signal.alarm(seconds)
    try:
        getattr(importlib.import_module(module), function)(Options(**given))
    except NoDeviceError as error:
        print(error, file=sys.stderr)
        return NO_DEVICE
    return 0


if __name__ == "__main__":
    sys.exit(main())
