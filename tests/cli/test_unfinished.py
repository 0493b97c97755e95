"""An interrupt between two steps of making a file leaves nothing under a temporary name."""

import fcntl
import os
from pathlib import Path
from typing import Any

import pytest

from spqfmt.cli.main import main
from spqfmt.unfinished import named, remove_unfinished


def interrupted(arguments: list[Any]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    assert ended.value.code == 130


# The file is closed by whoever collects it, which Python warns of.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("options", [[], ["--shard-size", "20kB"]])
@pytest.mark.parametrize("which", ["the first", "the last"])
def test_between_a_file_and_what_notes_it(
    options: list[str], which: str, models: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, locks = fcntl.flock, []

    def lock(file: Any, how: int) -> None:
        real(file, how)
        name = str(Path(f"/proc/self/fd/{file if isinstance(file, int) else file.fileno()}").readlink())
        locks.append(name)
        if which == "the first" or ".index.json." in name or not options:
            raise KeyboardInterrupt

    monkeypatch.setattr(fcntl, "flock", lock)
    interrupted(["pack", models.source, tmp_path / "m.spq", *options])
    assert Path(locks[-1]).parent == tmp_path
    assert list(tmp_path.iterdir()) == []


def test_between_a_folder_and_what_notes_it(
    models: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lock(file: Any, how: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fcntl, "flock", lock)
    interrupted(["unpack", models.lossless, tmp_path / "model"])
    assert list(tmp_path.iterdir()) == []


def test_what_another_process_named_stays(tmp_path: Path) -> None:
    theirs, ours = tmp_path / "theirs", named(tmp_path / "ours")
    for file in (theirs, ours):
        file.touch()
    child = os.fork()
    if not child:
        remove_unfinished()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert ours.exists()
    remove_unfinished()
    assert not ours.exists()
    assert theirs.exists()
