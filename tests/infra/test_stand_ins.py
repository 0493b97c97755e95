"""What is given in a file's place is refused in Python too, at once: no pipe is waited for, "" is not the folder."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

import spqfmt
from spqfmt.errors import ImporterError, NotSpqError, OptionError
from spqfmt.packing.options import pack_options
from spqfmt.stand_ins import read_text, what_came_instead
from spqfmt.transformers_hook import packed_file


@pytest.mark.parametrize(
    "use",
    [
        spqfmt.open,
        spqfmt.inspect,
        spqfmt.verify,
        spqfmt.load_model,
        lambda path: spqfmt.pack(path, "out.spq"),
        lambda path: spqfmt.unpack(path, "out"),
        lambda path: spqfmt.repack(path, "out.spq"),
        lambda path: spqfmt.diff(path, path),
        lambda path: pack_options(method="gptq", calibration=path),
        lambda path: pack_options(partial="speed", rates=path),
    ],
)
def test_an_empty_path_is_not_the_current_folder(use: Callable[[str], object]) -> None:
    with pytest.raises(OptionError, match="an empty path"):
        use("")


def test_nothing_is_unpacked_into_an_empty_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OptionError, match="an empty path"):
        spqfmt.unpack("m.spq", "")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["m.spq", "m.spq.index.json"])
def test_a_pipe_is_not_waited_for(tmp_path: Path, name: str) -> None:
    pipe = tmp_path / name
    os.mkfifo(pipe)
    for use in (spqfmt.open, spqfmt.load_model):
        with pytest.raises(NotSpqError, match=rf"{name}: is a pipe, not a file; save what it gives"):
            use(pipe)
    with pytest.raises(ImporterError, match=rf"{name}: is a pipe, not a file"):
        spqfmt.pack(pipe, tmp_path / "out.spq")
    with pytest.raises(OptionError, match=rf"{name}: is a pipe, not a file"):
        pack_options(partial="speed", rates=pipe)


def test_a_folder_is_no_packed_model_whatever_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m.spq").mkdir()
    assert packed_file(tmp_path) is None
    (tmp_path / "n.spq").touch()
    assert packed_file(tmp_path) == tmp_path / "n.spq"
    monkeypatch.chdir(tmp_path)
    assert packed_file("") is None
    assert packed_file(".") == Path("n.spq")


def test_texts_are_read_as_text_files_are(tmp_path: Path) -> None:
    file = tmp_path / "t.txt"
    file.write_bytes("a\r\nb\rc\né".encode())
    assert read_text(file) == file.read_text("utf-8") == "a\nb\nc\né"
    # What looks like one is none.
    file.write_bytes(b"versions of git-lfs are many; <html> begins a page")
    assert read_text(file) == file.read_text("utf-8")
    assert what_came_instead(b"\n <HTML lang=en>").startswith("a web page")
