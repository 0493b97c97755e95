"""The generated files follow the registry, and the check that says so can fail."""

import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "generate" / "generate_wire.py"
FILES = ("spec/registry.toml", "spqfmt/wire.py", "spqfmt/kernels/native/wire.hpp", "FORMAT.md")


def generate(root: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOL), *options, "--root", str(root)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    assert generate(tmp_path).returncode == 0
    assert generate(tmp_path, "--check").stdout == ""
    return tmp_path


def test_generated_files_are_fresh() -> None:
    result = generate(ROOT, "--check")
    assert result.returncode == 0, result.stdout


def test_the_page_of_large_models_has_what_its_tool_computes() -> None:
    rows = runpy.run_path(str(ROOT / "tools" / "bench" / "scale.py"))["rows"]()
    assert len(rows) > 6
    assert "\n".join(rows) in (ROOT / "docs" / "scale.md").read_text()


def test_changed_registry_makes_every_file_stale(checkout: Path) -> None:
    registry = checkout / FILES[0]
    registry.write_text(registry.read_text().replace("max_name_bytes = 1024", "max_name_bytes = 1025"))
    result = generate(checkout, "--check")
    assert result.returncode == 1
    assert set(result.stdout.split()) == {"stale:", *FILES[1:]}
    assert "max_name_bytes" not in (checkout / "spqfmt/wire.py").read_text()  # the check writes nothing
    assert "MAX_NAME_BYTES: Final[int] = 1024" in (checkout / "spqfmt/wire.py").read_text()


def test_edited_output_is_stale(checkout: Path) -> None:
    header = checkout / FILES[2]
    header.write_text(header.read_text().replace("rans_lanes = 32", "rans_lanes = 16"))
    result = generate(checkout, "--check")
    assert result.returncode == 1
    assert result.stdout.split() == ["stale:", FILES[2]]


def test_unknown_table_is_refused(checkout: Path) -> None:
    text = checkout / "FORMAT.md"
    text.write_text(text.read_text() + "\n<!-- table: no_such_section -->\n<!-- end -->\n")
    result = generate(checkout, "--check")
    assert result.returncode != 0
    assert "no_such_section" in result.stderr
