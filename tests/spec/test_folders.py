"""Which assets may be files in a folder (FORMAT.md 7.1): the package and the reference say what the vectors do."""

from pathlib import Path

import pytest
from spec_support import VALID, VECTORS
from spq_reference import folders

import spqfmt
from spqfmt import wire
from spqfmt.asset_names import as_files, is_asset_name

NAMES = sorted(VALID["asset_files"]["assets"])


@pytest.mark.parametrize("name", NAMES)
def test_each_name_by_both(name):
    """Alone, but for those that clash with another of the file."""
    clashes = {"CONFIG.JSON", "license/readme.md", "1_pooling/CONFIG.json", "readme.md/x.txt"}
    expected = VALID["asset_files"]["as_files"].get(name, "data" if name in clashes else None)
    assert as_files([name]).get(name) == folders.as_files([name]).get(name) == expected


def test_a_file_of_many_names_by_both():
    with spqfmt.open(VECTORS / "valid" / "asset_files.spq") as file:
        names = list(file.assets)
    assert as_files(names) == folders.as_files(names) == VALID["asset_files"]["as_files"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a.md", "A.md", "b.md"], ["a.md", "b.md"]),
        (["a.md/x.md", "A.MD"], ["a.md/x.md"]),
        (["A.MD", "a.md/x.md"], ["A.MD"]),
        (["x/A.md", "X/b.md"], ["x/A.md", "X/b.md"]),
        (["a.exe", "A.EXE/readme.md"], []),
    ],
)
def test_names_that_some_file_systems_take_for_one(names, expected):
    assert list(as_files(names)) == list(folders.as_files(names)) == expected


def test_the_lists_typed_by_hand_are_the_registrys():
    for name in (
        "DATA_ENDINGS", "DATA_NAMES", "FOLDER_ENDINGS", "CODE_ENDINGS", "CODE_NAMES", "NEVER_ENDINGS", "DEVICE_NAMES",
    ):  # fmt: skip
        listed = getattr(wire, f"ASSET_{name}")
        assert getattr(folders, name) == listed
        assert list(listed) == sorted(listed)
        assert all(entry == entry.lower() for entry in listed)


@pytest.mark.parametrize(
    "name", ["", "/a.md", "../a.md", "a/../b.md", "a//b.md", "a\\b.md", "a b.md", "\u00e9.md", "a\0.md"]
)
def test_what_no_file_can_hold_is_never_written(name):
    assert not is_asset_name(name)
    assert as_files([name]) == {}


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("with_code", [False, True])
@pytest.mark.parametrize("keep_packed", [False, True])
def test_unpack_writes_what_is_allowed_and_names_the_rest(tmp_path, keep_packed, with_code):
    path = VECTORS / "valid" / "asset_files.spq"
    report = spqfmt.unpack(path, tmp_path / "out", keep_packed=keep_packed, with_code=with_code)
    kinds = VALID["asset_files"]["as_files"]
    expected = {name for name, kind in kinds.items() if kind == "data" or with_code}
    weights = "asset_files.spq" if keep_packed else "model.safetensors"
    assert files_in(tmp_path / "out") == expected | {weights}
    assert set(report.written) == expected
    assert set(report.left_out) == set(NAMES) - expected
    code = {name for name, reason in report.left_out.items() if "--with-code" in reason}
    assert code == {name for name, kind in kinds.items() if kind == "code" and not with_code}
    assert (tmp_path / "out" / "LICENSE").read_bytes() == b"LICENSE"
