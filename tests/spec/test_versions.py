"""Files of every version of the format are read, and FORMAT.md says of every feature who reads and writes it."""

import re
from pathlib import Path

import pytest
from spec_support import FORMAT, VALID, VALID_1_1, VECTORS, VECTORS_1_1

import spqfmt
from spqfmt.wire import OPTIONAL_FEATURES, REQUIRED_FEATURES

VERSIONS = {"1.0": (VECTORS, VALID), "1.1": (VECTORS_1_1, VALID_1_1)}
"""Where the frozen files of each version lie, and their manifest."""


def rows(heading: str) -> list[list[str]]:
    """The rows of the first table of section 12 whose head begins like this."""
    section = FORMAT.split("\n## 12.")[1]
    table = section[section.index(f"| {heading} |") :].split("\n\n")[0]
    return [[cell.strip() for cell in line.strip("| ").split("|")] for line in table.splitlines()[2:]]


def test_every_version_that_the_text_names_has_frozen_files() -> None:
    assert [row[0] for row in rows("version")] == list(VERSIONS)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_file_of_a_version_is_sound_and_gives_its_tensors(version: str) -> None:
    folder, manifest = VERSIONS[version]
    paths: list[Path] = sorted((folder / "valid").glob("*.spq"))
    assert {path.stem for path in paths} == set(manifest)
    for path in paths:
        spqfmt.verify(path)
        with spqfmt.open(path) as file:
            assert set(file) == {*manifest[path.stem]["tensors"], *manifest[path.stem].get("refused", [])}


def test_every_feature_has_a_reader_and_a_writer() -> None:
    named = [feature for row in rows("features") for feature in re.findall(r"`(\w+)`", row[0])]
    assert sorted(named) == sorted([*REQUIRED_FEATURES, *OPTIONAL_FEATURES])
    assert all(reader.startswith("spqfmt ") for _, reader, _ in rows("features"))
