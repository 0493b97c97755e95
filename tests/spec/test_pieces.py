"""Large tensors and chunks are read in pieces; here the pieces are so small that the vectors take many."""

import random

import numpy as np
import pytest
from spec_support import INVALID, READERS, VALID, VECTORS, RefusedError

from spqfmt.container import fetch
from spqfmt.container.fetch import OpenChunk, StreamFetch
from spqfmt.container.reader import Reader
from spqfmt.reading import rows
from spqfmt.reading.diff import diff_files
from spqfmt.reading.measure import histogram, outlier_map
from spqfmt.reading.rows import blocks, read_part, read_tensor, rows_and_columns
from spqfmt.schemes import codes, outliers, tiles


def shrink(monkeypatch, seed):
    generator = random.Random(seed)
    monkeypatch.setattr(fetch, "_WHOLE_BYTES", 0 if seed % 2 else 100)
    monkeypatch.setattr(fetch, "_PIECE_BYTES", generator.randint(8, 200))
    monkeypatch.setattr(tiles, "TILE_ELEMENTS", generator.randint(8, 150))
    monkeypatch.setattr(tiles, "_UNIT_ELEMENTS", generator.choice([1, 5, 1000]))
    monkeypatch.setattr(codes, "_SEEN_AT_ONCE", generator.randint(1, 20))
    monkeypatch.setattr(outliers, "_GAPS_AT_ONCE", generator.randint(1, 5))
    monkeypatch.setattr(rows, "_BLOCK_WEIGHTS", generator.randint(1, 60))


@pytest.fixture(params=range(6))
def small(request, monkeypatch):
    shrink(monkeypatch, request.param)
    return random.Random(request.param)


@pytest.mark.parametrize("name", sorted(VALID))
def test_a_whole_file_in_small_pieces(small, name):
    path = VECTORS / "valid" / f"{name}.spq"
    assert READERS["product"](path) == READERS["reference"](path)


@pytest.mark.parametrize("name", sorted(VALID))
def test_parts_of_tensors(small, name):
    with Reader(VECTORS / "valid" / f"{name}.spq") as reader:
        for record in reader.index.tensors:
            all_rows, all_columns = rows_and_columns(record)
            whole = read_tensor(reader, record).reshape(len(all_rows), len(all_columns))
            for _ in range(8):
                a, b = (sorted(small.choices(range(len(some) + 1), k=2)) for some in (all_rows, all_columns))
                part = read_part(reader, record, range(*a), range(*b))
                assert part.tobytes() == whole[slice(*a), slice(*b)].tobytes(), (record.name, a, b)
            seen = np.zeros(whole.shape, int)
            for some_rows, some_columns in blocks(record) if record.tied_to is None else ():
                seen[some_rows.start : some_rows.stop, some_columns.start : some_columns.stop] += 1
            assert record.tied_to is not None or (seen == 1).all()


@pytest.mark.parametrize("name", sorted(INVALID))
@pytest.mark.parametrize("seed", [0, 1])
def test_what_is_wrong_is_found_in_small_pieces_too(monkeypatch, seed, name):
    shrink(monkeypatch, seed)
    with pytest.raises(RefusedError) as refused:
        READERS["product"](VECTORS / "invalid" / f"{name}.spq")
    assert refused.value.kind == INVALID[name]["kind"], str(refused.value)


@pytest.mark.parametrize("name", sorted(VALID))
def test_what_inspect_measures(monkeypatch, name):
    def measured():
        with Reader(VECTORS / "valid" / f"{name}.spq") as reader:
            return [
                (histogram(reader, record), outlier_map(reader, record))
                for record in reader.index.tensors
                if record.tied_to is None
            ]

    before = measured()
    for seed in range(4):
        shrink(monkeypatch, seed)
        assert measured() == before


@pytest.mark.parametrize("name", sorted(VALID))
def test_files_compared_in_small_pieces(small, name):
    path = VECTORS / "valid" / f"{name}.spq"
    assert diff_files(path, path, error=True).equal


@pytest.mark.parametrize("name", sorted(VALID))
def test_elements_of_streams(small, name):
    with Reader(VECTORS / "valid" / f"{name}.spq") as reader:
        for record in reader.index.tensors:
            for stream in record.streams:
                read, owner = StreamFetch(reader, record), reader.owner(stream)
                whole = read(stream.role)
                first, stop = sorted(small.choices(range(owner.n + 1), k=2))
                assert read(stream.role, first, stop).tobytes() == whole[first:stop].tobytes()
                assert b"".join(part.tobytes() * n for part, n in read.runs(stream.role)) == whole.tobytes()
                for chunk in owner.chunks.held:
                    last = np.empty(1, whole.dtype)
                    OpenChunk(reader, chunk, stream.dtype).read(chunk.n_elements - 1, last)
                    assert last.tobytes() == whole[chunk.first + chunk.n_elements - 1 :][:1].tobytes()
