"""`pack SOURCE -` and `verify -`: what goes through pipes, and what cannot."""

import itertools
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import tiny
from spq_command import Done, run

import spqfmt
from spqfmt.cli import pipes


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a source and the file that is made of it."""
    folder = tmp_path_factory.mktemp("piped")
    with tiny.quiet():
        tiny.build("llama", folder / "source")
    spqfmt.pack(folder / "source", folder / "m.spq")
    return folder


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where temporary files go: nothing is left there."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    yield tmp_path
    assert list(tmp_path.iterdir()) == []


@contextmanager
def fed(monkeypatch: pytest.MonkeyPatch, pieces: Iterator[bytes]) -> Iterator[None]:
    """A pipe as stdin, into which these pieces go until nobody reads."""
    end, begin = os.pipe()

    def feed() -> None:
        try:
            with os.fdopen(begin, "wb", buffering=0) as file:
                for piece in pieces:
                    file.write(piece)
        except BrokenPipeError:
            pass

    monkeypatch.setattr(pipes, "_STDIN", end)
    thread = threading.Thread(target=feed)
    thread.start()
    try:
        yield
    finally:
        os.close(end)
        thread.join()


def packed_into_pipe(monkeypatch: pytest.MonkeyPatch, source: Path, *options: str) -> tuple[Done, bytes]:
    """What the command says, and what comes out of the pipe."""
    end, begin = os.pipe()
    monkeypatch.setattr(pipes, "_STDOUT", begin)
    found: list[bytes] = []
    with os.fdopen(end, "rb") as reading:
        thread = threading.Thread(target=lambda: found.append(reading.read()))
        thread.start()
        done = run("pack", source, "-", *options)
        os.close(begin)
        thread.join()
    return done, found[0]


def test_a_model_goes_out_through_a_pipe(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done, data = packed_into_pipe(monkeypatch, files / "source")
    assert (done.code, done.stdout) == (0, "")
    assert done.stderr.startswith("stdout: ")
    assert data == (files / "m.spq").read_bytes()


def test_a_model_comes_in_through_a_pipe(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = (files / "m.spq").read_bytes()
    with fed(monkeypatch, (bytes([byte]) for byte in data[:300])):
        done = run("verify", "-")
    assert done.code == 1
    with fed(monkeypatch, iter([data[:3], data[3:]])):
        done = run("verify", "-", "--content")
    assert (done.code, done.stdout.split()[1]) == (0, "content")
    assert done.stderr.startswith("stdin: sound (")
    damaged = bytearray(data)
    damaged[5000] ^= 1
    with fed(monkeypatch, iter([bytes(damaged)])):
        done = run("verify", "-")
    assert (done.code, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("spqfmt: stdin: tensor ")


@pytest.mark.parametrize(
    ("pieces", "said"),
    [
        (lambda: iter([]), "spqfmt: stdin: not a .spq file"),
        (lambda: itertools.repeat(b"y\n" * 4096), "spqfmt: stdin: not a .spq file"),
    ],
)
def test_what_is_no_model_ends_at_once(monkeypatch: pytest.MonkeyPatch, pieces: object, said: str) -> None:
    with fed(monkeypatch, pieces()):  # type: ignore[operator]
        done = run("verify", "-")
    assert done.code == 1
    assert done.stderr.startswith(said)


def test_a_file_as_stdin_is_not_copied(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipes, "_spool", None)
    with (files / "m.spq").open("rb") as file:
        monkeypatch.setattr(pipes, "_STDIN", file.fileno())
        assert run("verify", "-").code == 0


def test_a_reader_that_has_gone_is_said(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    end, begin = os.pipe()
    os.close(end)
    monkeypatch.setattr(pipes, "_STDOUT", begin)
    done = run("pack", files / "source", "-")
    os.close(begin)
    assert (done.code, done.stderr) == (1, "spqfmt: stdout: whoever was reading has gone before the end\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pack", "{source}", "-", "--shard-size", "10KiB"], "--shard-size makes several"),
        (["pack", "{source}", "-", "--resume"], "--resume needs a name"),
        (["pack", "{source}", "-", "--json"], "--json would be in it"),
        (["pack", "-", "o.spq"], "stdin is read by `verify -`"),
        (["inspect", "-"], "stdin is read by `verify -`"),
        (["repack", "{source}/../m.spq", "-"], "to stdout goes what `pack SOURCE -` makes alone"),
        (["unpack", "{source}/../m.spq", "-"], "to stdout goes what `pack SOURCE -` makes alone"),
        (["verify", "-", "--key", "{source}/config.json"], "nothing lies beside stdin"),
    ],
)
def test_what_no_pipe_can_be_is_wrong_use(files: Path, words: list[str], said: str) -> None:
    done = run(*(word.format(source=files / "source") for word in words))
    assert (done.code, done.stderr.count("\n")) == (2, 1)
    assert said in done.stderr


def test_terminals_are_no_pipes(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.isatty", lambda _: True)
    for words in (["pack", files / "source", "-"], ["verify", "-"]):
        done = run(*words)
        assert (done.code, "terminal" in done.stderr) == (2, True)
