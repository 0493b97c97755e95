"""What only reads a file, or only explains itself, starts without torch."""

import subprocess
import sys
import time

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


def test_help_starts_in_half_a_second() -> None:
    # Other processes of the machine only ever add time: the fastest of a few runs is the program's own.
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        assert python(MAIN, "--help").returncode == 0
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 0.5
