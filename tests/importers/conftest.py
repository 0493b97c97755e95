"""Source models for the tests of this folder."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

# The tools are scripts, not a package: their folder is put on the path as Python does for a script.
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools" / "models"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "spec"))
sys.path.insert(0, str(Path(__file__).parent))

import tiny


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of the tiny model of a name; made once a session, not to be changed."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            tiny.build(name, made[name])
        return made[name]

    return folder
