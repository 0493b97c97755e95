"""Source models for the tests of this folder."""

from collections.abc import Callable
from pathlib import Path

import calibration_models
import pytest


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of the tiny model of a name; made once a session, not to be changed."""
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            calibration_models.build(name, made[name])
        return made[name]

    return get
