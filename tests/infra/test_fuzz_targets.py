"""The fuzz targets keep up with the core that they are for."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "fuzz").rglob("*.cpp"))


def test_every_target_compiles() -> None:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++")
    core = ROOT / "spqfmt" / "kernels" / "native"
    command = [compiler, "-std=c++17", "-fsyntax-only", f"-I{core}", *map(str, SOURCES)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_target_is_built_and_has_a_corpus() -> None:
    targets = {path.stem for path in SOURCES if path.parent.name == "native" and path.stem != "driver"}
    built = re.search(
        r"foreach\(target ([a-z_ ]+)\)", (ROOT / "fuzz" / "CMakeLists.txt").read_text(encoding="utf-8")
    )
    assert built is not None
    assert set(built[1].split()) == targets
    assert {path.name for path in (ROOT / "fuzz" / "corpus").iterdir()} == targets
