"""What only reads a file, or only explains itself, starts without torch."""

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools" / "models"))
import tiny

import spqfmt
from spqfmt.cli.main import COMMANDS

MAIN = "import sys; from spqfmt.cli.main import main; sys.argv[0] = 'spqfmt'; main()"


def imported(result: subprocess.CompletedProcess[str]) -> list[str]:
    """What HEAVY said last."""
    return result.stderr.splitlines()[-1].split()


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


HEAVY = (
    "import atexit, sys\n"
    "heavy = lambda: print(*sorted({'torch', 'transformers'} & set(sys.modules)), file=sys.stderr)\n"
    "atexit.register(heavy)\n"
)


@pytest.mark.parametrize("arguments", [[], *[[name] for name in COMMANDS]], ids=["spqfmt", *COMMANDS])
def test_help_imports_neither_torch_nor_transformers(arguments: list[str]) -> None:
    result = python(HEAVY + MAIN, *arguments, "--help")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("Usage: spqfmt")
    assert result.stderr.split() == []


def test_help_imports_click_alone_and_no_command() -> None:
    # What start-up costs is what it imports; seconds would say more of the machine than of the program.
    code = (
        "import atexit, sys\n"
        "before = set(sys.modules)\n"
        "atexit.register(lambda: print(*sorted(set(sys.modules) - before), file=sys.stderr))\n"
    )
    result = python(code + MAIN, "--help")
    assert result.returncode == 0, result.stderr
    imported = set(result.stderr.split())
    packages = {name.partition(".")[0] for name in imported} - sys.stdlib_module_names
    assert packages == {"click", "spqfmt"}
    assert imported.isdisjoint(module for module, _, _ in COMMANDS.values())
    # Each costs as much as click: the version is asked of the installation where it is wanted.
    assert imported.isdisjoint({"importlib.metadata", "importlib.resources", "email", "json"})


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain decoder, and one of a class that has to be asked."""
    folder = tmp_path_factory.mktemp("packed")
    with tiny.quiet():
        for name in ("llama", "gpt2"):
            tiny.build(name, folder / name)
            spqfmt.pack(folder / name, folder / f"{name}.spq", method="rtn", bits=4)
    return folder


@pytest.mark.parametrize("options", [["--memory", "2MiB"], ["--json"], ["--dtype", "float32"], ["--html"]])
def test_a_plain_decoder_is_planned_without_torch(packed: Path, options: list[str], tmp_path: Path) -> None:
    options = [*options, str(tmp_path / "plan.html")] if options == ["--html"] else options
    result = python(HEAVY + MAIN, "plan", str(packed / "llama.spq"), *options)
    assert (result.returncode, imported(result)) == (0, [])
    assert result.stdout or (tmp_path / "plan.html").stat().st_size


@pytest.mark.parametrize("command", ["inspect", "verify", "plan"])
def test_what_reads_a_file_alone_imports_no_torch(packed: Path, command: str) -> None:
    result = python(HEAVY + MAIN, command, str(packed / "llama.spq"))
    assert (result.returncode, imported(result)) == (0, [])


def test_a_class_that_has_to_be_asked_needs_torch(packed: Path) -> None:
    result = python(HEAVY + MAIN, "plan", str(packed / "gpt2.spq"))
    assert (result.returncode, imported(result)) == (0, ["torch", "transformers"])
