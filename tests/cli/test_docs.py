"""Help and its pages: every command has examples that it takes, and a page that says all that its help says."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from spq_command import Run

from spqfmt.cli.main import COMMANDS, cli

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "generate" / "make_docs.py"


def command_named(name: str) -> click.Command:
    with click.Context(cli) as ctx:
        command = cli.get_command(ctx, name)
    assert command is not None
    return command


def examples(name: str) -> list[str]:
    """The lines of a command's help that begin with the program's name."""
    found = re.findall(r"^\s*(spqfmt .*)$", command_named(name).help or "", re.MULTILINE)
    return [line for line in found if line.split()[1] == name]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_example_is_a_command_line_that_the_program_takes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parsed, not run. What an example reads is made first: options check that their files exist."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "path" / "to" / "model").mkdir(parents=True)
    (tmp_path / "packed-folder").mkdir()
    lines = examples(name)
    assert lines
    named = re.findall(r"[^ ]+[.]spq", " ".join(lines))
    for file in {
        "model.gguf",
        "wiki.txt",
        "eval.json",
        "laptop.json",
        "questions.txt",
        "key.pem",
        "key.pub",
        *named,
    }:
        # What is at an address is not asked for.
        if "://" not in file:
            (tmp_path / file).touch()
    for line in lines:
        arguments = shlex.split(re.split(r" && | >>? | [|] | < ", line)[0])[2:]
        command_named(name).make_context(name, arguments)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_every_example_as_it_stands(spq: Run, name: str) -> None:
    done = spq(name, "--help")
    assert done.code == 0
    for line in examples(name):
        assert f"\n  {line}\n" in done.stdout


def make(root: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOL), *options, "--root", str(root)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def shown(page: Path) -> str:
    """What a man page says, without the requests and escapes that it is written with."""
    text = re.sub(r"^\..*\n", "", page.read_text(), flags=re.M)
    return re.sub(r"\\f[BRI]", "", text).replace("\\-", "-").replace("\\e", "\\")


@pytest.mark.skipif(shutil.which("groff") is None, reason="no groff")
def test_man_pages_are_set_without_a_warning() -> None:
    pages = sorted((ROOT / "docs" / "man").glob("*.1"))
    done = subprocess.run(["groff", "-man", "-ww", "-Tutf8", "-z", *pages], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_pages_say_what_help_says_and_the_check_finds_stale_ones(tmp_path: Path) -> None:
    assert make(tmp_path).returncode == 0
    assert make(tmp_path, "--check").stdout == ""
    folder = tmp_path / "docs" / "commands"
    assert {path.name for path in folder.iterdir()} == {"README.md", *(f"{name}.md" for name in COMMANDS)}
    for name in COMMANDS:
        text = (folder / f"{name}.md").read_text()
        assert f"[{name}]({name}.md)" in (folder / "README.md").read_text()
        assert all(f"\n    {line}\n" in text for line in examples(name))
        for param in command_named(name).params:
            if isinstance(param, click.Option):
                assert f"- `{param.opts[0]}" in text
                assert " ".join((param.help or "").split()) in text
    manual = tmp_path / "docs" / "man"
    assert {path.name for path in manual.iterdir()} == {
        "spqfmt.1",
        *(f"spqfmt-{name}.1" for name in COMMANDS),
    }
    assert shown(manual / "spqfmt-run.1").count("--max-new-tokens") == 1
    for name in COMMANDS:
        said = shown(manual / f"spqfmt-{name}.1")
        assert all(line in said for line in examples(name)), name
        assert f"spqfmt-{name}(1)" in shown(manual / "spqfmt.1")
    (folder / "diff.md").write_text((folder / "diff.md").read_text().replace("equal", "alike"))
    (folder / "run.md").unlink()
    (folder / "gone.md").write_text("a command that there was")
    (manual / "spqfmt-plan.1").write_text("")
    checked = make(tmp_path, "--check")
    assert checked.returncode == 1
    stale = {"docs/commands/diff.md", "docs/commands/run.md", "docs/commands/gone.md"}
    stale.add("docs/man/spqfmt-plan.1")
    assert set(checked.stdout.split()) == {"stale:", *stale}
    assert "alike" in (folder / "diff.md").read_text()  # the check writes nothing
    assert make(tmp_path).returncode == 0
    assert make(tmp_path, "--check").stdout == ""
    assert not (folder / "gone.md").exists()
