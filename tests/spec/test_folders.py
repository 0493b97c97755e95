"""Which assets may be files in a folder (FORMAT.md 7.1): the package and the reference say what the vectors do."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
from spec_support import VALID, VECTORS
from spq_reference import folders

import spqfmt
from spqfmt import wire
from spqfmt.asset_names import as_files, is_asset_name

FILES = ("asset_files", "asset_names")


@pytest.mark.parametrize(("file", "name"), [(file, name) for file in FILES for name in VALID[file]["assets"]])
def test_each_name_by_both(file, name):
    """Alone, but for those that clash with another of the file."""
    clashes = {"CONFIG.JSON": "data", "license/readme.md": "data", "1_pooling/CONFIG.json": "data"}
    clashes["readme.md/x.txt"] = "code"
    expected = VALID[file]["as_files"].get(name, clashes.get(name))
    assert as_files([name]).get(name) == folders.as_files([name]).get(name) == expected


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_many_names_by_both(name):
    with spqfmt.open(VECTORS / "valid" / f"{name}.spq") as file:
        names = list(file.assets)
    assert as_files(names) == folders.as_files(names) == VALID[name]["as_files"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a.md", "A.md", "b.md"], ["a.md", "b.md"]),
        (["a.md/x.md", "A.MD"], ["a.md/x.md"]),
        (["A.MD", "a.md/x.md"], ["A.MD"]),
        (["x/A.md", "X/b.md"], ["x/A.md", "X/b.md"]),
        (["-a.md", "a/-b.md", "a-/b-.md"], ["a-/b-.md"]),
        (["a.exe", "A.EXE/readme.md"], []),
    ],
)
def test_names_that_some_file_systems_take_for_one(names, expected):
    assert list(as_files(names)) == list(folders.as_files(names)) == expected


def test_the_lists_typed_by_hand_are_the_registrys():
    for name in (
        "DATA_ENDINGS", "DATA_NAMES", "JSON_NAMES", "MD_NAMES", "TXT_NAMES", "FOLDER_ENDINGS", "CODE_ENDINGS",
        "NEVER_ENDINGS", "DEVICE_NAMES",
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


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("with_code", [False, True])
@pytest.mark.parametrize("keep_packed", [False, True])
def test_unpack_writes_what_is_allowed_and_names_the_rest(tmp_path, keep_packed, with_code, name):
    path = VECTORS / "valid" / f"{name}.spq"
    report = spqfmt.unpack(path, tmp_path / "out", keep_packed=keep_packed, with_code=with_code)
    kinds = VALID[name]["as_files"]
    expected = {name for name, kind in kinds.items() if kind == "data" or with_code}
    weights = f"{name}.spq" if keep_packed else "model.safetensors"
    # A card that says what is packed is written in place of the source's own.
    card = {"README.md"} if keep_packed else set()
    assert files_in(tmp_path / "out") == expected | {weights} | card
    assert set(report.written) == expected - card
    assert set(report.left_out) == set(VALID[name]["assets"]) - expected - {weights}
    assert set(report.changed) == card
    code = {name for name, reason in report.left_out.items() if "--with-code" in reason}
    assert code == {name for name, kind in kinds.items() if kind == "code" and not with_code}
    one = min(expected)
    assert (tmp_path / "out" / one).read_bytes() == one.encode()


def test_every_file_of_a_tokenizer_of_transformers_is_data():
    folder = Path(find_spec("transformers").origin).parent / "models"
    found = {
        name
        for file in folder.rglob("tokenization_*.py")
        for line in re.findall(r"VOCAB_FILES_NAMES = \{(.*?)\}", file.read_text(), re.DOTALL)
        for name in re.findall(r': "([\w.-]+)"', line)
    }
    assert {"vocab.json", "merges.txt", "tokenizer.json", "spiece.model", "emoji.json"} <= found
    pickles = {name for name in found if name.endswith((".pt", ".bin", ".pkl"))}
    assert {name for name in found if as_files([name]) != {name: "data"}} == pickles
