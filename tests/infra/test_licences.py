"""The licences of what is linked into the native module, or lies in the package, are in the wheel."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_licence_that_the_wheel_needs_is_one_of_its_files() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = {pattern: sorted(ROOT.glob(pattern)) for pattern in project["license-files"]}
    assert all(found.values()), found
    texts = "".join(path.read_text(encoding="utf-8") for paths in found.values() for path in paths)
    # Ours; nanobind with its map, which CMakeLists.txt links in by NB_STATIC; what the pages draw with.
    for words in ("Apache License", "Wenzel Jakob", "Thibaut Goetghebuer-Planchon", "Mike Bostock"):
        assert words in texts, words
