"""What only reads a file, or only explains itself, starts without torch."""

import subprocess
import sys

import pytest

from spqfmt.cli.main import COMMANDS

MAIN = "import sys; from spqfmt.cli.main import main; sys.argv[0] = 'spqfmt'; main()"


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("arguments", [[], *[[name] for name in COMMANDS]], ids=["spqfmt", *COMMANDS])
def test_help_imports_neither_torch_nor_transformers(arguments: list[str]) -> None:
    code = (
        "import atexit, sys\n"
        "heavy = lambda: print(*sorted({'torch', 'transformers'} & set(sys.modules)), file=sys.stderr)\n"
        "atexit.register(heavy)\n"
    )
    result = python(code + MAIN, *arguments, "--help")
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
