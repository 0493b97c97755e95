"""--force over a model in shards: stopped anywhere, what is left is the old model, the new one, or plainly neither."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import spqfmt
from spqfmt.importers.base import SourceModel
from spqfmt.packing.options import pack_options
from spqfmt.packing.pack import pack_model
from spqfmt.progress import Silent

# In copies 1, 2, ... of a folder, repacks over its model, killed before the file operation of that number, until one
# comes to its end. Forks, since importing the package takes longer than the rest.
KILLED = """
import os, shutil, signal, sys
from spqfmt.rewriting.repack import repack

source, folder, shard_size = sys.argv[1:]

def repack_until(number):
    calls = 0
    def counted(work):
        def call(*arguments, **options):
            nonlocal calls
            calls += 1
            if calls == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return work(*arguments, **options)
        return call
    os.link, os.replace, os.unlink = counted(os.link), counted(os.replace), counted(os.unlink)
    repack(source, f"{folder}{number}/m.spq", shard_size=shard_size, force=True)
    os._exit(0)

number, status = 0, signal.SIGKILL
while status == signal.SIGKILL:
    number += 1
    shutil.copytree(folder, f"{folder}{number}")
    child = os.fork()
    if child == 0:
        repack_until(number)
    status = os.waitpid(child, 0)[1]
sys.exit(status)
"""


class _Models(NamedTuple):
    """Two models in one file each."""

    old: Path
    new: Path


@pytest.fixture
def models(make_model: Callable[..., SourceModel], tmp_path: Path) -> _Models:
    made = _Models(tmp_path / "old.spq", tmp_path / "new.spq")
    for seed, path in enumerate(made):
        _pack(make_model(seed=seed), path)
    return made


def _pack(model: SourceModel, out: Path, **options: Any) -> None:
    pack_model(model, out, pack_options(**options), force=True, progress=Silent())


def _state(folder: Path, models: _Models) -> str:
    """Which model the index of shards in the folder opens, or the error."""
    try:
        spqfmt.verify(folder / "m.spq.index.json")
    except spqfmt.FormatError as error:
        return str(error)
    for name, path in models._asdict().items():
        if spqfmt.diff(path, folder / "m.spq.index.json").equal:
            return str(name)
    return "another"


def _old_shards(models: _Models, tmp_path: Path) -> Path:
    folder = tmp_path / "m"
    folder.mkdir()
    spqfmt.repack(models.old, folder / "m.spq", shard_size=30_000)
    return folder


@pytest.mark.parametrize("shard_size", [30_000, 60_000], ids=["same names", "other names"])
def test_a_pack_that_is_killed_while_it_replaces_shards_leaves_no_mixture_that_can_be_read(
    models: _Models, tmp_path: Path, shard_size: int
) -> None:
    folder = _old_shards(models, tmp_path)
    command = [sys.executable, "-c", KILLED, str(models.new), str(folder), str(shard_size)]
    subprocess.run(command, check=True, timeout=240)
    copies = [tmp_path / f"m{number}" for number in range(1, len(list(tmp_path.glob("m?*"))) + 1)]
    states = [_state(copy, models) for copy in copies]
    kinds = [state if state in {"old", "new"} else "refused" for state in states]
    assert kinds == sorted(kinds, key=["old", "refused", "new"].index)
    assert {"old", "new"} <= set(kinds)
    assert ("refused" in kinds) == (shard_size == 30_000)
    for kind, state in zip(kinds, states, strict=True):
        assert kind != "refused" or "was stopped while it replaced this one; pack it again" in state
    for copy in copies:
        # A later pack puts everything right and leaves nothing but the model.
        spqfmt.repack(models.new, copy / "m.spq", shard_size=shard_size, force=True)
        assert _state(copy, models) == "new"
        n = len(list(copy.glob("m-*.spq")))
        names = {f"m-{k:05d}-of-{n:05d}.spq" for k in range(1, n + 1)}
        assert {path.name for path in copy.iterdir()} == names | {"m.spq.index.json"}


def test_an_interruption_that_is_no_kill_puts_the_old_shards_back(
    models: _Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(work: Callable[..., None], left: Iterator[int]) -> Callable[..., None]:
        def call(*arguments: Any, **options: Any) -> None:
            if next(left) == 0:
                raise KeyboardInterrupt
            work(*arguments, **options)

        return call

    folder = _old_shards(models, tmp_path)
    before = sorted(path.name for path in folder.iterdir())
    number = 0
    while _state(folder, models) == "old":
        left = count(number, -1)
        number += 1
        with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
            for name in ("link", "replace"):
                patch.setattr(os, name, interrupted(getattr(os, name), left))
            spqfmt.repack(models.new, folder / "m.spq", shard_size=30_000, force=True)
        assert sorted(path.name for path in folder.iterdir()) == before
    assert _state(folder, models) == "new"
    assert number > 2 * (len(before) - 1)


def test_without_hard_links_too_the_old_shards_come_back(
    models: _Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: Any, **__: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    folder = _old_shards(models, tmp_path)
    before = sorted(path.name for path in folder.iterdir())
    monkeypatch.setattr("os.link", no_links)
    replace = Path.replace

    def fail_at_the_index(self: Path, target: Path) -> Path:
        if target.name == "m.spq.index.json" and not failed:
            failed.append(target)
            raise OSError(5, "Input/output error")
        return replace(self, target)

    failed: list[Path] = []
    monkeypatch.setattr(Path, "replace", fail_at_the_index)
    with pytest.raises(OSError, match="Input/output"):
        spqfmt.repack(models.new, folder / "m.spq", shard_size=30_000, force=True)
    assert sorted(path.name for path in folder.iterdir()) == before
    assert _state(folder, models) == "old"


def test_shards_of_other_models_stay(models: _Models, tmp_path: Path) -> None:
    folder = _old_shards(models, tmp_path)
    others = ["mm-00001-of-00002.spq", "m-1-of-2.spq", "m-00001-of-00002.spq.txt", "M-00001-of-00002.spq"]
    for name in others:
        (folder / name).write_bytes(b"mine")
    spqfmt.repack(models.new, folder / "m.spq", shard_size=60_000, force=True)
    assert all((folder / name).read_bytes() == b"mine" for name in others)
    count = len(list(folder.glob("m-0*.spq")))
    assert len(list(folder.glob(f"m-0*-of-{count:05d}.spq"))) == count
