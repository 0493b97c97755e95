"""Changed whole files under the package and the reference decoder: the same content, or the same kind of error.

    python fuzz/files.py --seconds 60        the seed of the run is printed; --seed runs it again

Every file is sound but for what was changed (mutate.py). The package checks it as `verify --content` does and reads all
of it. What is found is written to build/fuzz/findings, and the exit code is 1:

    raised       a reader raised what is no error of a reader, or took longer than --patience seconds
    disagreed    one reader refused what the other read
    other        both read it, and not the same
    kind         both refused it for one change, by different kinds of error

Of several errors in a file a reader may report any (FORMAT.md 1.2); so `kind` is a finding only for one
change.
"""

import argparse
import random
import signal
import sys
import time
import traceback
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / folder) for folder in ("spec", "fuzz", "tests/spec")]

import numpy as np  # noqa: E402
import numpy.typing as npt  # noqa: E402
import reference_decoder  # noqa: E402
import torch  # noqa: E402
from mutate import mutated  # noqa: E402
from sealed import Parsed, parse, seal  # noqa: E402
from spec_support import KINDS  # noqa: E402
from spq_reference.errors import SpqRefError  # noqa: E402

import spqfmt  # noqa: E402
from spqfmt import errors, wire  # noqa: E402

FLOATS = {"f64": "<f8", "f32": "<f4", "f16": "<f2", "bf16": "<f4"}
SEED_BYTES = 10_000
"""Vectors up to this size are what changes begin with."""


class TooLongError(Exception):
    """A reader took longer than a small file may take."""


@dataclass(frozen=True)
class Content:
    """What a reader found: shape, dtype and bytes of each tensor, None where it does not know the scheme; assets."""

    tensors: dict[str, tuple[tuple[int, ...], str, bytes] | None]
    assets: dict[str, bytes]


_WAITING = 60
"""So much longer by the clock than by the processor's time is a reader that hangs, and not a busy machine."""


def by_reference(data: bytes) -> Content | str:
    """Read with the reference decoder: the content, or the kind of the error."""
    try:
        decoded = reference_decoder.decode(data)
    except SpqRefError as error:
        return error.kind
    tensors: dict[str, tuple[tuple[int, ...], str, bytes] | None] = dict.fromkeys(decoded.refused)
    tensors |= {name: (tensor.shape, tensor.dtype, tensor.data) for name, tensor in decoded.tensors.items()}
    return Content(tensors, decoded.assets)


def by_package(path: Path) -> Content | str:
    """Verify and read with the package: the content, or the kind of the error."""
    try:
        spqfmt.verify(path, content=True)
        tensors: dict[str, tuple[tuple[int, ...], str, bytes] | None] = {}
        with spqfmt.open(path) as file:
            for name, handle in file.items():
                info = handle.info
                try:
                    tensors[name] = (tuple(info.shape), info.dtype, _bytes(file, name, info.dtype))
                except errors.UnsupportedError:
                    tensors[name] = None
            assets = dict(file.assets)
    except errors.FormatError as error:
        return KINDS[type(error)]
    return Content(tensors, assets)


def _bytes(file: spqfmt.SpqFile, name: str, dtype: str) -> bytes:
    if wire.DTYPES[dtype].bits < 8:
        return bytes(file[name].read_bytes())
    tensor = file.read(name).contiguous().flatten()
    return tensor.view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def compared(path: Path, data: bytes, patience: float) -> tuple[str, str]:
    """What the two readers make of a file: "sound", "refused", or a finding, and a line about it."""
    found: list[Content | str] = []
    for reader in ("reference", "package"):
        _watch(patience)
        try:
            found.append(by_reference(data) if reader == "reference" else by_package(path))
        except TooLongError:
            if (
                reader == "reference"
            ):  # it decodes a value at a time; that the package ends is all there is to see
                found.append("too long")
                continue
            return "raised", "the package took too long"
        except Exception:  # noqa: BLE001
            return "raised", f"{reader}: {traceback.format_exc()}"
        finally:
            _watch(0)
    reference, package = found
    if reference == "too long":
        return "long", ""
    if isinstance(reference, str) and isinstance(package, str):
        return ("refused" if reference == package else "kind"), f"reference {reference}, package {package}"
    if isinstance(reference, str) or isinstance(package, str):
        said = [one if isinstance(one, str) else "reads it" for one in found]
        return "disagreed", f"reference {said[0]}, package {said[1]}"
    return ("sound", "") if _is_same(reference, package) else ("other", "both read it, and not the same")


def _is_same(reference: Content, package: Content) -> bool:
    # Literals of source files are an asset for the package.
    if reference.assets != {name: package.assets.get(name) for name in reference.assets}:
        return False
    if reference.tensors.keys() != package.tensors.keys():
        return False
    for name, tensor in reference.tensors.items():
        other = package.tensors[name]
        if tensor == other:
            continue
        if tensor is None or other is None or tensor[:2] != other[:2] or tensor[1] not in FLOATS:
            return False
        ours, theirs = (_numbers(data, tensor[1]) for data in (tensor[2], other[2]))
        if not np.array_equal(ours, theirs, equal_nan=True):
            return False
    return True


def _numbers(data: bytes, dtype: str) -> npt.NDArray[np.floating[Any]]:
    """Floats that differ where their bits do, but for the bits of a NaN, which FORMAT.md 5 leaves open."""
    if dtype == "bf16":
        data = (np.frombuffer(data, "<u2").astype("<u4") << 16).tobytes()
    numbers = np.frombuffer(data, FLOATS[dtype])
    return np.concatenate([numbers, np.copysign(1.0, np.where(np.isnan(numbers), 1, numbers))])


def seeds() -> list[Parsed]:
    """Return the valid vectors that are small."""
    folders = (ROOT / "spec" / "vectors" / "valid", ROOT / "spec" / "vectors" / "1.1" / "valid")
    paths = sorted(path for folder in folders for path in folder.glob("*.spq"))
    return [parse(path.read_bytes()) for path in paths if path.stat().st_size <= SEED_BYTES]


def _watch(seconds: float) -> None:
    """Raise TooLongError after these seconds of the processor's time, and after many more by the clock; 0: no more."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, _WAITING * seconds)


def _late(number: int, frame: FrameType | None) -> None:
    raise TooLongError


def main() -> int:
    """Run until the time or the number of files is reached; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to go on")
    parser.add_argument("--files", type=int, default=sys.maxsize, help="stop after so many files")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 2**32, help="of the random numbers")
    parser.add_argument(
        "--patience", type=float, default=10.0, help="seconds of the processor that a reader may take"
    )
    parser.add_argument("--findings", type=Path, default=ROOT / "build" / "fuzz" / "findings")
    arguments = parser.parse_args()
    random_ = random.Random(arguments.seed)
    torch.set_num_threads(1)
    for number in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(number, _late)
    arguments.findings.mkdir(parents=True, exist_ok=True)
    path = arguments.findings / "current.spq"
    known = seeds()
    counts: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    findings = 0
    end = time.monotonic() + arguments.seconds
    ended = []
    signal.signal(signal.SIGTERM, lambda number, _: ended.append(number))
    while not ended and counts.total() < arguments.files and time.monotonic() < end:
        n_changes = random_.choice((1, 1, 1, 2, 3, 5))
        beside = random_.random() < 0.08
        tree = mutated(random_.choice(known), random_.choice(known), n_changes, random_)
        data = seal(tree, random_, beside=beside)
        path.write_bytes(data)
        outcome, line = compared(path, data, arguments.patience)
        several = outcome == "kind" and (n_changes > 1 or beside)
        counts["several" if several else outcome] += 1
        kinds[line if outcome in {"refused", "kind"} else outcome] += 1
        if outcome in {"raised", "disagreed", "other", "kind"} and not several:
            findings += 1
            name = f"{outcome}-{arguments.seed}-{counts.total()}"
            (arguments.findings / f"{name}.spq").write_bytes(data)
            print(f"{name}.spq: {line}", flush=True)
    path.unlink()
    print(
        f"whole files: {counts.total()} (seed {arguments.seed}), "
        + ", ".join(f"{n} {what}" for what, n in counts.most_common())
    )
    for line, n in sorted(kinds.items()):
        print(f"  {n:8} {line}")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
