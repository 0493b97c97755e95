"""Memory over a long run: tokens generated one after the other, or a model loaded and dropped again and again.

python tools/bench/endurance.py MODEL.spq tokens [--n 10000] [--memory BYTES]
python tools/bench/endurance.py MODEL.spq loads [--n 200] [--memory BYTES]

Without --memory a ceiling is taken under which about half of the weights are decoded at each use, so that buffers,
threads and files are all in play. Private memory (VmData) and resident memory are noted at some points of the second
half; printed are the slopes of the lines through them, for each token or load, and how much more the last point holds
than the first.
A generation begins anew where the model's positions end, so that the cache of keys and values comes and goes too.
"""

from __future__ import annotations

import argparse
import gc
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import spqfmt
from spqfmt.loaders.plan import plan_model

POINTS = 20
MOST_TOKENS = 512
"""Tokens of one generation."""


def memory_now() -> dict[str, int]:
    """Bytes of private writable and of resident memory of this process, and its open files and threads."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "private": 1024 * int(status["VmData"].split()[0]),
        "resident": 1024 * int(status["VmRSS"].split()[0]),
        "files": len(list(Path("/proc/self/fd").iterdir())),
        "threads": int(status["Threads"]),
    }


def half_ceiling(path: Path) -> int:
    """The ceiling half way between the smallest and all decoded."""
    plan = plan_model(path, dtype="bfloat16").plan
    return (plan.smallest_bytes + plan.held_bytes) // 2


def generate(model: Any, n: int) -> None:
    """`n` tokens after a prompt of eight, whatever they are."""
    prompt = torch.arange(8).view(1, 8) + 5
    with torch.inference_mode():
        model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=n,
            min_new_tokens=n,
            do_sample=False,
            pad_token_id=0,
        )


def tokens(path: Path, memory: int, n: int) -> Iterator[int]:
    """Generate `n` tokens; yields how many there are after each generation."""
    model, _ = spqfmt.load_model(path, dtype="bfloat16", memory=memory)
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", MOST_TOKENS)
    length = min(MOST_TOKENS, positions - 8, max(1, n // (2 * POINTS)))
    for done in range(0, n, length):
        generate(model, length)
        yield min(n, done + length)
    model.packed_weights.close()


def loads(path: Path, memory: int, n: int) -> Iterator[int]:
    """Load `n` times, generate two tokens and drop the model; every other time without closing it."""
    for number in range(n):
        model, _ = spqfmt.load_model(path, dtype="bfloat16", memory=memory)
        generate(model, 2)
        if number % 2:
            model.packed_weights.close()
        del model
        gc.collect()
        yield number + 1


KINDS: dict[str, tuple[Callable[[Path, int, int], Iterator[int]], int]] = {
    "tokens": (tokens, 10_000),
    "loads": (loads, 200),
}


def watch(work: Iterator[int], n: int) -> dict[str, float]:
    """Run `work` and describe its second half: slopes in bytes a step, growth in bytes, files and threads."""
    noted: list[tuple[int, dict[str, int]]] = []
    for done in work:
        if done * 2 >= n and (not noted or (done - noted[-1][0]) * 2 * POINTS >= n or done == n):
            noted.append((done, memory_now()))
    at = np.array([done for done, _ in noted], np.float64)
    found: dict[str, float] = {"steps": n, "points": len(noted)}
    for name in ("private", "resident"):
        values = np.array([memory[name] for _, memory in noted], np.float64)
        found[f"{name}_slope"] = float(np.polyfit(at, values, 1)[0])
        found[f"{name}_growth"] = float(values[-1] - values[0])
    for name in ("files", "threads"):
        found[f"{name}_growth"] = noted[-1][1][name] - noted[0][1][name]
    return found


def main() -> None:
    """Run the tool, whose help is the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--n", type=int)
    parser.add_argument("--memory", type=int, help="bytes")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    work, usual = KINDS[arguments.kind]
    n = arguments.n or usual
    memory = arguments.memory or half_ceiling(arguments.file)
    found = watch(work(arguments.file, memory, n), n)
    if arguments.json:
        print(json.dumps(found))
        return
    for name in ("private", "resident"):
        slope, growth = found[f"{name}_slope"], found[f"{name}_growth"]
        print(f"{name} memory: {slope:+.1f} bytes a step, {growth:+.0f} bytes in the second half")
    print(f"files {found['files_growth']:+.0f}, threads {found['threads_growth']:+.0f}")


if __name__ == "__main__":
    main()
