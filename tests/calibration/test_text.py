"""Texts, samples, and the options that choose them."""

import json
import subprocess
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from calibration_models import tiny

import spqfmt
from spqfmt.calibration.text import CalibrationOptions, choose_samples, default_text, read_text, text_digest
from spqfmt.errors import OptionError
from spqfmt.packing.options import pack_options


def test_the_text_in_the_package_is_plain_and_small() -> None:
    text = default_text()
    assert len(text.encode()) <= 1 << 20
    assert text.startswith("ALICE'S ADVENTURES IN WONDERLAND")
    assert "The Devil's Dictionary" in text
    assert "\r" not in text


def test_samples_are_the_same_for_a_seed_and_apart_in_a_long_text() -> None:
    tokenizer = tiny.byte_tokenizer()
    options = CalibrationOptions(samples=20, seq_len=64)
    first, again = (choose_samples(tokenizer, options, None) for _ in range(2))
    other = choose_samples(tokenizer, CalibrationOptions(samples=20, seq_len=64, seed=1), None)
    assert first.shape == (20, 64)
    assert first.dtype == torch.int64
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    starts = sorted(default_text().index(tokenizer.decode(sample)) for sample in first)
    assert all(b - a >= 64 for a, b in pairwise(starts))


def test_a_short_text_gives_samples_that_overlap(tmp_path: Path) -> None:
    file = tmp_path / "t.txt"
    file.write_text("abcdefghijklmnopqrstuvwxyz", "utf-8")
    options = CalibrationOptions(text=file, samples=9, seq_len=16)
    samples = choose_samples(tiny.byte_tokenizer(), options, None)
    assert samples.shape == (9, 16)
    assert choose_samples(tiny.byte_tokenizer(), options, 10).shape == (9, 10)


def test_json_lines_are_joined(tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl"
    file.write_text(json.dumps({"text": "one"}) + "\n\n" + json.dumps({"text": "two", "id": 3}), "utf-8")
    assert read_text(file) == "one\n\ntwo"
    assert text_digest(CalibrationOptions(text=file)) != text_digest(CalibrationOptions())


def test_other_ends_of_lines_inside_a_string_are_text(tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl"
    file.write_bytes(b'{"text": "one\xe2\x80\xa8two\xc2\x85three"}\r\n{"text": "four"}')
    assert read_text(file) == "one\u2028two\x85three\n\nfour"


def test_a_folder_of_texts_is_read_in_the_order_of_paths(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x.md").write_text("two", "utf-8")
    (tmp_path / "c.jsonl").write_text('{"text": "three"}\n{"text": "four"}\n', "utf-8")
    (tmp_path / "a.txt").write_text("one", "utf-8")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\xff")
    assert read_text(tmp_path) == "one\n\ntwo\n\nthree\n\nfour"
    one, two = (text_digest(CalibrationOptions(text=path)) for path in (tmp_path, tmp_path / "a.txt"))
    assert one != two
    (tmp_path / "b" / "x.md").unlink()
    with pytest.raises(OptionError, match=r"b: a folder without a text \(\.txt, \.md, \.jsonl, \.ndjson\)$"):
        read_text(tmp_path / "b")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("t.txt", b"", "the calibration text is empty"),
        ("t.txt", b" \n\n ", "the calibration text is empty"),
        ("t.txt", b"too short", "the calibration text has 9 tokens, a sample needs 16"),
        ("t.txt", b"abc\xff", "not UTF-8 (invalid start byte at byte 3)"),
        ("t.jsonl", b'{"text": "a"}\n{"no', "line 2 is not JSON"),
        ("t.jsonl", b'{"txt": "a"}', 'line 1 has no "text" field'),
        ("t.jsonl", b"[1]", 'line 1 has no "text" field'),
    ],
)
def test_a_bad_text_is_one_line(name: str, data: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_bytes(data)
    with pytest.raises(OptionError) as caught:
        choose_samples(tiny.byte_tokenizer(), CalibrationOptions(text=file, seq_len=16), None)
    assert str(caught.value) == f"{file}: {message}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "spqr", "bits": 9}, "bits must be from 2 to 8"),
        ({"method": "gptq", "bits": 1}, "bits must be from 2 to 8"),
        ({"method": "spqr", "group_size": 0}, "a group size is at least 1"),
        ({"method": "gptq", "group_size": 0}, "a group size is at least 1"),
        ({"method": "gptq", "granularity": "row", "group_size": 4}, "goes with granularity group"),
        ({"method": "gptq", "granularity": "tensor"}, "granularity must be one of row, group"),
        ({"method": "spqr", "threshold": 0.0}, "threshold of outliers is above 0"),
        ({"method": "spqr", "threshold": float("nan")}, "threshold of outliers is above 0"),
        ({"method": "spqr", "damping": -1.0}, "damping is a number from 0 on"),
        ({"method": "gptq", "damping": float("nan")}, "damping is a number from 0 on"),
        ({"method": "gptq", "threshold": 0.1}, "method gptq takes no --threshold"),
        ({"method": "rtn", "act_order": True, "damping": 1.0}, "method rtn takes no --damping, --act-order"),
        ({"method": "rtn", "samples": 4}, "needs no calibration"),
        ({"method": "lossless", "calibration": "t.txt"}, "needs no calibration"),
        ({"method": "spqr", "samples": 0}, "at least 1 sample"),
        ({"method": "spqr", "seq_len": 2}, "at least 8 tokens"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        pack_options(**options)  # type: ignore[arg-type]


def test_the_command_line_says_it_in_one_line(folder: Callable[[str], Path], tmp_path: Path) -> None:
    text = tmp_path / "t.txt"
    text.write_text("short", "utf-8")
    done = subprocess.run(
        ["spqfmt", "pack", folder("llama"), tmp_path / "m.spq", "--method", "gptq", "--calibration", text],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    # The tiny model takes 128 tokens, fewer than a sample has by default.
    assert done.stderr == f"spqfmt: {text}: the calibration text has 5 tokens, a sample needs 128\n"
    assert [path.name for path in tmp_path.iterdir()] == ["t.txt"]


def test_a_model_without_tokenizer_is_refused(folder: Callable[[str], Path], tmp_path: Path) -> None:
    import shutil

    copy = shutil.copytree(folder("llama"), tmp_path / "copy")
    for file in copy.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(spqfmt.ImporterError, match="needs the model's tokenizer"):
        spqfmt.pack(copy, tmp_path / "m.spq", method="gptq")
