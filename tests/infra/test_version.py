"""The package's version is written in one place."""

import importlib.metadata
import re
import subprocess
import tomllib
from pathlib import Path

import spqfmt

ROOT = Path(__file__).resolve().parents[2]


def declared() -> str:
    return str(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"])


def test_installed_version_is_the_declared_one() -> None:
    assert spqfmt.__version__ == importlib.metadata.version("spqfmt") == declared()


def test_no_other_file_assigns_it() -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "*.py", "*.toml", "*.txt", "*.hpp", "*.cpp", "Makefile"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    pattern = re.compile(
        rf"^.*version.*['\" ]{re.escape(declared())}['\"\s]?.*$", re.IGNORECASE | re.MULTILINE
    )
    found = {name: pattern.findall((ROOT / name).read_text()) for name in tracked if (ROOT / name).exists()}
    assert [name for name, lines in found.items() if lines] == ["pyproject.toml"]
