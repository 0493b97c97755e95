"""A name that is a link is replaced itself; what it leads to is never written to."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import spqfmt
from spqfmt.container.temporary import publish_together
from spqfmt.importers.base import SourceModel
from spqfmt.packing.options import pack_options
from spqfmt.packing.pack import pack_model
from spqfmt.progress import Silent

MakeModel = Callable[..., SourceModel]


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A file of the user's."""
    file = tmp_path / "user" / "file"
    file.parent.mkdir()
    file.write_bytes(b"the user's")
    return file


def pack(model: SourceModel, out: Path, *, force: bool, **options: Any) -> None:
    pack_model(model, out, pack_options(**options), force=force, progress=Silent())


@pytest.mark.parametrize("options", [{}, {"partial": "speed"}, {"method": "rtn"}])
def test_pack_replaces_the_link(
    make_model: MakeModel, tmp_path: Path, target: Path, options: dict[str, Any]
) -> None:
    out = tmp_path / "m.spq"
    out.symlink_to(target)
    with pytest.raises(FileExistsError, match="--force replaces it"):
        pack(make_model(), out, force=False, **options)
    assert out.is_symlink()
    pack(make_model(), out, force=True, **options)
    assert not out.is_symlink()
    spqfmt.verify(out)
    assert target.read_bytes() == b"the user's"


def test_a_link_that_leads_nowhere_is_a_name_that_is_taken(make_model: MakeModel, tmp_path: Path) -> None:
    out = tmp_path / "m.spq"
    out.symlink_to(tmp_path / "user" / "nothing")
    with pytest.raises(FileExistsError, match="--force replaces it"):
        pack(make_model(), out, force=False)
    pack(make_model(), out, force=True)
    assert not out.is_symlink()
    assert not (tmp_path / "user").exists()


def test_shards_and_their_index_replace_links(make_model: MakeModel, tmp_path: Path, target: Path) -> None:
    names = ["m-00001-of-00002.spq", "m-00002-of-00002.spq", "m.spq.index.json"]
    for name in names:
        (tmp_path / name).symlink_to(target)
    pack(make_model(), tmp_path / "m.spq", force=True, shard_size=50_000)
    spqfmt.verify(tmp_path / "m.spq.index.json")
    assert not [path for path in tmp_path.iterdir() if path.is_symlink()]
    assert target.read_bytes() == b"the user's"


def test_links_are_there_again_where_files_do_not_get_their_names(tmp_path: Path, target: Path) -> None:
    (tmp_path / "a").symlink_to(target)
    (tmp_path / "b").symlink_to(tmp_path / "nothing")
    (tmp_path / "new").write_bytes(b"new")
    files = [(tmp_path / "new", tmp_path / "a"), (tmp_path / "lost", tmp_path / "b")]
    with pytest.raises(FileNotFoundError):
        publish_together(files, force=True)
    assert (tmp_path / "a").readlink() == target
    assert (tmp_path / "b").readlink() == tmp_path / "nothing"
    assert target.read_bytes() == b"the user's"


def test_repack_in_its_own_place_replaces_the_link(make_model: MakeModel, tmp_path: Path) -> None:
    pack(make_model(), tmp_path / "m.spq", force=False)
    before = (tmp_path / "m.spq").read_bytes()
    link = tmp_path / "link.spq"
    link.symlink_to(tmp_path / "m.spq")
    spqfmt.repack(link, link, codec="raw", force=True)
    assert not link.is_symlink()
    assert (tmp_path / "m.spq").read_bytes() == before
    spqfmt.verify(link)


def test_unpack_refuses_a_link(make_model: MakeModel, tmp_path: Path, target: Path) -> None:
    pack(make_model(), tmp_path / "m.spq", force=False)
    out = tmp_path / "out"
    for place in (target, target.parent, tmp_path / "nothing"):
        out.symlink_to(place)
        with pytest.raises(FileExistsError, match="is a link"):
            spqfmt.unpack(tmp_path / "m.spq", out)
        assert os.path.lexists(out)
        out.unlink()
    assert [path.name for path in target.parent.iterdir()] == ["file"]


def test_a_folder_is_never_replaced(make_model: MakeModel, tmp_path: Path) -> None:
    (tmp_path / "m.spq").mkdir()
    with pytest.raises(IsADirectoryError, match=r"m\.spq"):
        pack(make_model(), tmp_path / "m.spq", force=True)
