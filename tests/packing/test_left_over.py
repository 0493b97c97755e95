"""A killed pack's file is removed by the next one; file systems without hard links."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import spqfmt
from spqfmt.container.writer import Writer
from spqfmt.importers.base import SourceModel
from spqfmt.packing.options import pack_options
from spqfmt.packing.pack import pack_model
from spqfmt.progress import Silent

MakeModel = Callable[..., SourceModel]


def packed(model: SourceModel, out: Path, *, force: bool = False, **options: Any) -> None:
    pack_model(model, out, pack_options(**options), force=force, progress=Silent())


@pytest.mark.parametrize(
    "name",
    [".m.spq.0123abcd.part", ".m-00002-of-00000.spq.0123abcd.part", ".m.spq.index.json.0123abcd.part"],
)
def test_the_next_pack_removes_what_a_killed_one_left(
    make_model: MakeModel, tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_bytes(b"half a file")
    packed(make_model(), tmp_path / "m.spq")
    assert [path.name for path in tmp_path.iterdir()] == ["m.spq"]


def test_a_writer_that_is_killed_holds_its_file_no_longer(make_model: MakeModel, tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "from spqfmt.container.writer import Writer\n"
        "with Writer(sys.argv[1], 64, force=True) as writer:\n"
        "    writer.begin_segment('first')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    out = tmp_path / "m.spq"
    done = subprocess.run([sys.executable, "-c", code, str(out)], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert len(list(tmp_path.glob(".m.spq.*.part"))) == 1
    packed(make_model(), out)
    assert [path.name for path in tmp_path.iterdir()] == ["m.spq"]


def test_an_index_of_shards_that_appears_meanwhile_is_kept(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = tmp_path / "m.spq.index.json"
    seal = Writer.seal

    def late(self: Writer, *arguments: Any, **options: Any) -> Any:
        index.write_bytes(b"mine")
        return seal(self, *arguments, **options)

    monkeypatch.setattr(Writer, "seal", late)
    with pytest.raises(FileExistsError):
        packed(make_model(), tmp_path / "m.spq", shard_size=40_000)
    assert index.read_bytes() == b"mine"
    assert [path.name for path in tmp_path.iterdir()] == [index.name]


def test_a_file_that_another_pack_still_writes_stays(make_model: MakeModel, tmp_path: Path) -> None:
    with Writer(tmp_path / "m.spq", 64, force=True) as other:
        other.begin_segment("unfinished")
        packed(make_model(), tmp_path / "m.spq")
        assert len(list(tmp_path.glob(".m.spq.*.part"))) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["m.spq"]


def test_a_sealed_shard_is_still_held_until_it_has_its_name(make_model: MakeModel, tmp_path: Path) -> None:
    with Writer(tmp_path / "m.spq", 64, force=True) as other:
        other.seal({})
        packed(make_model(), tmp_path / "m.spq")
        other.publish()
    assert spqfmt.inspect(tmp_path / "m.spq").totals.n_tensors == 0


@pytest.mark.parametrize(
    "name", [".n.spq.0123abcd.part", ".m.spq.part", ".m.spq.0123abcd.part.txt", ".m1spq.0123abcd.part"]
)
def test_files_of_others_stay(make_model: MakeModel, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"mine")
    packed(make_model(), tmp_path / "m.spq")
    assert (tmp_path / name).read_bytes() == b"mine"


def test_without_locks_nothing_is_removed_and_packing_works(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOTSUP, "no locks here")

    monkeypatch.setattr(fcntl, "flock", refuse)
    (tmp_path / ".m.spq.0123abcd.part").write_bytes(b"of someone")
    packed(make_model(), tmp_path / "m.spq")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".m.spq.0123abcd.part", "m.spq"]


def _no_links(*_: Any, **__: Any) -> None:
    raise PermissionError(errno.EPERM, "Operation not permitted")


def test_a_file_system_without_hard_links_takes_a_pack(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", _no_links)
    packed(make_model(), tmp_path / "m.spq")
    spqfmt.verify(tmp_path / "m.spq")
    assert [path.name for path in tmp_path.iterdir()] == ["m.spq"]
    with pytest.raises(FileExistsError, match="--force"):
        packed(make_model(), tmp_path / "m.spq")


def test_without_hard_links_a_file_that_appears_meanwhile_is_kept(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "m.spq"

    def appears(*_: Any, **__: Any) -> None:
        out.write_bytes(b"mine")
        _no_links()

    monkeypatch.setattr(os, "link", appears)
    with pytest.raises(FileExistsError):
        packed(make_model(), out)
    assert out.read_bytes() == b"mine"
    assert [path.name for path in tmp_path.iterdir()] == ["m.spq"]


def test_without_hard_links_a_failing_rename_leaves_nothing(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", _no_links)
    monkeypatch.setattr(Path, "replace", _no_links)
    with pytest.raises(PermissionError):
        packed(make_model(), tmp_path / "m.spq")
    assert not list(tmp_path.iterdir())
