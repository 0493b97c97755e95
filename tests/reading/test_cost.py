"""What a file of 1 kB or 100 kB costs by command, however much it claims: the table of LIMITS.

Nobody is to wait for a small file, nor to run out of memory by it. Seconds are of the processor, beyond an ordinary
file's; on a machine with nothing else to do the worst are a tenth of what is allowed.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

# Helpers are found beside the test.
sys.path.insert(0, str(Path(__file__).parent))

import hostile

_MIB = 1 << 20


class Limit(NamedTuple):
    """Seconds and bytes that a command may take for a file."""

    seconds: float
    n_bytes: int


SMALL = Limit(1, 64 * _MIB)
LIMITS: dict[str, Limit] = {
    # In a process of its own 59 MiB; as the last of many files what was freed before lies in pieces.
    "inspect FILE": Limit(15, 72 * _MIB),
    "inspect FILE --json": Limit(15, 64 * _MIB),
    "inspect FILE --measure": Limit(15, 88 * _MIB),
    "verify FILE": Limit(15, 64 * _MIB),
    "verify FILE --content": Limit(15, 112 * _MIB),
    "diff FILE FILE": Limit(30, 2 * 64 * _MIB),
    # A new file, whose index is made in memory before it is written.
    "repack FILE out.spq --force": Limit(30, 256 * _MIB),
    "plan FILE": Limit(15, 64 * _MIB),
}
"""For a file of 100 kB; one of 1 kB is SMALL to all of them."""
REFUSES = ("plan FILE",)
"""Commands that want a model, which none of the files is: what they cost until they say so."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """An ordinary file, then those of hostile.FILES, the smaller one of each name first."""
    folder = tmp_path_factory.mktemp("files")
    made = [folder / "plain.spq"]
    hostile.write(made[0], "plain", large=False)
    for name in hostile.FILES:
        if name == "plain":
            continue
        for size, large in (("1", False), ("100", True)):
            made.append(folder / f"{name}_{size}.spq")
            hostile.write(made[-1], name, large=large)
    return made


def costs(folder: Path, command: str, files: list[Path]) -> list[dict[str, object]]:
    """What the command costs on each, the ordinary one first."""
    script = Path(__file__).with_name("costs.py")
    done = subprocess.run(
        [sys.executable, script, *command.split(), "--", *files],
        cwd=folder,
        env={**os.environ, "SPQFMT_THREADS": "2"},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return lines[1:]


def test_the_files_are_as_small_as_they_say(files: list[Path]) -> None:
    for file in files:
        at_most = 100_000 if file.stem.endswith("_100") else 4000
        assert file.stat().st_size <= at_most


@pytest.mark.parametrize("command", LIMITS)
def test_a_small_file_costs_little(command: str, files: list[Path], tmp_path: Path) -> None:
    plain, *hostile_ones = costs(tmp_path, command, files)
    too_much = []
    for cost in hostile_ones:
        limit = LIMITS[command] if str(cost["file"]).endswith("_100") else SMALL
        assert cost["code"] == (1 if command in REFUSES else 0), cost
        seconds = float(str(cost["seconds"])) - float(str(plain["seconds"]))
        if seconds > limit.seconds or int(str(cost["bytes"])) > limit.n_bytes:
            too_much.append(cost)
    assert too_much == []


@pytest.mark.parametrize("name", ["bands", "no_elements", "many_chunks", "constant_floats", "asset_of_zeros"])
def test_unpack_takes_no_memory_for_what_it_writes(name: str, files: list[Path], tmp_path: Path) -> None:
    for file in (file for file in files if file.stem in {f"{name}_1", f"{name}_100"}):
        *_, cost = costs(tmp_path, f"unpack FILE {file.stem}", [file])
        assert int(str(cost["bytes"])) <= 2 * LIMITS["inspect FILE"].n_bytes
