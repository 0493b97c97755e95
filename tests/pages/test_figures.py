"""The picture of a file."""

from pathlib import Path

from PIL import Image

from spqfmt.pages.figures import write_png
from spqfmt.reading.measure import measure_file
from spqfmt.reading.report import inspect_file


def test_the_same_file_gives_the_same_small_picture(model: Path, tmp_path: Path) -> None:
    report = measure_file(model, inspect_file(model))
    for name in ("a.png", "b.png"):
        write_png(report, model, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert (tmp_path / "a.png").stat().st_size < 150_000
    with Image.open(tmp_path / "a.png") as image:
        assert image.width >= 900
        assert len(image.convert("RGB").getcolors(1 << 20)) > 16


def test_measurements_add_a_histogram(model: Path, tmp_path: Path) -> None:
    write_png(inspect_file(model), model, tmp_path / "plain.png")
    write_png(measure_file(model, inspect_file(model)), model, tmp_path / "measured.png")
    assert (tmp_path / "plain.png").read_bytes() != (tmp_path / "measured.png").read_bytes()


def test_names_are_no_formulas_and_no_letters_are_missed(hostile: Path, tmp_path: Path) -> None:
    (path,) = hostile.parent.glob("*.spq")
    write_png(inspect_file(path), path, tmp_path / "hostile.png")
    assert (tmp_path / "hostile.png").stat().st_size > 1000


def test_an_empty_file_and_one_without_layers_have_a_picture(tmp_path: Path) -> None:
    for name in ("empty", "dense_dtypes"):
        path = Path(__file__).parents[2] / "spec/vectors/valid" / f"{name}.spq"
        write_png(inspect_file(path), path, tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 1000
