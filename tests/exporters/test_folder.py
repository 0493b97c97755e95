"""Folders and files that are whole or not there, and what a killed process left of them."""

import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spqfmt.exporters.folder import whole_file, whole_folder


def write_folder(out: Path) -> None:
    with whole_folder(out) as partial:
        (partial / "a").write_text("a")


def write_file(out: Path) -> None:
    with whole_file(out) as partial:
        partial.write_text("a")


@pytest.mark.parametrize("write", [write_folder, write_file])
def test_what_a_killed_process_left_goes_and_what_is_being_written_stays(
    tmp_path: Path, write: Callable[[Path], None]
) -> None:
    names = [
        ".m.gguf.0123abcd.partial",
        ".m.gguf.89abcdef.partial",
        ".m.gguf.x.partial",
        ".other.0123abcd.partial",
    ]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "m.gguf").write_text("half")
    held = os.open(tmp_path / names[1], os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    write(tmp_path / "m.gguf")
    os.close(held)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["m.gguf", *names[1:]])


@pytest.mark.parametrize("whole", [whole_folder, whole_file])
def test_what_fails_leaves_nothing(tmp_path: Path, whole: Any) -> None:
    def fail() -> None:
        with whole(tmp_path / "out") as partial:
            if partial.is_dir():
                (partial / "a").write_text("a")
            else:
                partial.write_text("a")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not list(tmp_path.iterdir())


def test_what_is_there_is_left(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_text("old")
    with pytest.raises(FileExistsError):
        write_file(tmp_path / "m.gguf")
    with pytest.raises(FileExistsError):
        write_folder(tmp_path / "m.gguf")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]
