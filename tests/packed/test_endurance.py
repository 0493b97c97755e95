"""Memory neither grows with tokens nor with loads: tools/bench/endurance.py on a small model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parents[2] / "tools" / "bench" / "endurance.py"


ATTEMPTS = 3
"""The heap moves its end by chance, a leak does so every time."""


def measured(model: Path, kind: str, n: int) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, str(TOOL), str(model), kind, "--n", str(n), "--json"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2", "PYTHONWARNINGS": "ignore"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, float] = json.loads(done.stdout)
    return found


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")
@pytest.mark.parametrize(("kind", "n"), [("tokens", 300), ("loads", 20)])
def test_memory_does_not_grow(packed_llama: Path, kind: str, n: int) -> None:
    slopes = []
    for _ in range(ATTEMPTS):
        found = measured(packed_llama, kind, n)
        assert found["points"] >= 5
        assert found["files_growth"] <= 0
        assert found["threads_growth"] <= 0
        # A line through a saw-tooth has a slope, and its last point may be a peak; what leaks has both.
        slopes.append(min(found["private_slope"], found["private_growth"] / (n / 2)))
        # Without a leak it is about 0. A buffer of the ring has 16 KiB; of a leak into gaps of the heap a part shows.
        if slopes[-1] < 2 << 10:
            return
    raise AssertionError(f"bytes a step, each time: {slopes}")
