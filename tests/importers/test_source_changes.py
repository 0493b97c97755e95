"""A source that another process changes while it is read: one line, never mixed weights, never a file under OUT."""

import hashlib
import itertools
import mmap
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
import tiny
import tiny_gguf

import spqfmt
from spqfmt.cli.main import main
from spqfmt.errors import ImporterError
from spqfmt.importers import open_source
from spqfmt.importers._source_file import SourceFile, same_bytes
from spqfmt.loaders.tensors import open_stored
from spqfmt.reading.reference import open_reference

MESSAGE = "was changed while"


def overwrite(file: Path) -> None:
    """Other bytes in place, of the same number."""
    with file.open("r+b") as opened:
        opened.seek(file.stat().st_size // 2)
        opened.write(b"\x11" * 64)


def truncate(file: Path) -> None:
    with file.open("r+b") as opened:
        opened.truncate(file.stat().st_size // 4)


def grow(file: Path) -> None:
    with file.open("ab") as opened:
        opened.write(b"more")


def replace(file: Path) -> None:
    """Another file under the name, with the same bytes and times."""
    new = file.with_name("new")
    shutil.copy2(file, new)
    new.replace(file)


def hide(file: Path) -> None:
    """Other bytes in place, and the times that were: only the file's own change time tells."""
    before = file.stat()
    overwrite(file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = file.stat()
    assert (before.st_mtime_ns, before.st_size, before.st_ino) == (
        after.st_mtime_ns, after.st_size, after.st_ino,
    )  # fmt: skip


CHANGES: list[Callable[[Path], None]] = [overwrite, truncate, grow, replace, hide, Path.unlink]


class Watch:
    """Calls `change` once some tensor is written, or once a stage begins that has `at` in its text."""

    def __init__(self, change: Callable[[], None], at: str = "") -> None:
        self._change: Callable[[], None] | None = change
        self._at = at

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def start(self, total: int) -> None:
        pass

    def advance(self, n: int, name: str) -> None:
        if not self._at:
            self._go()

    def stage(self, text: str) -> None:
        if self._at and self._at in text:
            self._go()

    def _go(self) -> None:
        if self._change is not None:
            self._change()
        self._change = None


def sharded(folder: Path) -> Path:
    tiny.build("llama", folder, shard="100KB")
    return sorted(folder.glob("*.safetensors"))[0]


def whole(folder: Path) -> Path:
    tiny.build("llama", folder)
    return folder / "model.safetensors"


def blocks(folder: Path) -> Path:
    folder.mkdir()
    tiny_gguf.write("qwen2", folder / "m.gguf", quantize=tiny_gguf.gguf.GGMLQuantizationType.Q8_0)
    return folder / "m.gguf"


def source_of(file: Path) -> Path:
    return file if file.suffix == ".gguf" else file.parent


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("make", [whole, sharded, blocks])
def test_pack_refuses_and_leaves_what_was_there(
    tmp_path: Path, make: Callable[[Path], Path], change: Callable[[Path], None]
) -> None:
    file = make(tmp_path / "source")
    out = tmp_path / "out" / "m.spq"
    out.parent.mkdir()
    out.write_bytes(b"what was there")
    with pytest.raises(ImporterError, match=MESSAGE) as caught:
        spqfmt.pack(source_of(file), out, force=True, progress=Watch(lambda: change(file)))
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert out.read_bytes() == b"what was there"
    assert [path.name for path in out.parent.iterdir()] == ["m.spq"]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("config.json", {}),
        ("tokenizer.json", {"method": "rtn"}),
        ("model.safetensors", {"method": "rtn", "bits": 4}),
        ("model.safetensors", {"partial": "speed"}),
        ("model.safetensors", {"shard_size": "200KB"}),
        ("model.safetensors.index.json", {}),
    ],
)
def test_every_file_that_was_read_counts(tmp_path: Path, name: str, arguments: dict[str, Any]) -> None:
    file = (sharded if name.endswith(".index.json") else whole)(tmp_path / "source").with_name(name)
    with pytest.raises(ImporterError, match=MESSAGE) as caught:
        spqfmt.pack(file.parent, tmp_path / "m.spq", progress=Watch(lambda: overwrite(file)), **arguments)
    assert str(file) in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("change", [overwrite, truncate, hide])
def test_calibration_reads_no_changed_weights(tmp_path: Path, change: Callable[[Path], None]) -> None:
    file = whole(tmp_path / "source")
    few = {"method": "gptq", "samples": 2, "seq_len": 32}
    with pytest.raises(ImporterError, match=MESSAGE):
        spqfmt.pack(file.parent, tmp_path / "m.spq", progress=Watch(lambda: change(file), "layers.1"), **few)
    assert not (tmp_path / "m.spq").exists()


def test_a_size_that_is_aimed_at_is_not_met_with_changed_weights(tmp_path: Path) -> None:
    file = whole(tmp_path / "source")
    with pytest.raises(ImporterError, match=MESSAGE):
        spqfmt.pack(
            file.parent,
            tmp_path / "m.spq",
            fit="60KB",
            no_calibration=True,
            progress=Watch(lambda: overwrite(file), "looking at its weights"),
        )
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("change", CHANGES)
def test_a_model_is_not_loaded_from_a_changed_source(tmp_path: Path, change: Callable[[Path], None]) -> None:
    file = whole(tmp_path / "source")
    with pytest.raises(ImporterError, match=MESSAGE):
        spqfmt.load_model(file.parent, progress=Watch(lambda: change(file)))


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("make", [whole, blocks])
def test_a_reference_and_a_source_are_compared_at_the_end(
    tmp_path: Path, make: Callable[[Path], Path], change: Callable[[Path], None]
) -> None:
    for number, opened in enumerate((open_reference, open_stored)):
        file = make(tmp_path / str(number))
        with pytest.raises(ImporterError, match=MESSAGE), opened(source_of(file)):
            change(file)


def link(file: Path) -> None:
    file.with_name("link").hardlink_to(file)


def permit(file: Path) -> None:
    file.chmod(0o600)


def rename(file: Path) -> None:
    """And back."""
    file.rename(file.with_name("other")).rename(file)


@pytest.mark.parametrize("change", [link, permit, rename])
def test_what_may_be_a_false_alarm_is_called_so(tmp_path: Path, change: Callable[[Path], None]) -> None:
    file = whole(tmp_path / "source")
    file.chmod(0o644)
    with pytest.raises(ImporterError) as caught:
        spqfmt.pack(file.parent, tmp_path / "m.spq", progress=Watch(lambda: change(file)))
    assert str(caught.value).startswith(f"{file}: the file was changed while ")
    assert str(caught.value).endswith(
        " read, or its name, links or permissions were; try again when nothing writes to the model"
    )


@pytest.mark.parametrize("beside", ["folder", "moved", "read"])
def test_what_changes_no_file_is_no_alarm(tmp_path: Path, beside: str) -> None:
    file = whole(tmp_path / "source")

    def change() -> None:
        if beside == "folder":
            file.parent.chmod(0o700)
        elif beside == "moved":
            file.parent.rename(tmp_path / "other").rename(file.parent)
        else:
            file.read_bytes()

    spqfmt.pack(file.parent, tmp_path / "m.spq", progress=Watch(change))
    spqfmt.verify(tmp_path / "m.spq")


@contextmanager
def mapped(file: Path, tensor: str) -> Iterator[Callable[[], None]]:
    """Gives what changes a byte of the tensor without a trace in the file's times."""
    place = next(t.place for t in open_source(file.parent).tensors if t.name == tensor)
    assert place is not None
    with file.open("r+b") as opened, mmap.mmap(opened.fileno(), 0) as memory:
        # A page that is to be written back already is marked no more.
        memory[place.offset] ^= 1

        def change() -> None:
            before = file.stat().st_ctime_ns
            memory[place.offset] ^= 1
            if file.stat().st_ctime_ns != before:
                pytest.skip("the page was written back meanwhile")

        yield change


def test_a_write_through_a_mapping_shows_where_bytes_are_read_twice(tmp_path: Path) -> None:
    # What was calibrated with is read again where it is quantized.
    arguments: dict[str, Any] = {"method": "gptq", "samples": 2, "seq_len": 32}
    file = whole(tmp_path / "source")
    with (
        mapped(file, "model.layers.1.self_attn.q_proj.weight") as change,
        pytest.raises(ImporterError, match=MESSAGE),
    ):
        spqfmt.pack(
            file.parent, tmp_path / "m.spq", progress=Watch(change, "layers.1: quantizing"), **arguments
        )
    assert not (tmp_path / "m.spq").exists()


@pytest.mark.parametrize("first", ["digest", "part", "comparison", "held"])
def test_bytes_that_were_others_before_are_refused_in_any_order(tmp_path: Path, first: str) -> None:
    (tmp_path / "x").write_bytes(bytes(100))
    (tmp_path / "y").write_bytes(bytes(100))
    with (tmp_path / "x").open("r+b") as opened, mmap.mmap(opened.fileno(), 0) as memory:
        memory[50] = 0
        file = SourceFile(tmp_path / "x")
        reads: dict[str, Callable[[], object]] = {
            "digest": lambda: file.sha256([10, 40, 60]),
            "part": lambda: file.read(40, 20),
            "comparison": lambda: same_bytes((file, 40), (SourceFile(tmp_path / "y"), 40), 20),
            "held": lambda: file.holds(40, 20, [np.zeros(15, np.uint8), np.zeros(5, np.uint8)]),
        }
        reads.pop(first)()
        memory[50] = 1
        for name, read in reads.items():
            if name != "comparison":  # which finds them unlike, and ends there
                with pytest.raises(ImporterError, match=MESSAGE):
                    read()
        assert file.read(10, 30) == bytes(30)
        memory[50] = 0
        assert all(read() for read in reads.values())


def test_the_digest_is_the_files_wherever_it_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spqfmt.importers._source_file._COMPARE_BYTES", 64)
    data = bytes(range(251)) * 2
    (tmp_path / "x").write_bytes(data)
    for cuts in ([], [1], [63, 64, 65, 200], [0, 502], list(range(502))):
        file = SourceFile(tmp_path / "x")
        assert file.sha256(cuts) == hashlib.sha256(data).hexdigest()
        edges = sorted({0, *cuts, 502})
        for begin, end in itertools.pairwise(edges):
            assert file.read(begin, end - begin) == data[begin:end]


def test_what_is_raised_for_another_reason_stays(tmp_path: Path) -> None:
    file = whole(tmp_path / "source")
    with pytest.raises(KeyError), open_source(file.parent).unchanged():
        raise KeyError("x")
    source = open_source(file.parent)
    truncate(file)
    with pytest.raises(ImporterError, match=MESSAGE), source.unchanged():
        raise KeyError("x")


def test_what_nobody_reads_may_change(tmp_path: Path) -> None:
    file = whole(tmp_path / "source")
    beside = file.with_name("notes.md")
    spqfmt.pack(file.parent, tmp_path / "m.spq", progress=Watch(lambda: beside.write_text("x")))
    spqfmt.verify(tmp_path / "m.spq")


@pytest.mark.parametrize(
    "arguments",
    [
        ["pack", "source", "new.spq"],
        ["pack", "source", "new.spq", "--dry-run", "--fit", "400KB", "--no-calibration"],
        ["inspect", "old.spq", "--reference", "source"],
        ["eval", "old.spq", "--text", "source/config.json", "--reference", "source"],
    ],
)
def test_every_command_says_it_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    file = whole(Path("source"))
    spqfmt.pack("source", "old.spq")
    read = SourceFile.read_into

    def truncating(self: SourceFile, offset: int, buffer: memoryview, what: str = "it") -> None:
        if what == "tensor model.norm.weight":
            truncate(file)
        read(self, offset, buffer, what)

    monkeypatch.setattr(SourceFile, "read_into", truncating)
    capfd.readouterr()
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 1
    told = capfd.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1
    assert f"{file}: the file was changed while tensor model.norm.weight was read" in told.err
    assert {path.name for path in tmp_path.iterdir()} == {"source", "old.spq"}


def test_large_reads_come_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x").write_bytes(bytes(range(256)) * 4)
    monkeypatch.setattr("spqfmt.importers._source_file._READ_BYTES", 100)
    assert SourceFile(tmp_path / "x").read_all() == bytes(range(256)) * 4
    assert SourceFile(tmp_path / "x").read(1000, 100) == bytes(range(256))[-24:]
