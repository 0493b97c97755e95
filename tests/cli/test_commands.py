"""The program as a user starts it: what it prints, where, and the exit code."""

import json
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from spq_command import run

import spqfmt
from spqfmt.cli.main import COMMANDS

SPQFMT = [sys.executable, "-c", "from spqfmt.cli.main import main; main()"]


def start(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    """The command as a process of its own."""
    command = [*SPQFMT, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def fails(code: int, *arguments: object) -> str:
    """The one line on stderr of a command that must end with this code and print nothing else."""
    done = run(*arguments)
    assert done.code == code, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    return done.stderr


def one_line(stderr: str) -> str:
    assert stderr.startswith("spqfmt: ")
    assert stderr.count("\n") == 1
    return stderr


def one_summary(stderr: str) -> str:
    """No bar, no colours."""
    assert stderr.count("\n") == 1
    assert stderr.rstrip("\n").isprintable()
    return stderr


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder with two layers' worth of weights."""
    path = tmp_path_factory.mktemp("model")
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"model.layers.{layer}.mlp.up_proj.weight": torch.randn(64, 96, generator=generator)
        for layer in range(2)
    }
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    (path / "config.json").write_text('{"architectures": ["None"]}')
    return path


@pytest.fixture(scope="session")
def packed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder, packed."""
    out = tmp_path_factory.mktemp("packed") / "m.spq"
    done = run("pack", folder, out, "--method", "rtn", "--bits", "8")
    assert done.code == 0, done.stderr
    return out


def test_pack_says_what_it_made_and_shows_no_bar_when_piped(folder: Path, tmp_path: Path) -> None:
    done = run("pack", folder, tmp_path / "m.spq")
    assert done.code == 0
    assert done.stdout == ""
    assert done.stderr.startswith(f"{tmp_path / 'm.spq'}: ")
    summary, files = done.stderr.splitlines(keepends=True)
    assert "bits a weight" in one_summary(summary)
    assert one_summary(files) == "files with it: config.json\n"


def test_pack_json(folder: Path, tmp_path: Path) -> None:
    done = run("pack", folder, tmp_path / "m.spq", "--json")
    report = json.loads(done.stdout)
    assert report["file_bytes"] == (tmp_path / "m.spq").stat().st_size
    assert report["n_weights"] == 2 * 64 * 96


def test_dry_run_names_the_files_that_would_stay_behind(folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(folder, source)
    (source / "training.pt").write_bytes(b"x")
    words = ("pack", source, tmp_path / "m.spq")
    plan, report = (json.loads(run(*words, "--json", *more).stdout) for more in (("--dry-run",), ()))
    assert plan["left_out"] == report["left_out"]
    assert "training.pt" in plan["left_out"]
    told = [line for line in run(*words, "--dry-run").stderr.splitlines() if line.startswith("left out, ")]
    assert len(told) == 1
    assert "training.pt" in told[0]


def test_dry_run_writes_nothing_and_shows_every_name_whole(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")  # a pipe has no width
    done = run("pack", folder, tmp_path / "m.spq", "--method", "rtn", "--bits", "4", "--dry-run")
    assert done.code == 0
    assert re.search(
        r"^model\.layers\.0\.mlp\.up_proj\.weight .*  4 bits per row$", done.stdout, re.MULTILINE
    )
    plan = json.loads(
        run("pack", folder, tmp_path / "m.spq", "--method", "rtn", "--dry-run", "--json").stdout
    )
    assert [t["treatment"] for t in plan["tensors"]] == ["8 bits per row"] * 2
    refused = run("pack", folder, tmp_path / "m.spq", "--fit", "90", "--dry-run")
    assert (refused.code, refused.stdout) == (2, "")
    assert "is the smallest size that works" in refused.stderr
    # Whether bits a weight are too few shows only when all that is not quantized is encoded.
    few = ("--method", "ecq", "--bits", "1", "--no-calibration")
    assert run("pack", folder, tmp_path / "m.spq", *few, "--dry-run").code == 0
    assert "too few for this model" in run("pack", folder, tmp_path / "m.spq", *few).stderr
    assert not list(tmp_path.iterdir())


def test_inspect_table_and_json(packed: Path) -> None:
    table = run("inspect", packed)
    assert table.code == 0
    assert "model.layers.0.mlp.up_proj.weight" in table.stdout
    report = json.loads(run("inspect", packed, "--json").stdout)
    assert report["file_bytes"] == packed.stat().st_size
    keys = {
        "name", "shape", "dtype", "scheme", "method", "n_weights", "raw_bytes", "stored_bytes",
        "bits_per_weight", "entropy_bits_per_weight", "ratio", "outliers", "streams",
    }  # fmt: skip
    for tensor in report["tensors"]:
        assert keys <= set(tensor)
        assert all({"role", "codec", "raw_bytes", "stored_bytes"} <= set(s) for s in tensor["streams"])


def test_inspect_filters_and_sorts(packed: Path) -> None:
    report = json.loads(run("inspect", packed, "--json", "--tensor", "*.1.*").stdout)
    assert [t["name"] for t in report["tensors"]] == ["model.layers.1.mlp.up_proj.weight"]
    report = json.loads(run("inspect", packed, "--json", "--sort", "size").stdout)
    sizes = [t["stored_bytes"] for t in report["tensors"]]
    assert sizes == sorted(sizes, reverse=True)
    assert "no tensor matches" in fails(2, "inspect", packed, "--tensor", "nothing")


def test_verify(packed: Path) -> None:
    done = run("verify", packed)
    assert done.code == 0
    assert "sound" in one_summary(done.stderr)


def test_unpack_gives_a_folder_that_packs_again(packed: Path, tmp_path: Path) -> None:
    assert run("unpack", packed, tmp_path / "folder").code == 0
    assert (tmp_path / "folder" / "config.json").read_text() == '{"architectures": ["None"]}'
    assert run("pack", tmp_path / "folder", tmp_path / "again.spq").code == 0
    with spqfmt.open(packed) as first, spqfmt.open(tmp_path / "again.spq") as second:
        for name in first:
            assert torch.equal(first.read(name), second.read(name))
    assert "not an empty folder" in one_line(fails(2, "unpack", packed, tmp_path / "folder"))


def test_a_file_that_is_none(tmp_path: Path) -> None:
    other = tmp_path / "notes.spq"
    other.write_text("hello")
    for command in ("verify", "inspect", "unpack"):
        extra = [tmp_path / "out"] if command == "unpack" else []
        assert f"{other}: not a .spq file" in one_line(fails(1, command, other, *extra))


def test_a_truncated_and_a_damaged_file(packed: Path, tmp_path: Path) -> None:
    whole = packed.read_bytes()
    cut = tmp_path / "cut.spq"
    cut.write_bytes(whole[:-100])
    assert "ends before its end" in one_line(fails(1, "verify", cut))
    bad = tmp_path / "bad.spq"
    bad.write_bytes(whole[:200] + bytes([whole[200] ^ 1]) + whole[201:])
    line = one_line(fails(1, "verify", bad))
    assert "model.layers.0.mlp.up_proj.weight" in line
    assert "checksum" in line


def test_a_newer_version_is_not_called_damaged(packed: Path, tmp_path: Path) -> None:
    newer = bytearray(packed.read_bytes())
    newer[8] = 2
    path = tmp_path / "newer.spq"
    path.write_bytes(newer)
    assert "format version 2" in one_line(fails(1, "verify", path))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--bits", "9", "--method", "rtn"], "bits must be from 2 to 8"),
        (["--method", "magic"], "unknown method"),
        (["--bits", "4"], "--bits without --method"),
        (["--shard-size", "huge"], "not a size"),
        (["--partial", "every:x"], "every:N"),
    ],
)
def test_wrong_options(folder: Path, tmp_path: Path, arguments: list[str], words: str) -> None:
    assert words in one_line(fails(2, "pack", folder, tmp_path / "m.spq", *arguments))
    assert not list(tmp_path.iterdir())


def test_wrong_sources(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "empty" in one_line(fails(1, "pack", tmp_path / "empty", tmp_path / "m.spq"))
    assert "no such file" in one_line(fails(2, "pack", tmp_path / "none", tmp_path / "m.spq"))
    assert "no-such-folder" in one_line(fails(2, "pack", folder, tmp_path / "no-such-folder" / "m.spq"))


def test_an_existing_output(folder: Path, packed: Path) -> None:
    before = packed.read_bytes()
    assert "--force" in one_line(fails(2, "pack", folder, packed))
    assert packed.read_bytes() == before


def test_a_disk_that_takes_no_more(folder: Path, tmp_path: Path) -> None:
    """The limit of file sizes stands in for a full disk: a real write fails in the middle."""
    out = tmp_path / "m.spq"

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))

    process = start("pack", folder, out, preexec_fn=limit)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"{out}: larger than a file may be here" in one_line(stderr)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_pack_that_is_stopped_leaves_no_file_of_that_name(tmp_path: Path, sent: signal.Signals) -> None:
    source = tmp_path / "model"
    source.mkdir()
    save_file({"w": torch.randn(64, 64)}, source / "model.safetensors", metadata={"format": "pt"})
    (source / "config.json").write_text("{}")
    out = tmp_path / "out" / "m.spq"
    out.parent.mkdir()
    # All is written, and the name is the next thing that it gets. Under nohup and the like SIGINT is ignored.
    handler = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    stop = f"{handler}import os; os.fsync = lambda file: os.kill(os.getpid(), {int(sent)}); "
    command = [*SPQFMT[:2], stop + SPQFMT[2], "pack", str(source), str(out)]
    process = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert process.returncode == (-sent if sent == signal.SIGKILL else 130)
    assert not out.exists()
    if sent != signal.SIGKILL:
        assert "interrupted" in one_line(process.stderr.lstrip())
        assert not list(out.parent.iterdir())


def test_help_of_every_command_has_an_example() -> None:
    for command in COMMANDS:
        done = run(command, "--help")
        assert done.code == 0
        assert f"spqfmt {command} " in done.stdout.split("Usage:", 1)[1].split("\n", 1)[1], command


def test_output_into_a_closed_pipe(packed: Path) -> None:
    process = start("inspect", packed)
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    _, stderr = process.communicate(timeout=60)
    assert "Traceback" not in stderr
    assert "Exception" not in stderr


def test_the_installed_program_starts() -> None:
    stdout, _ = start("--version").communicate(timeout=60)
    assert stdout == f"spqfmt, version {spqfmt.__version__}\n"
