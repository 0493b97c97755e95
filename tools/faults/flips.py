"""Random flips of bits in files: each is noticed before anything computed from it is shown.

All flips of a file and a way happen in one process, a child of this one: a flip that ended it would be seen.
"""

import contextlib
import json
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from commands import Fault, command, in_child

SHARES = {"verify": 0.35, "read": 0.4, "unpack": 0.15, "load_model": 0.08, "run --memory": 0.02}
"""Which flips are looked at by which way: those that take longer see fewer."""


def flips(
    files: Mapping[Path, Sequence[object]], folder: Path, n: int, random_: random.Random
) -> Iterator[tuple[str, Counter[str]]]:
    """Yield way and what was seen of n flips in all, in copies of the files, to each of which belongs a `run`.

    What nobody but verify looks at (padding) may leave the values as they are.
    """
    path = folder / "flipped.spq"
    for way, share in SHARES.items():
        seen: Counter[str] = Counter()
        for file, run in files.items():
            shutil.copy(file, path)
            n_bits = 8 * path.stat().st_size
            places = [random_.randrange(n_bits) for _ in range(round(n * share / len(files)))]
            words = [path if word == file else word for word in run]

            def work(way: str = way, places: list[int] = places, words: list[object] = words) -> None:
                print("\n" + json.dumps(_by(way, path, places, words)))

            ended = in_child(work, Fault(), folder / "said", patience=3600)
            seen.update(json.loads(ended.said.splitlines()[-1]) if not ended.code else [ended.in_words])
        yield way, seen


def _by(way: str, path: Path, places: Sequence[int], run: Sequence[object]) -> Counter[str]:
    """Flip each of the bits, look, and flip it back; return what was seen."""
    import spqfmt

    look = _looks(path, run)[way]
    expected, seen = look(), Counter[str]()
    for at in places:
        _flip(path, at)
        try:
            found = look()
        except spqfmt.FormatError:
            seen["noticed"] += 1
        else:
            same = way != "verify" and _equal(found, expected)
            seen[
                "the same values" if same else f"NOT NOTICED at bit {at} of {path.stat().st_size} bytes"
            ] += 1
        finally:
            _flip(path, at)
    return seen


def _looks(path: Path, run: Sequence[object]) -> dict[str, Callable[[], object]]:
    import spqfmt

    def read() -> object:
        with spqfmt.open(path) as opened:
            return {name: opened.read(name) for name in opened}

    def load() -> object:
        model, _ = spqfmt.load_model(path, packed=False)
        return {name: value.clone() for name, value in model.state_dict().items()}

    def unpack() -> object:
        out = path.with_name("flipped-out")
        shutil.rmtree(out, ignore_errors=True)
        spqfmt.unpack(path, out)
        return {name.name: name.read_bytes() for name in sorted(out.iterdir())}

    def say() -> object:
        code, said, complained = _captured(command(*run))
        if code == 1 and not said and len(complained.splitlines()) == 1:
            raise spqfmt.FormatError(complained)
        return code, said, complained

    return {
        "verify": lambda: spqfmt.verify(path),
        "read": read,
        "load_model": load,
        "unpack": unpack,
        "run --memory": say,
    }


def _captured(work: Callable[[], None]) -> tuple[int, str, str]:
    """Run a command in this process; return its exit code and what it wrote to stdout and stderr."""
    code = 0
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as error:
        saved = [os.dup(stream) for stream in (1, 2)]
        for stream, file in ((1, out), (2, error)):
            os.dup2(file.fileno(), stream)
        try:
            work()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1
        finally:
            with contextlib.suppress(ValueError):
                sys.stdout.flush()
                sys.stderr.flush()
            for stream, old in zip((1, 2), saved, strict=True):
                os.dup2(old, stream)
                os.close(old)
        found = []
        for file in (out, error):
            file.seek(0)
            found.append(file.read().decode(errors="replace"))
    return code, found[0], found[1]


def _flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at // 8)
        [byte] = file.read(1)
        file.seek(at // 8)
        file.write(bytes([byte ^ 1 << at % 8]))


def _equal(a: Any, b: Any) -> bool:
    import torch

    if not isinstance(a, dict) or not isinstance(b, dict):
        return bool(a == b)
    return a.keys() == b.keys() and all(
        torch.equal(a[key], b[key]) if isinstance(a[key], torch.Tensor) else a[key] == b[key] for key in a
    )
