"""One run: which data, which coders and files, how many rounds."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import spqfmt.bench.load.peers as load_peers
import spqfmt.bench.peers as codec_peers
from spqfmt.bench import machine, ours
from spqfmt.bench.contender import Contender
from spqfmt.bench.data import SYNTHETIC, Dataset, synthetic
from spqfmt.bench.file_data import file_datasets
from spqfmt.bench.load.measure import measure_load
from spqfmt.bench.load.model import DATA, write_model
from spqfmt.bench.load.spq import payload_of
from spqfmt.bench.measure import measure, thread_counts
from spqfmt.bench.registry import find
from spqfmt.bench.report import Report
from spqfmt.bench.rows import CodecRow, LoadRow, RunRow
from spqfmt.container.model import open_model
from spqfmt.container.output import INDEX_SUFFIX
from spqfmt.errors import OptionError, SpqError, without_package
from spqfmt.kernels import backend, native


@dataclass(frozen=True)
class BenchScale:
    """How much is measured: symbols of each data set and of each layer of the built-in models, and rounds."""

    n_symbols: int
    rounds: int


FULL = BenchScale(n_symbols=1 << 24, rounds=7)
QUICK = BenchScale(n_symbols=1 << 22, rounds=3)

Told = Callable[[str], None]
Kind = Literal["codecs", "load", "run"]


def run(file: Path | None, scale: BenchScale, told: Told, only: Kind | None = None) -> Report:
    """Measure the built-in data, or a file's own streams and the model in it; `told` hears what begins.

    `only` leaves out the rows of other kinds; those of kind run need a file.

    Raises BackendError if a round trip fails, what reading `file` raises, and OptionError for an index of shards, but
    for rows of kind run. Temporary files, about as large as the decoded model, go beside `file`, or into the system's
    temporary folder.
    """
    if file is not None and file.name.endswith(INDEX_SUFFIX) and only != "run":
        with open_model(file) as model:
            raise OptionError(
                f"{file}: a model in shards; give one of them, such as {model.readers[0].path}, or take --only run"
            )
    here = machine.describe()
    codecs: list[CodecRow] = []
    load: list[LoadRow] = []
    runs: list[RunRow] = []
    missing: dict[str, str] = {}
    with (
        _kernels_as_before(),
        tempfile.TemporaryDirectory(prefix=".spqfmt-bench-", dir=file.parent if file else None) as name,
    ):
        if only in {None, "codecs"}:
            codecs, missing = _codecs(file, scale, told)
        if only in {None, "load"}:
            with _if_installed(missing, "load", only):
                load, missing_files = _load(file, Path(name), scale, told)
                missing |= missing_files
        if file is not None and only in {None, "run"}:
            with _if_installed(missing, "run", only):
                # Imported here: a bench of codecs needs no torch.
                from spqfmt.bench.tokens.measure import measure_runs

                try:
                    runs = measure_runs(file, Path(name), rounds=scale.rounds, told=told)
                except SpqError as error:  # a file need not hold a model
                    if only == "run":
                        raise
                    missing["run"] = str(error)
    return Report(machine=here, rounds=scale.rounds, codecs=codecs, load=load, missing=missing, run=runs)


@contextmanager
def _if_installed(missing: dict[str, str], kind: Kind, only: Kind | None) -> Iterator[None]:
    """Note rows that need a package which an environment for looking at files has not. Raise where only they are asked.

    What was measured before is worth something.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        why = without_package(error)
        if only == kind or not why:
            raise
        missing[kind] = why


@contextmanager
def _kernels_as_before() -> Iterator[None]:
    """Contenders run in threads of their own, so each makes its kernels the process's."""
    try:
        yield
    finally:
        native.default_kernels(backend.current().kernels)


def _codecs(file: Path | None, scale: BenchScale, told: Told) -> tuple[list[CodecRow], dict[str, str]]:
    makers, missing = find(codec_peers)
    rows: list[CodecRow] = []
    if file is None:
        sets: Iterator[Dataset] = (synthetic(name, scale.n_symbols) for name in SYNTHETIC)
    else:
        sets = file_datasets(file, scale.n_symbols)
    for data in sets:
        told(f"codecs: {data.name}")
        rows += measure(data, [_ours, *makers.values()], thread_counts(), scale.rounds)
    return rows, missing


def _ours(element_bytes: int, threads: int) -> list[Contender]:
    # rans codes bytes; elements that are wider reach it as planes only.
    return ours.make(threads) if element_bytes == 1 else []


def _load(
    file: Path | None, folder: Path, scale: BenchScale, told: Told
) -> tuple[list[LoadRow], dict[str, str]]:
    makers, missing = find(load_peers)
    rows: list[LoadRow] = []
    for name in [file.name] if file else DATA:
        told(f"load: {name}")
        path = file or folder / f"{name}.spq"
        if file is None:
            write_model(path, name, scale.n_symbols)
        rows += measure_load(
            path,
            payload_of(path, name),
            folder,
            makers.values(),
            threads=thread_counts(),
            rounds=scale.rounds,
        )
    return rows, missing
