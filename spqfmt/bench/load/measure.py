"""Load rates: interleaved rounds, cold and warm, every loader's result checked."""

import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from spqfmt import systems
from spqfmt.bench.load.base import Loader, MakeLoaders, Payload
from spqfmt.bench.load.spq import Spq
from spqfmt.bench.rows import LoadRow, Rate
from spqfmt.errors import BackendError


def measure_load(
    file: Path,
    payload: Payload,
    folder: Path,
    makers: Iterable[MakeLoaders],
    *,
    threads: Sequence[int],
    rounds: int,
) -> list[LoadRow]:
    """Measure loading `file`, which holds `payload`, and what `makers` write of the same payload into `folder`.

    Cold: the file's pages are dropped from the page cache before the clock starts (the disk's own cache is not ours to
    drop). Raises BackendError if a loader gives other bytes.
    """
    loaders: list[Loader] = [Spq(file, payload, n) for n in threads]
    loaders += [loader for make in makers for n in threads for loader in make(payload, folder, n)]
    for loader in loaders:
        loader.load()
        if not loader.is_right():
            raise BackendError(f"{loader.container}: {payload.name} is not what was written")
    seconds: dict[tuple[int, str], list[float]] = {}
    for _ in range(rounds):
        for number, loader in enumerate(loaders):
            for cache in ("cold", "warm"):
                if cache == "cold":
                    drop_from_cache(loader.path)
                started = time.perf_counter()
                loader.load()
                seconds.setdefault((number, cache), []).append(time.perf_counter() - started)
    return [_row(loaders[number], cache, times) for (number, cache), times in seconds.items()]


def _row(loader: Loader, cache: str, seconds: Sequence[float]) -> LoadRow:
    rate = Rate.of(loader.payload.n_weights, seconds)
    size = loader.path.stat().st_size
    return LoadRow(
        data=loader.payload.name,
        container=loader.container,
        cache=cache,
        threads=loader.threads,
        file_bytes=size,
        load=rate,
    )


def drop_from_cache(path: Path) -> None:
    """Ask the system to forget the file's pages; written ones must be on disk for that."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        systems.forget(file, 0, 0)
