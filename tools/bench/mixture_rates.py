"""How fast does a mixture of experts run under ceilings, beside what its disk and its products allow?

python tools/bench/mixture_rates.py MODEL.spq [--memory 1GiB,512MiB] [--tokens 32] [--json]

Random tokens are given one by one, with a cache of keys and values. First all is in memory: milliseconds a token beside
those of the model without its experts plus the products of a token's experts alone. Then for each ceiling:
milliseconds a token, the bytes of weights that were read for one and those of all experts that it was routed to, and
how long the disk takes for these at the rate at which it gives parts of experts to four threads, past the cache,
measured before and after: `share_of_bound` is of what was read, `share_of_routed` of the rate at which a model would
run that kept no expert. Exit code 1 where tokens are not the same.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch

import spqfmt
from spqfmt.loaders.packed.experts import PackedExperts
from spqfmt.loaders.plan import plan_model
from spqfmt.models.caches import cache_name, cache_of
from spqfmt.residency.inventory import N_EXPERT_READERS
from spqfmt.sizes import n_bytes_of

_N_READS = 256


def disk_rate(path: Path, sizes: list[tuple[int, int]]) -> float:
    """Bytes a second of parts (offset, size) in any order, for as many threads as read experts, past the cache."""
    file = os.open(path, os.O_RDONLY)
    chosen = random.Random(0).choices(sizes, k=_N_READS)
    for offset, size in chosen:
        os.posix_fadvise(file, offset, size, os.POSIX_FADV_DONTNEED)

    def read(part: tuple[int, int]) -> int:
        found = len(os.pread(file, part[1], part[0]))
        os.posix_fadvise(file, *part, os.POSIX_FADV_DONTNEED)
        return found

    started = time.perf_counter()
    with ThreadPoolExecutor(N_EXPERT_READERS) as pool:
        n_bytes = sum(pool.map(read, chosen))
    seconds = time.perf_counter() - started
    os.close(file)
    return n_bytes / seconds


def step_times(model: Any, ids: list[int], n_before: int) -> tuple[list[float], list[int], float]:
    """Seconds of each token but the first ones, the tokens that the model would give, and bytes read for a token."""
    weights, cache, tokens, seconds, before = model.packed_weights, None, [], [], 0
    with torch.inference_mode():
        for number, token in enumerate(ids):
            if number == n_before:
                before = weights.n_read_bytes
            started = time.perf_counter()
            out = model(torch.tensor([[token]]), use_cache=True, **{cache_name(model): cache})
            seconds.append(time.perf_counter() - started)
            cache = cache_of(out)
            tokens.append(int(out.logits[0, -1].argmax()))
    return seconds[n_before:], tokens, (weights.n_read_bytes - before) / max(1, len(ids) - n_before)


@contextmanager
def _in_place_of(model: Any, name: str, make: Callable[[PackedExperts], Any]) -> Iterator[None]:
    """While it lasts, each experts module has what `make` makes of it in place of a method."""
    modules = [module for module in model.modules() if isinstance(module, PackedExperts)]
    for module in modules:
        module.__dict__[name] = make(module)
    try:
        yield
    finally:
        for module in modules:
            del module.__dict__[name]


@contextmanager
def without_experts(model: Any) -> Iterator[list[tuple[PackedExperts, list[int]]]]:
    """While it lasts experts give zeros; what was asked of them is noted."""
    asked: list[tuple[PackedExperts, list[int]]] = []

    def skip(experts: PackedExperts) -> Callable[..., torch.Tensor]:
        def forward(x: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
            asked.append((experts, index[0].tolist()))
            return torch.zeros_like(x)

        return forward

    with _in_place_of(model, "forward", skip):
        yield asked


@contextmanager
def routed_bytes(model: Any) -> Iterator[list[int]]:
    """While it lasts, the stored bytes of all experts that each layer was routed to are noted."""
    noted: list[int] = []
    parts = model.packed_weights.plan.parts

    def watch(experts: PackedExperts) -> Callable[[Any, int], Iterator[int]]:
        inner = experts._in_turn
        sizes = [sum(parts[n].item.part.stored_bytes for n in numbers) for numbers in experts._parts]

        def in_turn(chosen: Any, n_tokens: int) -> Iterator[int]:
            wanted = list(chosen)
            noted.append(sum(sizes[expert] for expert in wanted))
            return inner(wanted, n_tokens)

        return in_turn

    with _in_place_of(model, "_in_turn", watch):
        yield noted


def products_alone(asked: list[tuple[PackedExperts, list[int]]], hidden: int) -> float:
    """Seconds of the products of all experts that were asked for, with nothing else between them."""
    x = torch.randn(1, hidden, dtype=torch.bfloat16)
    started = time.perf_counter()
    with torch.inference_mode():
        for experts, chosen in asked:
            for expert in chosen:
                y = [product(x) for product in experts._up[expert]]
                down = experts.place.matrices["down_proj"][expert][0]
                inner = y[-1][:, : down.matrix_shape[1]]
                for product in experts._down[expert]:
                    product(inner)
    return time.perf_counter() - started


def in_memory(path: Path, ids: list[int], n_before: int) -> dict[str, Any]:
    """What a token takes with all in memory, and what its parts take, in turns."""
    model, _ = spqfmt.load_model(path, packed=True, dtype="bfloat16")
    rounds: list[tuple[float, float, float]] = []
    tokens: list[int] = []
    for _ in range(3):
        whole, tokens, _ = step_times(model, ids, n_before)
        with without_experts(model) as asked:
            bare, _, _ = step_times(model, ids, n_before)
        alone = products_alone(asked, model.config.hidden_size) / len(ids)
        rounds.append((median(whole), median(bare), alone))
    model.packed_weights.close()
    whole_s, bare_s, alone_s = (median(column) for column in zip(*rounds, strict=True))
    return {
        "ms": 1e3 * whole_s,
        "dense_ms": 1e3 * bare_s,
        "products_ms": 1e3 * alone_s,
        "ratio": median(w / (b + a) for w, b, a in rounds),
        "tokens": tokens,
    }


def main() -> None:
    """Run the tool, whose help is the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--memory", default="")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    parts = [p.item.part for p in plan_model(arguments.file).plan.parts if p.item.share is not None]
    sizes = [(part.offset, part.stored_bytes) for part in parts]
    n_before = arguments.tokens // 2
    ids = random.Random(1).choices(range(256), k=n_before + arguments.tokens)
    rows: list[dict[str, Any]] = [{"memory": "all", **in_memory(arguments.file, ids, n_before)}]
    for memory in filter(None, arguments.memory.split(",")):
        rate = disk_rate(arguments.file, sizes)
        model, _ = spqfmt.load_model(arguments.file, memory=n_bytes_of(memory), dtype="bfloat16")
        used = time.process_time()
        with routed_bytes(model) as noted:
            seconds, tokens, n_read = step_times(model, ids, n_before)
        n_routed = sum(noted) / len(ids)
        used = (time.process_time() - used) / len(ids)
        held = model.packed_weights.held_bytes
        model.packed_weights.close()
        rate = median([rate, disk_rate(arguments.file, sizes)])
        each = sum(seconds) / len(seconds)
        rows.append(
            {
                "memory": memory,
                "ms": 1e3 * each,
                "processor_ms": 1e3 * used,
                "read_bytes": n_read,
                "disk_bytes_s": rate,
                "disk_ms": 1e3 * n_read / rate,
                "share_of_bound": n_read / rate / each,
                "routed_bytes": n_routed,
                "share_of_routed": n_routed / rate / each,
                "held_bytes": held,
                "tokens": tokens,
            }
        )
    same = all(row["tokens"] == rows[0]["tokens"] for row in rows)
    if arguments.json:
        print(json.dumps({"same_tokens": same, "rows": rows}))
    else:
        for row in rows:
            print(
                {key: round(v, 3) if isinstance(v, float) else v for key, v in row.items() if key != "tokens"}
            )
        print("tokens are the same" if same else "TOKENS DIFFER")
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    main()
