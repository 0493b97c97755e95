"""`spqfmt diff`: equal means the same model however it is stored, and what differs is named."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_models import Models
from spq_command import Run

import spqfmt
from spqfmt.container.encode import encode_chunk
from spqfmt.container.reader import Reader
from spqfmt.container.writer import Writer
from spqfmt.errors import OptionError
from spqfmt.reading.diff import diff_files
from spqfmt.reading.distance import distance, to_numbers
from spqfmt.records import Stream, TensorRecord

UP = "model.layers.1.mlp.up_proj.weight"
NORM = "model.norm.weight"


@pytest.mark.parametrize("other", ["lossless", "zstd", "shards"])
def test_files_that_restore_the_same_are_equal_however_they_are_stored(
    spq: Run, models: Models, other: str
) -> None:
    for pair in ((models.lossless, getattr(models, other)), (getattr(models, other), models.lossless)):
        assert diff_files(*pair).equal
        done = spq("diff", *pair)
        assert (done.code, done.stderr) == (0, "")
        assert "equal: the same tensors" in done.stdout


def test_files_of_other_weights_differ_by_tensor(spq: Run, models: Models) -> None:
    report = diff_files(models.int8, models.int4)
    assert not report.equal
    assert {t.name for t in report.tensors if t.difference == "weights"} == {
        t.name for t in report.tensors if "proj" in t.name
    }
    assert {t.difference for t in report.tensors if "norm" in t.name} == {"equal"}
    assert all(t.error is None for t in report.tensors)
    done = spq("diff", models.int8, models.int4)
    assert done.code == 1
    assert "different: of 21 tensors 14 with other weights, 7 equal" in done.stdout


def test_errors_are_of_the_second_against_the_first_and_come_worst_first(spq: Run, models: Models) -> None:
    report = diff_files(models.lossless, models.int4, error=True)
    with spqfmt.open(models.lossless) as first, spqfmt.open(models.int4) as second:
        for tensor in report.tensors:
            a, b = first.read(tensor.name).double(), second.read(tensor.name).double()
            assert tensor.error is not None
            assert tensor.error.relative == pytest.approx(float((a - b).norm() / a.norm()), rel=1e-5)
            assert (tensor.difference == "equal") == bool(torch.equal(a, b))
    rows = spq("diff", models.lossless, models.int4, "--error").stdout.split("\n\n")[0].splitlines()[1:]
    errors = [float(row.split()[-3]) for row in rows if " weights " in row]
    assert errors == sorted(errors, reverse=True)
    assert len(errors) == 14 + 2


def test_a_changed_a_missing_and_a_reshaped_tensor_are_told_apart(
    spq: Run, models: Models, edited: Callable[..., Path], tmp_path: Path
) -> None:
    with spqfmt.open(models.lossless) as file:
        up = file.read(UP)
    folder = edited(
        {
            UP: up.clone().index_fill_(0, torch.tensor([0]), 1.0),
            NORM: torch.ones(3, dtype=torch.bfloat16),
            "model.layers.0.input_layernorm.weight": None,
            "model.layers.1.input_layernorm.weight": torch.ones(64).half(),
            "extra.weight": torch.ones(2, 2),
        }
    )
    out = tmp_path / "m.spq"
    spqfmt.pack(folder, out)
    differences = {t.name: t.difference for t in diff_files(models.lossless, out, error=True).tensors}
    assert {name: d for name, d in differences.items() if d != "equal"} == {
        UP: "weights",
        NORM: "shape",
        "model.layers.0.input_layernorm.weight": "only in the first",
        "model.layers.1.input_layernorm.weight": "dtype",
        "extra.weight": "only in the second",
    }
    done = spq("diff", models.lossless, out)
    assert done.code == 1
    for words in ("1 with another shape", "1 with another dtype", "1 only in the first"):
        assert words in done.stdout


def test_one_bit_is_a_difference(models: Models, edited: Callable[..., Path], tmp_path: Path) -> None:
    with spqfmt.open(models.lossless) as file:
        value = file.read(NORM)
    value.view(torch.int16)[-1] ^= 1
    spqfmt.pack(edited({NORM: value}), tmp_path / "m.spq")
    report = diff_files(models.lossless, tmp_path / "m.spq")
    assert [t.name for t in report.tensors if t.difference != "equal"] == [NORM]


def test_assets_make_a_difference_and_are_named(
    spq: Run, models: Models, edited: Callable[..., Path]
) -> None:
    folder = edited({})
    (folder / "config.json").write_text((folder / "config.json").read_text() + "\n")
    (folder / "generation_config.json").unlink()
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    out = folder.parent / "m.spq"
    spqfmt.pack(folder, out)
    report = diff_files(models.lossless, out)
    assert report.assets == {
        "config.json": "contents",
        "generation_config.json": "only in the first",
        "chat_template.jinja": "only in the second",
    }
    assert not report.equal
    assert "asset config.json: other contents" in spq("diff", models.lossless, out).stdout
    assert diff_files(models.lossless, out, matches=lambda name: True).equal  # tensors alone were asked for


def uniform(path: Path, *, transposed: bool = False, **more: Any) -> None:
    """A file with one uniform tensor, 3 by 2, and column scales."""
    codes = np.array([[1, -2], [3, 4], [5, -6]], np.int8)
    record = TensorRecord(
        name="w",
        shape=(2, 3) if transposed else (3, 2),
        dtype="f32",
        scheme="uniform",
        parameters={"step": 0x3F800000, "orientation": "rows"},
        streams=(Stream("codes", "i8", 6), Stream("column_scales", "f32", 2)),
        transposed=transposed,
        **more,
    )
    chunks = [
        [encode_chunk(codes.reshape(-1), "i8", "raw")],
        [encode_chunk(np.array([1, 2], np.float32), "f32", "raw")],
    ]
    with Writer(path, 64, force=False) as writer:
        writer.begin_segment("all")
        writer.add_tensor(record, chunks)
        writer.seal({})
        writer.publish()


def dense(path: Path, value: np.ndarray, dtype: str = "f32") -> None:
    stream = Stream("values", dtype, value.size)
    with Writer(path, 64, force=False) as writer:
        writer.begin_segment("all")
        chunks = [encode_chunk(np.ascontiguousarray(value).reshape(-1), dtype, "raw")] if value.size else []
        writer.add_tensor(TensorRecord("w", value.shape, dtype, "dense", streams=(stream,)), [chunks])
        writer.seal({})
        writer.publish()


def test_another_scheme_with_the_same_weights_is_equal(tmp_path: Path) -> None:
    value = np.array([[1, -4], [3, 8], [5, -12]], np.float32)
    uniform(tmp_path / "a.spq")
    dense(tmp_path / "b.spq", value)
    uniform(tmp_path / "c.spq", transposed=True)
    dense(tmp_path / "d.spq", value.T)
    for first, second in ("ab", "ba", "cd", "dc"):
        assert diff_files(tmp_path / f"{first}.spq", tmp_path / f"{second}.spq").equal
    assert [t.difference for t in diff_files(tmp_path / "a.spq", tmp_path / "c.spq").tensors] == ["shape"]


def test_what_is_done_with_the_input_makes_a_difference(tmp_path: Path) -> None:
    uniform(tmp_path / "plain.spq")
    int8 = {"bits": 8, "scope": "token"}
    uniform(tmp_path / "int8.spq", activation_quantization=int8)
    uniform(tmp_path / "again.spq", activation_quantization=int8)
    assert [t.difference for t in diff_files(tmp_path / "plain.spq", tmp_path / "int8.spq").tensors] == [
        "input"
    ]
    assert diff_files(tmp_path / "int8.spq", tmp_path / "again.spq").equal


@pytest.mark.parametrize("shape", [(), (0, 4), (4, 0)])
def test_scalars_and_empty_tensors_are_compared(tmp_path: Path, shape: tuple[int, ...]) -> None:
    dense(tmp_path / "a.spq", np.full(shape, 2, np.float32))
    dense(tmp_path / "b.spq", np.full(shape, 3, np.float32))
    assert diff_files(tmp_path / "a.spq", tmp_path / "a.spq", error=True).equal
    assert diff_files(tmp_path / "a.spq", tmp_path / "b.spq", error=True).equal == (shape != ())


@pytest.mark.parametrize("arguments", [[], ["--error"]])
def test_damage_is_no_difference_but_an_error(
    spq: Run, models: Models, tmp_path: Path, arguments: list[str]
) -> None:
    data = bytearray(models.lossless.read_bytes())
    with Reader(models.lossless) as reader:
        plane = reader.index.by_name[UP].by_role["values"].chunks[0].planes[0]
    data[plane.offset + 5] ^= 1
    bad = tmp_path / "bad.spq"
    bad.write_bytes(data)
    for pair in ((bad, models.lossless), (models.lossless, bad), (bad, bad)):
        done = spq("diff", *pair, *arguments)
        assert (done.code, done.stdout) == (1, "")
        assert f"{bad}: tensor {UP!r}, values" in done.stderr


def test_json_names_both_sides_and_quiet_says_nothing(spq: Run, models: Models) -> None:
    done = spq("diff", models.int8, models.int4, "--error", "--json")
    report = json.loads(done.stdout)
    assert done.code == 1
    assert report["equal"] is False
    assert report["first"]["file_bytes"] == models.int8.stat().st_size
    assert report["second"]["file_bytes"] == models.int4.stat().st_size
    by_name = {t["name"]: t for t in report["tensors"]}
    assert by_name[UP]["difference"] == "weights"
    assert by_name[UP]["first"]["scheme"] == "uniform"
    assert by_name[UP]["second"]["scheme"] == "grouped"
    assert by_name[UP]["error"]["relative"] > 0
    quiet = spq("diff", models.int8, models.int4, "--quiet")
    assert quiet == (1, "", "")


def test_a_filter_compares_these_tensors_alone(spq: Run, models: Models) -> None:
    done = spq("diff", models.int8, models.int4, "--tensor", "*norm*")
    assert done.code == 0
    assert "proj" not in done.stdout
    with pytest.raises(OptionError, match="no tensor of either file"):
        diff_files(models.int8, models.int4, matches=lambda name: False)


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_distance_holds_over_the_range_of_float32(scale: float) -> None:
    random = np.random.default_rng(0)
    a = (random.normal(size=100_000) * scale).astype(np.float32)
    b = (a + random.normal(size=a.size) * 0.1 * scale).astype(np.float32)
    found = distance([(b, a)], "f32", "f32")
    wide = a.astype(np.float64), b.astype(np.float64)
    difference = np.linalg.norm(wide[0] - wide[1])
    assert found.relative == pytest.approx(difference / np.linalg.norm(wide[0]), rel=1e-5)
    assert found.rms == pytest.approx(difference / np.sqrt(a.size), rel=1e-5)
    assert found.largest == pytest.approx(np.abs(wide[0] - wide[1]).max(), rel=1e-6)


def test_distance_to_zeros_and_to_what_is_not_finite() -> None:
    one, zero = np.ones(4, np.float32), np.zeros(4, np.float32)
    inf = np.array([np.inf, np.nan, 1, 2], np.float32)
    assert replace(distance([(one, zero)], "f32", "f32"), relative=None) == distance(
        [(one, zero)], "f32", "f32"
    )
    assert distance([(zero, one)], "f32", "f32").relative == 1
    assert distance([(inf, inf)], "f32", "f32").relative == 0
    assert distance([(one, inf)], "f32", "f32").rms is None


@pytest.mark.parametrize(
    ("name", "dtype"), [("f8_e4m3", torch.float8_e4m3fn), ("f8_e5m2", torch.float8_e5m2)]
)
def test_every_eight_bit_float_is_the_number_that_torch_says(name: str, dtype: torch.dtype) -> None:
    bits = np.arange(256, dtype=np.uint8)
    expected = torch.from_numpy(bits.copy()).view(dtype).float().numpy()
    np.testing.assert_array_equal(to_numbers(bits, name), expected)


def test_what_the_source_was_is_no_part_of_the_model(tmp_path: Path, models: Models) -> None:
    spqfmt.pack(models.source, tmp_path / "plain.spq", no_identity=True)
    assert diff_files(tmp_path / "plain.spq", models.lossless).equal
