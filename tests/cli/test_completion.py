"""Completion as a shell asks for it; in bash, by the script that `spqfmt completion bash` prints."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cli_models import Models, Run

from spqfmt.cli.main import COMMANDS

BASH = shutil.which("bash")


@pytest.fixture
def folder(models: Models, tmp_path: Path) -> Path:
    """Somewhere with a packed model, another file, and the program on the path."""
    shutil.copy(models.int8, tmp_path / "model.spq")
    shutil.copy(models.int8, tmp_path / "my model.spq")
    (tmp_path / "notes.txt").touch()
    (tmp_path / "sub").mkdir()
    shutil.copy(models.int8, tmp_path / "sub" / "inner.spq")
    program = tmp_path / "bin" / "spqfmt"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable} -P\nfrom spqfmt.cli.main import main\nmain()\n")
    program.chmod(0o755)
    return tmp_path


@pytest.mark.skipif(BASH is None, reason="there is no bash")
def test_bash_completes_commands_options_files_and_tensors(spq: Run, folder: Path) -> None:
    (folder / "script").write_text(spq("completion", "bash").stdout)
    lines = {
        ("spqfmt", "in"): ["inspect"],
        ("spqfmt", "inspect", "m"): ["model.spq", "my model.spq"],
        ("spqfmt", "verify", "sub/"): ["sub/inner.spq"],
        ("spqfmt", "inspect", "n"): [],
        ("spqfmt", "diff", "model.spq", "mo"): ["model.spq"],
        ("spqfmt", "inspect", "model.spq", "--meas"): ["--measure"],
        ("spqfmt", "inspect", "model.spq", "--by", "p"): ["projection"],
        ("spqfmt", "inspect", "model.spq", "--tensor", "model.n"): ["model.norm.weight"],
        ("spqfmt", "inspect", "none.spq", "--tensor", "model.n"): [],
        ("spqfmt", "completion", ""): ["bash", "zsh", "fish"],
    }
    script = ["compopt() { :; }", "source ./script"]
    for words in lines:
        quoted = " ".join(f"'{word}'" for word in words)
        script += [
            f"COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; COMPREPLY=(); _spqfmt_completion spqfmt",
            "(IFS='|'; echo \"${COMPREPLY[*]}\")",
        ]
    environment = {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
    done = subprocess.run(
        [str(BASH), "--norc", "-c", "\n".join(script)],
        cwd=folder, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stderr == ""
    replies = [line.split("|") if line else [] for line in done.stdout.splitlines()]
    assert dict(zip(lines, replies, strict=True)) == lines


@pytest.mark.parametrize(("shell", "words"), [("zsh", "#compdef spqfmt"), ("fish", "complete --no-files")])
def test_scripts_of_other_shells(spq: Run, shell: str, words: str) -> None:
    done = spq("completion", shell)
    assert done.code == 0
    assert words in done.stdout
    assert f"_SPQFMT_COMPLETE={shell}_complete" in done.stdout


def test_fish_gets_commands_with_their_help() -> None:
    asked = {"_SPQFMT_COMPLETE": "fish_complete", "COMP_WORDS": "spqfmt ", "COMP_CWORD": ""}
    command = [sys.executable, "-P", "-c", "from spqfmt.cli.main import main; main()"]
    done = subprocess.run(command, env={**os.environ, **asked}, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == [f"plain,{name}\t{text}" for name, (_, _, text) in COMMANDS.items()]
