"""A source that another process changes while it is read: one line, never mixed weights, never a file under OUT."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
import tiny
import tiny_gguf

import spqfmt
from spqfmt.cli.main import main
from spqfmt.errors import ImporterError
from spqfmt.importers import open_source
from spqfmt.importers._source_file import SourceFile
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


CHANGES: list[Callable[[Path], None]] = [overwrite, truncate, grow, replace, Path.unlink]


class Watch:
    """Calls `change` once some tensor is written, or once a stage begins that has `at` in its text."""

    def __init__(self, change: Callable[[], None], at: str = "") -> None:
        self._change: Callable[[], None] | None = change
        self._at = at

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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


@pytest.mark.parametrize("change", [overwrite, truncate])
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
