"""The licences of what is linked into the native module, or lies in the package, are in the wheel."""

import json
import re
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
    vendored = json.loads((ROOT / "spqfmt/pages/vendored/manifest.json").read_text(encoding="utf-8"))
    listed = (ROOT / "spqfmt/pages/vendored/LICENSE").read_text(encoding="utf-8").replace(",", "").split()
    assert vendored.keys() <= set(listed)
    scripts = {path.name for path in (ROOT / "spqfmt/pages/vendored").glob("*.js")}
    assert scripts == {f"{name}.min.js" for name in vendored}


def test_nothing_is_linked_in_besides() -> None:
    text = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    linked = set(re.findall(r"find_package\((\w+)", text))
    assert linked == {"Threads", "Python", "nanobind"}, (
        "a library that is linked in has its licence in the wheel"
    )
    headers = {
        name
        for path in (ROOT / "spqfmt/kernels/native").rglob("*.[ch]pp")
        for name in re.findall(r"#include <(\w+)/", path.read_text(encoding="utf-8"))
    }
    assert headers <= {"nanobind", "sys"}
