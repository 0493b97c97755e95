"""`spqfmt exec`: programs that know nothing of spqfmt, started as a user starts them."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers

import spqfmt
from spqfmt.loaders.plan import plan_model

SPQFMT = [sys.executable, "-P", "-c", "from spqfmt.cli.main import main; main()", "exec"]
LOADS = """
import sys
assert "spqfmt.loaders" not in sys.modules and "transformers" not in sys.modules and "torch" not in sys.modules
import torch, transformers
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])
with torch.inference_mode():
    logits = model(torch.arange(24)[None]).logits
print(type(model.model.layers[0].mlp.up_proj).__name__, float(logits.double().abs().sum()))
"""


@pytest.fixture(scope="module")
def folder(tiny_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    at = tmp_path_factory.mktemp("exec")
    spqfmt.pack(tiny_folder("llama"), at / "m.spq", method="rtn", bits=4, group_size=16)
    spqfmt.unpack(at / "m.spq", at / "folder", keep_packed=True)
    return at / "folder"


def execute(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*SPQFMT, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
    )


def test_a_program_that_imports_transformers_alone_loads_a_packed_folder(
    folder: Path, tmp_path: Path
) -> None:
    script = tmp_path / "loads.py"
    script.write_text(LOADS)
    plain = subprocess.run(
        [sys.executable, str(script), str(folder)], capture_output=True, text=True, check=False
    )
    assert plain.returncode == 1
    assert "no file named model.safetensors" in plain.stderr
    done = execute("python", script, folder)
    assert done.returncode == 0, done.stderr
    expected = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with torch.inference_mode():
        sum_of = float(expected(torch.arange(24)[None]).logits.double().abs().sum())
    kind, found = done.stdout.split()
    assert kind == "Linear"
    assert float(found) == pytest.approx(sum_of, rel=1e-5)


def test_what_it_starts_loads_them_too_and_under_the_ceiling(folder: Path, tmp_path: Path) -> None:
    script = tmp_path / "loads.py"
    script.write_text(LOADS)
    starts = "import subprocess, sys; sys.exit(subprocess.run([sys.executable, *sys.argv[1:]]).returncode)"
    memory = plan_model(folder / "m.spq").plan.smallest_bytes
    done = execute("--memory", memory, "python", "-c", starts, script, folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("PackedLinear ")
    done = execute("--memory", "1kB", "python", script, folder)
    assert done.returncode == 1
    assert f"({memory} bytes), without activations" in done.stderr


def test_its_exit_code_arguments_and_path_are_its_own(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.of_the_system = True")
    (tmp_path / "mine.py").write_text("x = 3")
    code = "import sys, mine; print(sys.argv[1:], sys.of_the_system, mine.x, 'torch' in sys.modules); sys.exit(7)"
    done = execute("python", "-c", code, "--memory", "--", "-h", PYTHONPATH=str(tmp_path))
    assert (done.stdout, done.stderr, done.returncode) == (
        "['--memory', '--', '-h'] True 3 False\n",
        "",
        7,
    )


def test_an_interpreter_without_spqfmt_is_named(tmp_path: Path) -> None:
    (tmp_path / "transformers.py").touch()
    base = getattr(sys, "_base_executable", sys.executable)
    done = execute(base, "-c", "print(1)", PYTHONPATH=str(tmp_path))
    assert (done.stdout, done.returncode) == ("1\n", 0)
    assert done.stderr.endswith("packed models are not loaded there: install spqfmt beside it\n")
    assert len(done.stderr.splitlines()) == 1
    (tmp_path / "transformers.py").unlink()
    assert execute(base, "-c", "print(1)", PYTHONPATH=str(tmp_path)).stderr == ""


def test_what_cannot_be_run_is_refused() -> None:
    done = execute("no-such-program", "-h")
    assert (done.returncode, done.stderr) == (2, "spqfmt: no-such-program: no such program\n")
    done = execute("--memory", "much", "python")
    assert done.returncode == 2
    assert done.stderr.startswith("spqfmt: ")
