"""EleutherAI's harness on a packed model: its own command on a folder, and `spqfmt eval --tasks` on a file."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import spq_command

import spqfmt
from spqfmt.errors import OptionError
from spqfmt.loaders.harness import Tasks

ROOT = Path(__file__).resolve().parents[2]
TASK = ["--tasks", "next_word"]
harness = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("lm_eval", "glassllm")),
    reason="lm_eval is not installed (pip install 'spqfmt[lm-eval]')",
)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import glass

    folder = tmp_path_factory.mktemp("glass")
    glass.build(folder / "source")
    spqfmt.pack(folder / "source", folder / "m.spq", method="rtn", bits=8)
    return folder / "m.spq"


def run(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """`python -m spqfmt ARGUMENTS` where the task's data lie, without a network and with caches of its own."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "cache")}
    command = [sys.executable, "-m", "spqfmt", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@harness
@pytest.mark.slow
def test_both_ways_give_the_same_scores(packed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    spqfmt.unpack(packed, folder, keep_packed=True)
    assert not list(folder.glob("*.safetensors"))
    arguments = ["--model", "hf", "--model_args", f"pretrained={folder},dtype=float32", "--device", "cpu"]
    more = ["--include_path", "examples/tasks", "--output_path", tmp_path / "out"]
    done = run(tmp_path, "exec", "lm_eval", *arguments, *TASK, *more)
    assert done.returncode == 0, done.stderr[-2000:]
    [file] = (tmp_path / "out").rglob("results_*.json")
    theirs = json.loads(file.read_text())["results"]["next_word"]
    done = run(tmp_path, "eval", packed, *TASK, "--task-folder", "examples/tasks", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    rows: list[dict[str, Any]] = json.loads(done.stdout)["tasks"]
    assert [row["metric"] for row in rows] == ["acc", "acc_norm"]
    for row in rows:
        assert row["n"] == 12
        assert row["value"] == theirs[f"{row['metric']},none"] > 0.7
        assert row["stderr"] == theirs[f"{row['metric']}_stderr,none"]


@harness
@pytest.mark.filterwarnings("ignore")
def test_some_documents_of_tasks_that_are_there(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    folder = Path("examples/tasks")
    with pytest.raises(OptionError, match="lm_eval has no task 'none', nor in examples/tasks"):
        Tasks(["next_word", "none"], folder)
    model, tokenizer = spqfmt.load_model(packed)
    for score in Tasks(["next_w*"], folder).run(model, tokenizer, limit=2, batch=2):
        assert (score.task, score.value, score.error, score.n) == ("next_word", 1.0, 0.0, 2)


@harness
@pytest.mark.slow
def test_data_that_cannot_be_had(packed: Path, tmp_path: Path) -> None:
    done = run(tmp_path, "eval", packed, "--tasks", "arc_easy")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"spqfmt: {packed}: lm_eval cannot run arc_easy (")


def test_without_lm_eval(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    (tmp_path / "m.spq").write_bytes(b"")  # told before it is read
    done = spq_command.run("eval", tmp_path / "m.spq", *TASK)
    assert (done.code, done.stdout) == (2, "")
    assert done.stderr.startswith("spqfmt: tasks are run by lm_eval, which is not installed: pip install")
