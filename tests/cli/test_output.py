"""Where output goes: data alone on stdout when that is no terminal, a bar on stderr only when that is one."""

import io
import json
import os
import pty
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from cli_models import Models
from safetensors.torch import load_file, save_file
from spq_command import Run

from spqfmt.cli.main import COMMANDS, main
from spqfmt.cli.progress import RateColumn
from spqfmt.loaders import Evaluation, encode_text, evaluate, load_model
from spqfmt.progress import Silent
from spqfmt.reading.report import inspect_file

PROGRAM = [sys.executable, "-P", "-c", "from spqfmt.cli.main import main; main()"]


class Case(NamedTuple):
    """How a command is tried. `data`: whether it prints any without --json; None for text that may be anything."""

    arguments: Callable[[Models, Path], list[object]]
    data: bool | None
    json: bool = True
    quiet: bool = True
    code: int = 0


# Every command stands here: a new one is missed by the first test.
CASES: dict[str, Case] = {
    "pack": Case(lambda m, out: [m.source, out / "m.spq"], data=False),
    "repack": Case(lambda m, out: [m.int8, out / "m.spq", "--codec", "zstd"], data=False),
    "inspect": Case(lambda m, out: [m.int8, "--measure"], data=True),
    "diff": Case(lambda m, out: [m.int8, m.int4], data=True, code=1),
    "verify": Case(lambda m, out: [m.int8], data=False, json=False),
    # Without a key that exists: tests/container has signatures.
    "sign": Case(
        lambda m, out: [m.int8, "--key", out / "none.pem"], data=False, json=False, quiet=False, code=2
    ),
    "unpack": Case(lambda m, out: [m.int8, out / "folder"], data=False, json=False),
    "plan": Case(lambda m, out: [m.int8], data=True, quiet=False),
    "run": Case(lambda m, out: [m.int8, "--prompt", "x", "--max-new-tokens", "2"], data=None, json=False),
    # The model has no chat template: tests/talking has one that does.
    "chat": Case(lambda m, out: [m.int8], data=False, json=False, quiet=False, code=1),
    # One that does not end is tried in tests/talking.
    "serve": Case(lambda m, out: [m.int8, "--api-key", " "], data=False, json=False, quiet=False, code=2),
    "eval": Case(
        lambda m, out: [m.int8, "--text", m.source / "config.json", "--max-tokens", "64"], data=True
    ),
    # Against a hub: tests/hub.
    "push": Case(lambda m, out: [m.int8, "me/model", "--dry-run"], data=True, json=False),
    "pull": Case(lambda m, out: ["name"], data=False, json=False, quiet=False, code=2),
    # In its place there would be another program: tests/cli/test_exec.py starts some.
    "exec": Case(lambda m, out: [out / "none"], data=False, json=False, quiet=False, code=2),
    "bench": Case(lambda m, out: ["--rates"], data=True, quiet=False),
    "completion": Case(lambda m, out: ["bash"], data=True, json=False, quiet=False),
}


def test_every_command_is_tried() -> None:
    assert set(CASES) == set(COMMANDS)


@pytest.mark.parametrize("name", CASES)
def test_stdout_has_data_alone_and_no_bar_nor_colour(
    spq: Run, models: Models, tmp_path: Path, name: str
) -> None:
    case = CASES[name]
    done = spq(name, *case.arguments(models, tmp_path))
    assert done.code == case.code, done.stderr
    for text in (done.stdout, done.stderr):
        assert "\x1b" not in text
        assert "\r" not in text
    assert case.data is None or bool(done.stdout) == case.data


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.json])
def test_json_is_one_object_and_nothing_else(spq: Run, models: Models, tmp_path: Path, name: str) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    done = spq(name, *CASES[name].arguments(models, tmp_path), "--json")
    assert done.stderr == ""
    assert isinstance(json.loads(done.stdout, parse_constant=refuse), dict)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.quiet])
def test_quiet_leaves_data_alone(spq: Run, models: Models, tmp_path: Path, name: str) -> None:
    case = CASES[name]
    done = spq(name, *case.arguments(models, tmp_path), "--quiet")
    assert done.stderr == ""
    assert done.code == case.code
    if case.data is False:
        assert done.stdout == ""


def with_terminal_for_stderr(*arguments: object, **more: str) -> tuple[str, str]:
    """stdout, a pipe, and what came to the terminal that is stderr. `more` goes into the environment."""
    outer, inner = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "160", **more}
    process = subprocess.Popen(
        [*PROGRAM, *map(str, arguments)], stdout=subprocess.PIPE, stderr=inner, env=environment
    )
    os.close(inner)
    shown = b""
    try:
        while piece := os.read(outer, 65536):
            shown += piece
    except OSError:  # the other side is closed
        pass
    stdout, _ = process.communicate()
    os.close(outer)
    assert process.returncode in {0, 1}
    return stdout.decode(), shown.decode()


@pytest.mark.parametrize("name", ["verify", "diff", "inspect"])
def test_a_terminal_gets_a_bar_with_rate_and_tensor_unless_quiet(
    models: Models, tmp_path: Path, name: str
) -> None:
    arguments = CASES[name].arguments(models, tmp_path)
    stdout, shown = with_terminal_for_stderr(name, *arguments)
    what, last = {
        "verify": ("verifying", "head"),  # a layer's tensors are checked together
        "diff": ("comparing", "model.norm.weight"),
        "inspect": ("measuring", "model.norm.weight"),
    }[name]
    assert what in shown
    assert last in shown
    assert re.search(r"\d+(\.\d+)?/\d+(\.\d+)? .?bytes|\d+(\.\d+)?/\d+(\.\d+)? .B", shown)
    assert re.search(r"(\d|-):[\d-]{2}:[\d-]{2}", shown)  # time left
    assert "\x1b" not in stdout
    _, quiet = with_terminal_for_stderr(name, *arguments, "--quiet")
    assert quiet == ""


@pytest.mark.parametrize(("speed", "shown"), [(None, ""), (21.4, "21 tokens/s"), (2500.0, "2.5 k tokens/s")])
def test_the_rate_of_other_things_than_bytes(speed: float | None, shown: str) -> None:
    task: Any = SimpleNamespace(finished_speed=None, speed=speed)
    assert str(RateColumn("tokens").render(task)) == shown


class Recorder(Silent):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.total = 0
        self.steps: list[tuple[int, str]] = []

    def start(self, total: int) -> None:
        self.total = total

    def advance(self, n: int, name: str) -> None:
        self.steps.append((n, name))


def test_loading_and_scoring_tell_of_every_tensor_and_token(models: Models) -> None:
    loading, scoring = Recorder(), Recorder()
    model, tokenizer = load_model(models.int8, dtype="float32", packed=False, progress=loading)
    assert sum(n for n, _ in loading.steps) == loading.total > 0
    names = {tensor.name for tensor in inspect_file(models.int8).tensors if tensor.tied_to is None}
    assert {name for _, name in loading.steps} == names
    ids = encode_text(tokenizer, "The quick brown fox. " * 8)
    result = evaluate(model, ids, window=32, progress=scoring)
    assert (sum(n for n, _ in scoring.steps), scoring.total) == (result.tokens, len(ids))
    assert scoring.steps[-1][1] == f"perplexity so far {result.perplexity:.2f}"


def test_what_is_no_finite_number_is_null_in_json() -> None:
    result = Evaluation(perplexity=float("inf"), kl=float("nan"), tokens=3, stride=2)
    assert json.loads(json.dumps(result.to_json(), allow_nan=False)) == {
        "perplexity": None, "kl": None, "tokens": 3, "stride": 2,
    }  # fmt: skip


COLOURS = re.compile(r"\x1b\[(\d+;)*(3[0-8]|4[0-8]|9[0-7]|10[0-7])[;m]")


@pytest.mark.parametrize("name", ["verify", "inspect"])
def test_no_colour_where_none_is_wanted(models: Models, tmp_path: Path, name: str) -> None:
    arguments = CASES[name].arguments(models, tmp_path)
    _, coloured = with_terminal_for_stderr(name, *arguments)
    _, plain = with_terminal_for_stderr(name, *arguments, NO_COLOR="1")
    assert COLOURS.search(coloured)
    assert "ing" in plain  # the bar is there
    assert not COLOURS.search(plain)


def test_the_package_runs_as_a_module(models: Models) -> None:
    command = [sys.executable, "-m", "spqfmt", "inspect", str(models.int8), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["totals"]
    wrong = subprocess.run(
        [sys.executable, "-m", "spqfmt", "verify"], capture_output=True, text=True, check=False
    )
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    assert wrong.stderr.startswith("spqfmt: Missing argument")


MOVING = "a\x1b[2Jb\x07\rc\x9b1md\u202ee\tf\n\u200dg\u00a0h\u2067"


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_generated_text_cannot_steer_a_terminal(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    def generate(*arguments: object, write: Callable[[str], None], **options: object) -> object:
        for character in MOVING:
            write(character)
        return SimpleNamespace(n_prompt_tokens=1, n_new_tokens=1, first_token_seconds=0, tokens_per_second=0)

    monkeypatch.setattr("spqfmt.loaders.generate", generate)
    written = {}
    for stream in (_Terminal(), io.StringIO()):
        with redirect_stdout(stream), pytest.raises(SystemExit):
            main(["run", str(models.int8), "--prompt", "x", "--quiet"])
        written[stream.isatty()] = stream.getvalue()
    assert written[False] == MOVING + "\n"
    assert written[True] == (r"a\x1b[2Jb\x07\rc\x9b1md\u202ee" + "\tf\n\u200dg\u00a0h" + r"\u2067" + "\n")


def test_names_in_a_file_cannot_steer_a_terminal(spq: Run, models: Models, tmp_path: Path) -> None:
    tensors = load_file(models.source / "model.safetensors")
    folder = tmp_path / "model"
    shutil.copytree(models.source, folder)
    save_file(tensors | {"\x1b[2Jw\x9b": torch.randn(80, 80)}, folder / "model.safetensors")
    packed, other = tmp_path / "m.spq", tmp_path / "n.spq"
    shown = [
        spq("pack", folder, packed),
        spq("pack", folder, other, "--method", "gptq", "--samples", "2", "--seq-len", "16"),
        spq("pack", folder, tmp_path / "o.spq", "--dry-run"),
        *(spq("inspect", packed, "--by", by) for by in ("tensor", "layer", "scheme")),
        spq("inspect", packed, "--tensor", "*w*", "--reference", folder),
        spq("diff", packed, other, "--error"),
        spq("diff", packed, models.lossless),
        spq("plan", packed),
        spq("plan", packed, "--device", "cuda"),
        spq("run", packed, "--prompt", "x", "--max-new-tokens", "1", "--quiet"),
        spq("unpack", packed, tmp_path / "out"),
    ]
    for done in shown:
        assert done.code in {0, 1}, done.stderr
        assert "\x1b" not in done.stdout + done.stderr
        assert "\x9b" not in done.stdout + done.stderr
    assert sum(r"\x1b[2Jw\x9b" in done.stdout + done.stderr for done in shown) >= 6
