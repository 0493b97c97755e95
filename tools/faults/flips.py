"""Random flips of bits in a file: each is noticed before anything computed from it is shown."""

import random
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from commands import Fault, command, in_child


def _flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at // 8)
        [byte] = file.read(1)
        file.seek(at // 8)
        file.write(bytes([byte ^ 1 << at % 8]))


def flips(
    file: Path, path: Path, run: tuple[object, ...], n: int, random_: random.Random
) -> Iterator[tuple[str, Counter[str]]]:
    """Yield way and what was seen of n flips by ways in Python, and of a few by a whole `run` under a ceiling.

    What verify and open do not look at (padding, which verify alone looks at) may leave the values as they are.
    """
    shutil.copy(file, path)
    n_bits = 8 * path.stat().st_size
    for way in ("verify", "read", "load_model", "unpack"):
        places = [
            random_.randrange(n_bits) for _ in range(n if way in {"verify", "read"} else max(n // 20, 1))
        ]

        def work(way: str = way, places: list[int] = places) -> None:
            print(" ".join(f"{what}={number}" for what, number in _by(way, path, places).items()))

        ended = in_child(work, Fault(), path.with_name("said"))
        if ended.code:
            yield way, Counter([ended.in_words])
        else:
            yield (
                way,
                Counter(
                    {
                        what.replace("_", " "): int(number)
                        for what, number in (word.split("=") for word in ended.said.split())
                    }
                ),
            )
        shutil.copy(file, path)
    words = tuple(path if word == file else word for word in run)
    expected = in_child(command(*words), Fault(), path.with_name("said")).said
    seen: Counter[str] = Counter()
    for _ in range(max(n // 50, 1)):
        at = random_.randrange(n_bits)
        _flip(path, at)
        ended = in_child(command(*words), Fault(), path.with_name("said"))
        same = "the same words" if ended.said == expected else "OTHER WORDS"
        seen[
            same if not ended.code else "noticed" if "exit 1, one line" in ended.in_words else ended.in_words
        ] += 1
        _flip(path, at)
    yield "run --memory", seen


def _by(way: str, path: Path, places: list[int]) -> Counter[str]:
    import torch

    import spqfmt

    def look() -> object:
        if way == "verify":
            return spqfmt.verify(path)
        if way == "unpack":
            out = path.with_name("flipped-out")
            shutil.rmtree(out, ignore_errors=True)
            spqfmt.unpack(path, out)
            return {name.name: name.read_bytes() for name in sorted(out.iterdir())}
        if way == "load_model":
            model, _ = spqfmt.load_model(path)
            return {name: value.clone() for name, value in model.state_dict().items()}
        with spqfmt.open(path) as opened:
            return {name: opened.read(name) for name in opened}

    def equal(a: object, b: object) -> bool:
        if not isinstance(a, dict) or not isinstance(b, dict):
            return a == b
        return a.keys() == b.keys() and all(
            torch.equal(a[key], b[key]) if isinstance(a[key], torch.Tensor) else a[key] == b[key] for key in a
        )

    expected, seen = look(), Counter[str]()
    for at in places:
        _flip(path, at)
        try:
            found = look()
            seen["the_same_values" if equal(found, expected) and way != "verify" else "NOT_NOTICED"] += 1
        except spqfmt.FormatError:
            seen["noticed"] += 1
        _flip(path, at)
    return seen
