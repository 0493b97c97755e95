"""`spqfmt inspect --measure` and `--reference`: histograms, maps and errors are those of the weights."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_models import Models
from spq_command import Run

import spqfmt
from spqfmt.container.reader import Reader
from spqfmt.errors import OptionError
from spqfmt.reading.measure import measure_file
from spqfmt.reading.report import inspect_file

VECTORS = Path(__file__).resolve().parents[2] / "spec" / "vectors" / "valid"
UP = "model.layers.1.mlp.up_proj.weight"


def test_histogram_of_codes_counts_every_code(models: Models) -> None:
    report = measure_file(models.int4, inspect_file(models.int4), names=[UP])
    tensor = next(t for t in report.tensors if t.name == UP)
    assert [t.name for t in report.tensors if t.measured is not None] == [UP]
    assert tensor.measured is not None
    histogram = tensor.measured.histogram
    assert histogram is not None
    with Reader(models.int4) as reader:
        codes = reader.read_elements(reader.index.by_name[UP], "codes")
    values, counts = np.unique(codes, return_counts=True)
    assert histogram.unit == "code"
    found = {histogram.first + i: n for i, n in enumerate(histogram.counts) if n}
    assert found == dict(zip(values.tolist(), counts.tolist(), strict=True))


def test_histogram_of_floats_counts_exponents_and_zeros(models: Models, edited: Callable[..., Path]) -> None:
    value = torch.tensor([0.0, -0.0, 1.0, -1.5, 4.0, 0.3, float("inf"), float("nan")]).repeat(8).bfloat16()
    out = models.source.parent / "odd.spq"
    spqfmt.pack(edited({"model.norm.weight": value}), out, force=True)
    report = measure_file(out, inspect_file(out), names=["model.norm.weight"])
    measured = next(t.measured for t in report.tensors if t.measured is not None)
    histogram = measured.histogram
    assert histogram is not None
    assert (histogram.unit, histogram.first, histogram.n_zeros) == ("exponent", -2, 16)
    assert histogram.counts == (8, 0, 16, 0, 8)


@pytest.mark.parametrize("vector", ["uniform_outliers", "grouped_spqr"])
def test_the_map_of_outliers_counts_every_outlier_in_its_cell(vector: str) -> None:
    path = VECTORS / f"{vector}.spq"
    report = measure_file(path, inspect_file(path))
    seen = 0
    for tensor in report.tensors:
        assert tensor.measured is not None
        grid = tensor.measured.outlier_map
        assert (grid is None) == ("outlier_values" not in {s.role for s in tensor.streams})
        if grid is not None:
            assert sum(map(sum, grid.counts)) == tensor.outliers
            assert len(grid.counts) == -(-grid.rows // grid.rows_per_cell)
            assert {len(row) for row in grid.counts} == {-(-grid.columns // grid.columns_per_cell)}
            seen += tensor.outliers
    assert seen > 0


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


@pytest.mark.parametrize("reference", ["source", "lossless", "shards"])
def test_error_against_a_folder_a_file_and_shards(models: Models, reference: str) -> None:
    report = measure_file(models.int4, inspect_file(models.int4), reference=getattr(models, reference))
    with spqfmt.open(models.int4) as file, spqfmt.open(models.lossless) as exact:
        for tensor in report.tensors:
            if tensor.tied_to is not None:
                assert tensor.measured is None
                continue
            assert tensor.measured is not None
            error = tensor.measured.error
            assert error is not None
            a, b = file.read(tensor.name), exact.read(tensor.name)
            assert error.relative == pytest.approx(relative(a, b), rel=1e-5)
            assert error.largest == pytest.approx(float((a.float() - b.float()).abs().max()))
    assert any(t.measured and t.measured.error and t.measured.error.relative == 0 for t in report.tensors)


def test_a_lossless_file_has_no_error_even_where_it_is_not_finite(
    models: Models, edited: Callable[..., Path]
) -> None:
    value = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0] * 16).bfloat16()
    folder = edited({"model.norm.weight": value})
    spqfmt.pack(folder, folder.parent / "odd.spq")
    report = measure_file(
        folder.parent / "odd.spq", inspect_file(folder.parent / "odd.spq"), reference=folder
    )
    assert all(t.measured.error.relative == 0 for t in report.tensors if t.measured and t.measured.error)
    against = measure_file(models.lossless, inspect_file(models.lossless), reference=folder)
    norm = next(t for t in against.tensors if t.name == "model.norm.weight")
    assert norm.measured is not None
    assert norm.measured.error is not None
    assert norm.measured.error.relative is None


def test_a_reference_that_lacks_tensors_gives_no_error_for_them(
    spq: Run, models: Models, edited: Callable[..., Path]
) -> None:
    folder = edited({UP: None, "model.norm.weight": torch.zeros(3)})
    done = spq("inspect", models.int8, "--reference", folder, "--sort", "error")
    assert done.code == 0, done.stderr
    assert "lacks or has in another shape" in done.stdout
    assert "and 1 more" in done.stdout
    with pytest.raises(OptionError, match="has none of these tensors"):
        measure_file(models.int8, inspect_file(models.int8), names=[UP], reference=folder)


def test_sorting_by_error_puts_the_worst_first_and_needs_a_reference(spq: Run, models: Models) -> None:
    done = spq("inspect", models.int4, "--reference", models.lossless, "--sort", "error", "--json")
    errors = [t["measured"]["error"]["relative"] for t in json.loads(done.stdout)["tensors"] if t["measured"]]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.01 > errors[-1]
    refused = spq("inspect", models.int4, "--sort", "error")
    assert refused.code == 2
    assert "--reference" in refused.stderr


def test_damage_in_the_payload_is_found_only_when_it_is_measured(
    spq: Run, models: Models, tmp_path: Path
) -> None:
    data = bytearray(models.lossless.read_bytes())
    with Reader(models.lossless) as reader:
        plane = reader.index.by_name[UP].by_role["values"].chunks[0].planes[0]
    data[plane.offset + plane.stored_bytes - 1] ^= 1
    (tmp_path / "bad.spq").write_bytes(data)
    assert spq("inspect", tmp_path / "bad.spq").code == 0
    for arguments in (["--measure"], ["--reference", models.lossless]):
        done = spq("inspect", tmp_path / "bad.spq", *arguments)
        assert done.code == 1
        assert f"{tmp_path / 'bad.spq'}: tensor {UP!r}, values" in done.stderr
    other = spq("inspect", models.lossless, "--reference", tmp_path / "bad.spq")
    assert other.stderr.startswith(f"spqfmt: {tmp_path / 'bad.spq'}: tensor")
