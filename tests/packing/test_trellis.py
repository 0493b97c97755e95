"""Tensors of path codes: what a method hands over comes back, whole and in parts, and is told from other tensors."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from spec_support import READERS
from test_schemes import Given

import spqfmt
from spqfmt.codecs.chunks import CodecPolicy
from spqfmt.container.reader import Reader
from spqfmt.container.slices import laid_for_ranks
from spqfmt.container.stacks import whole_stack_because
from spqfmt.importers.base import SourceModel, SourceTensor
from spqfmt.kernels.trellis import HISTORY_ROWS, unfold
from spqfmt.packing.options import PackOptions
from spqfmt.packing.pack import pack_model
from spqfmt.progress import Silent
from spqfmt.quantize.base import MethodOptions
from spqfmt.reading.diff import diff_files
from spqfmt.reading.grids import matrix_elements
from spqfmt.reading.measure import histogram
from spqfmt.schemes.codes import Layout
from spqfmt.schemes.floats import Scale
from spqfmt.schemes.outliers import Outliers
from spqfmt.schemes.registry import whole_because
from spqfmt.schemes.trellis import tiles_of
from spqfmt.schemes.uniform import Uniform

ROWS, COLUMNS = 60, 35


def a_path(layout: Layout, height: int, rows: int, columns: int, stacked: int, seed: int) -> NDArray[np.int8]:
    """Codes [rows, columns] that are paths down the rows as they are stored."""
    stored = np.random.default_rng(seed).integers(-9, 9, (rows, columns)).astype(np.int8)
    history = np.zeros((HISTORY_ROWS, columns), np.int8)
    for some, tall, place in tiles_of(height, stacked, layout.class_sizes).pieces(range(rows)):
        assert unfold(stored[some.start : some.stop], tall, place, history)
    codes = np.empty_like(stored)
    codes[slice(None) if layout.channel_order is None else layout.channel_order] = stored
    return codes


def uniform(layout: Layout, height: int, stacked: int = ROWS, seed: int = 1) -> Uniform:
    codes = a_path(layout, height, ROWS, COLUMNS, stacked, seed)
    places = np.array([3, 4, 700, 1999]), np.full(4, 7, np.float32)
    scales = np.random.default_rng(seed).uniform(1, 2, ROWS + COLUMNS).astype(np.float32)
    return Uniform(
        codes=codes,
        step=np.float32(0.01),
        row_scale=Scale(scales[:ROWS], "f32"),
        column_scale=Scale(scales[ROWS:], "f32"),
        outliers=Outliers(*np.divmod(places[0], COLUMNS), places[1], "f32"),
        layout=layout,
        trellis_rows=height,
        stacked_rows=stacked,
    )


ORDER = np.random.default_rng(3).permutation(ROWS)
FORMS = {
    "plain": (Layout(), 16, (ROWS, COLUMNS)),
    "one tile": (Layout(), 1000, (ROWS, COLUMNS)),
    "single rows": (Layout(), 1, (ROWS, COLUMNS)),
    "classes": (Layout("rows", ORDER, (7, 33, 20)), 8, (ROWS, COLUMNS)),
    "order": (Layout("rows", ORDER), 9, (ROWS, COLUMNS)),
    "stack": (Layout(), 8, (3, 20, COLUMNS)),
    "stack of low ones": (Layout(), 128, (12, 5, COLUMNS)),
    "stack in order": (Layout("rows", ORDER, (25, 35)), 6, (3, 20, COLUMNS)),
}
MADE = {name: uniform(layout, height, shape[-2]) for name, (layout, height, shape) in FORMS.items()}


def store(out: Path, made: dict[str, Uniform], **options: Any) -> Path:
    tensors = tuple(
        SourceTensor(name, FORMS[name][2], "f32", "layer", "linear", False, None, lambda: torch.zeros(1))
        for name in made
    )
    options.setdefault("policy", CodecPolicy())
    given = PackOptions(Given(dict(made)), MethodOptions(), options["policy"], None)
    pack_model(SourceModel(tensors, (), "", ""), out, given, force=True, progress=Silent())
    return out


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = store(tmp_path_factory.mktemp("trellis") / "m.spq", MADE)
    spqfmt.verify(out, content=True)
    return out


@pytest.mark.parametrize("name", FORMS)
def test_it_comes_back_whole_and_in_parts(packed: Path, name: str) -> None:
    expected = MADE[name].dequantize()
    with Reader(packed) as reader:
        record = reader.index.by_name[name]
        assert record.parameters["trellis"] == {"rows": FORMS[name][1]}
        assert reader.trailer.required >> 24 & 1
        codes = matrix_elements(reader, record, "codes").reshape(ROWS, COLUMNS)
        assert np.array_equal(codes, MADE[name].codes)
        counted = histogram(reader, record)
        assert counted is not None
        assert counted.first == codes.min()
        assert counted.counts == tuple(np.bincount(codes.ravel().astype(int) - codes.min()))
        parts = [
            (0, 60, 0, 35),
            (59, 60, 0, 35),
            (17, 18, 3, 9),
            (30, 52, 0, 35),
            (8, 24, 34, 35),
            (1, 60, 5, 20),
        ]
        for first, stop, left, right in parts:
            out = np.empty((stop - first, right - left), np.float32)
            reader.restore(record, range(first, stop), range(left, right), out, "f32")
            assert np.array_equal(out, expected[first:stop, left:right]), (first, stop, left, right)
        assert not whole_because(record)
        is_cut = name in {"stack", "stack of low ones"}
        assert (not whole_stack_because(record)) == is_cut


def test_the_reference_decoder_restores_the_same(packed: Path) -> None:
    assert READERS["reference"](packed) == READERS["product"](packed)


def test_pieces_of_one_row_come_back(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spqfmt.schemes.tiles.TILE_ELEMENTS", 13)
    monkeypatch.setattr("spqfmt.schemes.trellis._AT_ONCE", 50)
    with Reader(packed) as reader:
        for name in ("plain", "classes", "order", "stack"):
            record, expected = reader.index.by_name[name], MADE[name].dequantize()
            assert np.array_equal(reader.read_rows(record, 0, ROWS), expected)
            out = np.empty((30, 11), np.float32)
            reader.restore(record, range(20, 50), range(6, 17), out, "f32")
            assert np.array_equal(out, expected[20:50, 6:17])


def test_codes_that_are_no_path_are_not_written() -> None:
    for change in (
        {"layout": Layout("columns")},
        {"code_dtype": "i4"},
        {"trellis_rows": 0},
        {"trellis_rows": 15},
    ):
        form = {field: getattr(MADE["plain"], field) for field in MADE["plain"].__dataclass_fields__}
        with pytest.raises(ValueError, match="trellis"):
            Uniform(**{**form, **change}).encode()


@pytest.mark.parametrize("shape", [(0, 6), (6, 0)])
def test_what_is_empty_has_no_trellis(shape: tuple[int, int]) -> None:
    empty = Uniform(codes=np.zeros(shape, np.int8), step=np.float32(1), trellis_rows=4)
    assert "trellis" not in empty.encode().parameters
    assert list(tiles_of(4, 0, None).pieces(range(0))) == []


def test_other_classes_are_another_tensor(tmp_path: Path, packed: Path) -> None:
    """The same path codes in the same order are other codes where tiles begin elsewhere."""
    layout = Layout("rows", ORDER, (20, 33, 7))
    codes = a_path(layout, 8, ROWS, COLUMNS, ROWS, 1)
    assert not np.array_equal(codes, MADE["classes"].codes)
    form = {field: getattr(MADE["classes"], field) for field in MADE["classes"].__dataclass_fields__}
    other = Uniform(**{**form, "codes": codes, "layout": layout})
    streams = [made.encode().streams[0].elements for made in (other, MADE["classes"])]
    assert np.array_equal(*streams)
    out = store(tmp_path / "other.spq", {"classes": other})
    [found] = [t for t in diff_files(packed, out).tensors if t.name == "classes"]
    assert found.difference == "weights"


def test_repacked_it_is_the_same(tmp_path: Path, packed: Path) -> None:
    for number, options in enumerate(({"codec": "zstd"}, {"partial": "every:2"}, {"codec": "raw"})):
        out = tmp_path / f"{number}.spq"
        spqfmt.repack(packed, out, **options)
        spqfmt.verify(out, content=True)
        assert diff_files(packed, out, error=True).equal


@pytest.mark.parametrize("of_columns", [False, True])
@pytest.mark.parametrize("name", ["plain", "one tile", "single rows", "classes", "order"])
def test_laid_for_ranks_paths_stay_whole(packed: Path, name: str, of_columns: bool) -> None:
    encoded = MADE[name].encode()
    with Reader(packed) as reader:
        laid = laid_for_ranks(reader.index.by_name[name], encoded, 3, of_columns=of_columns)
    assert (laid is encoded) == (of_columns or name in {"classes", "order"})
    if laid is not encoded:
        assert np.array_equal(laid.streams[0].elements, encoded.streams[0].elements)
        borders = np.cumsum([chunk.size for chunk in laid.streams[0].chunks()]) // COLUMNS
        unit = min(FORMS[name][1], ROWS)
        assert {20 // unit * unit, 40 // unit * unit} - {0} <= set(borders.tolist())
