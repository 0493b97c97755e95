"""`spqfmt repack`, and what `bench` and `inspect` have to do with partial compression, as a user runs them."""

import json
from pathlib import Path

import numpy as np
import pytest
from spq_command import run

import spqfmt
from spqfmt.container.encode import encode_chunk
from spqfmt.container.writer import Writer
from spqfmt.records import Stream, TensorRecord


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Four tensors of 30,000 compressible integers."""
    path = tmp_path / "m.spq"
    generator = np.random.default_rng(0)
    with Writer(path, 64, force=True) as writer:
        writer.begin_segment("all")
        for i in range(4):
            values = generator.normal(0, 2 + i, 30_000).astype(np.int8)
            stream = Stream("values", "i8", values.size)
            record = TensorRecord(f"w{i}", (30_000,), "i8", "dense", streams=(stream,))
            writer.add_tensor(record, [[encode_chunk(values, "i8", "auto")]])
        writer.seal({})
        writer.publish()
    return path


def test_repack_and_back(model: Path, tmp_path: Path) -> None:
    done = run("repack", model, tmp_path / "part.spq", "--partial", "every:2")
    assert done.code == 0, done.stderr
    assert "of 4 chunks of weights 2 are compressed, 2 were copied as they were" in done.stderr
    assert "partial every:2" in run("inspect", tmp_path / "part.spq").stdout
    assert run("verify", tmp_path / "part.spq").code == 0
    assert run("repack", tmp_path / "part.spq", tmp_path / "back.spq", "--quiet").stdout == ""
    streams = [[t.streams for t in spqfmt.inspect(path).tensors] for path in (tmp_path / "back.spq", model)]
    assert streams[0] == streams[1]


def test_rates_of_a_machine_choose_the_chunks_on_another(model: Path, tmp_path: Path) -> None:
    rates = run("bench", "--rates")
    (tmp_path / "rates.json").write_text(rates.stdout)
    done = run(
        "repack", model, tmp_path / "part.spq", "--partial", "speed:40%", "--rates", tmp_path / "rates.json", "--json"
    )  # fmt: skip
    report = json.loads(done.stdout)
    assert report["partial_plan"]["rates"] == json.loads(rates.stdout)
    assert 0 < report["n_compressed"] < report["n_chunks"] == 4
    assert report["file_bytes"] == (tmp_path / "part.spq").stat().st_size
    inspected = run("inspect", tmp_path / "part.spq", "--json").stdout
    assert json.loads(inspected)["partial_plan"] == report["partial_plan"]
    assert "partial speed" in run("inspect", tmp_path / "part.spq").stdout
    # What inspect prints is a file of rates too.
    (tmp_path / "inspected.json").write_text(inspected)
    arguments = ("--partial", "speed:40%", "--rates", tmp_path / "inspected.json", "--jobs", 1, "--quiet")
    assert run("repack", tmp_path / "part.spq", tmp_path / "again.spq", *arguments).code == 0
    assert (tmp_path / "again.spq").read_bytes() == (tmp_path / "part.spq").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--partial", "every:x"], 2, "every:N"),
        (["--partial", "speed:5parsecs"], 2, "speed:25ms"),
        (["--partial", "speed:1KiB"], 1, "cannot be reached: compressed whole they take"),
        (["--rates", __file__], 2, "needs no rates"),
        (["--partial", "speed", "--rates", "none.json"], 2, "none.json: no such file or folder"),
        (["--shard-size", "huge"], 2, "not a size"),
    ],
)
def test_wrong_options(model: Path, tmp_path: Path, arguments: list[str], code: int, words: str) -> None:
    done = run("repack", model, tmp_path / "out.spq", *arguments)
    assert done.code == code
    assert done.stdout == ""
    assert done.stderr.startswith("spqfmt: ")
    assert done.stderr.count("\n") == 1
    assert words in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["m.spq"]


def test_bad_files_and_names(model: Path, tmp_path: Path) -> None:
    (tmp_path / "text.spq").write_text("text")
    assert run("repack", tmp_path / "text.spq", tmp_path / "out.spq").code == 1
    assert run("repack", tmp_path / "none.spq", tmp_path / "out.spq").code == 2
    assert "--force" in run("repack", model, model).stderr
    assert "ends in .spq" in run("repack", model, tmp_path / "out").stderr
