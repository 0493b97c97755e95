"""Completion in real shells: keys are typed into bash and zsh, and fish is asked; each by the script it is given."""

import os
import pty
import re
import select
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_models import Models
from spq_command import Run

from spqfmt.cli.main import COMMANDS

# What is typed, and what stands there after Tab.
TYPED = {
    "spqfmt insp": "spqfmt inspect ",
    "spqfmt inspect my": "spqfmt inspect my\\ model.spq ",
    "spqfmt inspect 'my": "spqfmt inspect 'my model.spq' ",
    "spqfmt verify sub/": "spqfmt verify sub/inner.spq ",
    "spqfmt inspect no": "spqfmt inspect notes.txt ",
    "spqfmt inspect model.spq --meas": "spqfmt inspect model.spq --measure ",
    "spqfmt inspect model.spq --tensor=model.n": "spqfmt inspect model.spq --tensor=model.norm.weight ",
    "spqfmt inspect my\\ model.spq --tensor model.n": "spqfmt inspect my\\ model.spq --tensor model.norm.weight ",
    "spqfmt inspect model.spq --html=no": "spqfmt inspect model.spq --html=notes.txt ",
    "spqfmt inspect none.spq --tensor model.n": "spqfmt inspect none.spq --tensor model.n",
}
SETTINGS = {
    "bash": """
bind -x '"\\C-x": printf "LINE<%s>" "$READLINE_LINE"'
bind 'set bell-style none'
""",
    "zsh": """
unsetopt beep
tell() { print -rn -- "LINE<$BUFFER>" }
zle -N tell; bindkey '^X' tell; bindkey '^U' kill-whole-line
""",
}


@pytest.fixture
def folder(models: Models, tmp_path: Path) -> Path:
    """Somewhere with packed models, another file, and the program on the path."""
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


def _environment(folder: Path) -> dict[str, str]:
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "HOME": str(folder), "ZDOTDIR": str(folder), "TERM": "dumb"}


class _Terminal:
    """A shell that believes that a person types."""

    def __init__(self, command: list[str], folder: Path) -> None:
        self._keys, theirs = pty.openpty()
        self._process = subprocess.Popen(
            command,
            cwd=folder, env=_environment(folder), stdin=theirs, stdout=theirs, stderr=theirs,
            start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        self._screen = b""

    def type(self, keys: str, until: str) -> str:
        """What the pattern's group says when the screen shows it."""
        self._screen = b""
        os.write(self._keys, keys.encode())
        end = time.monotonic() + 60
        while (found := re.search(until.encode(), self._screen)) is None:
            assert time.monotonic() < end, self._screen
            if select.select([self._keys], [], [], 1)[0]:
                self._screen += os.read(self._keys, 1 << 16)
        return found[found.lastindex or 0].decode()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._keys)


@pytest.mark.parametrize("shell", list(SETTINGS))
def test_a_shell_completes_what_is_typed(spq: Run, folder: Path, shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell}")
    rc = folder / (".zshrc" if shell == "zsh" else "rc")
    rc.write_text("PS1='READY> '\n" + spq("completion", shell).stdout + SETTINGS[shell])
    options = ["-d", "-i"] if shell == "zsh" else ["--noprofile", "--rcfile", str(rc), "-i"]
    terminal = _Terminal([shell, *options], folder)
    try:
        terminal.type("", "READY> ")
        shown = {line: terminal.type(f"\x15{line}\t\x18", r"LINE<([^>]*)>") for line in TYPED}
    finally:
        terminal.close()
    assert shown == TYPED


@pytest.mark.skipif(shutil.which("fish") is None, reason="there is no fish")
def test_fish_completes_what_is_typed(spq: Run, folder: Path) -> None:
    (folder / "script.fish").write_text(spq("completion", "fish").stdout)
    shown = {}
    for line in TYPED:
        script = f'source script.fish; complete -C "{line.replace(chr(92), chr(92) * 2)}"'
        done = subprocess.run(
            ["fish", "--no-config", "-c", script],
            cwd=folder, env=_environment(folder), capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stderr == ""
        shown[line] = [answer.split("\t")[0] for answer in done.stdout.splitlines()]
    # fish gives the words that may stand there; what TYPED has is the whole line.
    words = {line: shlex.split(after)[-1] for line, after in TYPED.items()}
    assert shown == {line: [word] if TYPED[line].endswith(" ") else [] for line, word in words.items()}


def test_answers_are_lines_of_kind_value_and_help(folder: Path) -> None:
    """What the scripts read, whichever shells there are."""

    def ask(*words: str) -> list[list[str]]:
        asked = {
            "_SPQFMT_COMPLETE": "zsh_complete",
            "COMP_WORDS": " ".join(words),
            "COMP_CWORD": str(len(words) - 1),
        }
        done = subprocess.run(
            ["spqfmt"],
            cwd=folder,
            env=_environment(folder) | asked,
            capture_output=True,
            text=True,
            check=False,
        )
        return [line.split("\t") for line in done.stdout.splitlines()]

    assert ask("spqfmt", "") == [["plain", name, text] for name, (_, _, text) in COMMANDS.items()]
    assert ask("spqfmt", "inspect", "m") == [["path", "model.spq", ""], ["path", "my model.spq", ""]]
    assert ask("spqfmt", "inspect", "n") == [["file", "n", ""]]
    measure = ask("spqfmt", "inspect", "model.spq", "--meas")
    assert measure == [
        ["plain", "--measure", "Decode the payload too: histograms of codes, maps of outliers."]
    ]
    norm = [["plain", "model.norm.weight", ""]]
    assert ask("spqfmt", "inspect", "model.spq", "--tensor", "=", "model.n") == norm
    assert ask("spqfmt", "inspect", "model.spq", "--tensor=model.n") == norm
