"""Which ways of running a file are measured, and the files that they need."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from spqfmt.loaders.plan import plan_model
from spqfmt.rewriting.repack import repack

EVERY = (2, 5)
"""Partial compression: one chunk of so many is compressed."""
SHARES = (0.75, 0.5, 0.25)
"""Ceilings in parts of the decoded weights, filled as the planner sees fit."""


@dataclass(frozen=True)
class Configuration:
    """`memory_bytes` None: ordinary parameters, or with `packed` all packed weights decoded.

    `keeps_all`: whatever the disk's rate, all that fits under the ceiling is kept in memory as it is stored.
    """

    name: str
    path: Path
    packed: bool = False
    memory_bytes: int | None = None
    keeps_all: bool = False


def configurations(file: Path, folder: Path, told: Callable[[str], None]) -> Iterator[Configuration]:
    """All that can be for this file; those of other partial plans with a file in `folder`.

    Raises what reading the file and planning raise.
    """
    yield Configuration("BF16 transformers", file)
    yield Configuration("decoded", file, packed=True)
    decoded = plan_model(file, dtype="bfloat16").plan
    for share in SHARES:
        ceiling = int(share * decoded.held_bytes)
        if ceiling >= decoded.smallest_bytes:
            yield Configuration(f"{share:.0%} of decoded", file, memory_bytes=ceiling)
    for n in EVERY:
        told(f"repacking with one chunk of {n} compressed")
        # Of a model in shards the last file is their index.
        path = repack(file, folder / f"every-{n}.spq", partial=f"every:{n}").files[-1]
        yield from _compressed(f"every:{n}", path)
    yield from _compressed("compressed", file)
    if decoded.smallest_bytes < decoded.held_bytes:
        yield Configuration("disk", file, memory_bytes=decoded.smallest_bytes)


def _compressed(name: str, path: Path) -> Iterator[Configuration]:
    """All chunks in memory as they are stored; nothing where decoding all takes no more than that and the buffers."""
    smallest = plan_model(path, dtype="bfloat16").plan.smallest_bytes
    plan = plan_model(path, dtype="bfloat16", memory=smallest).plan
    ceiling = plan.fixed.total + plan.stored_bytes
    if ceiling < plan_model(path, dtype="bfloat16").plan.held_bytes:
        yield Configuration(name, path, memory_bytes=ceiling, keeps_all=True)
