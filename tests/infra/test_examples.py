"""Programs in examples/, run as a user runs them."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import spqfmt
from spqfmt.loaders.plan import plan_model

ROOT = Path(__file__).resolve().parents[2]


def test_lora(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    packed = tmp_path / "m.spq"
    spqfmt.pack(tiny_folder("llama"), packed, method="rtn", bits=4, group_size=16)
    smallest = str(plan_model(packed).plan.smallest_bytes)
    command = [
        sys.executable,
        str(ROOT / "examples/lora.py"),
        str(packed),
        str(ROOT / "LICENSE"),
        str(tmp_path / "a"),
    ]
    done = subprocess.run(
        [*command, "--memory", smallest, "--steps", "12"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", done.stdout)]
    assert len(losses) == 13
    # The last is of the first step's tokens, with the adapter that was saved.
    assert losses[-1] < losses[0] - 0.05
    assert (tmp_path / "a/adapter_model.safetensors").stat().st_size < packed.stat().st_size
