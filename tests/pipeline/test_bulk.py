"""Whole streams into the caller's memory, from valid and damaged files."""

from pathlib import Path

import numpy as np
import pytest

from spqfmt import wire
from spqfmt.codecs.elements import to_planes
from spqfmt.container.bulk import WantedStream, read_streams
from spqfmt.container.reader import Reader
from spqfmt.errors import ChecksumError
from spqfmt.records import Stream, TensorRecord

VECTORS = sorted((Path(__file__).parents[2] / "spec/vectors/valid").glob("*.spq"))


def own_streams(reader: Reader) -> list[tuple[TensorRecord, Stream]]:
    return [(t, s) for t in reader.index.tensors for s in t.streams if s.same_as is None]


def first_with_chunks() -> Path:
    for path in VECTORS:
        with Reader(path) as reader:
            if any(stream.chunks for _, stream in own_streams(reader)):
                return path
    raise AssertionError("no vector has chunks")


def wanted(reader: Reader) -> list[WantedStream]:
    return [
        WantedStream(f"{t.name}/{s.role}", s, np.empty(s.raw_bytes, np.uint8)) for t, s in own_streams(reader)
    ]


@pytest.mark.parametrize("path", VECTORS, ids=lambda path: path.stem)
def test_streams_are_the_elements_that_one_by_one_reading_gives(path: Path) -> None:
    with Reader(path) as reader:
        got = wanted(reader)
        read_streams(reader, got)
        for (record, stream), w in zip(own_streams(reader), got, strict=True):
            elements = reader.read_elements(record, stream.role)
            narrow = wire.DTYPES[stream.dtype].bits < 8
            whole = to_planes(elements, stream.dtype)[0] if narrow else elements.view(np.uint8)
            assert np.array_equal(w.out, whole)


def test_a_damaged_chunk_is_named_and_nothing_else_is_raised(tmp_path: Path) -> None:
    path = first_with_chunks()
    with Reader(path) as reader:
        record, stream = next((t, s) for t, s in own_streams(reader) if s.chunks)
        plane = stream.chunks[-1].planes[-1]
    data = bytearray(path.read_bytes())
    data[plane.offset + plane.stored_bytes - 1] ^= 1
    damaged = tmp_path / "damaged.spq"
    damaged.write_bytes(data)
    with Reader(damaged) as reader, pytest.raises(ChecksumError, match=r"damaged\.spq") as caught:
        read_streams(reader, wanted(reader))
    assert f"{record.name}/{stream.role}" in str(caught.value)


def test_memory_of_another_size_is_refused() -> None:
    with Reader(first_with_chunks()) as reader:
        record, stream = next((t, s) for t, s in own_streams(reader) if s.chunks)
        with pytest.raises(ValueError, match="takes"):
            read_streams(
                reader, [WantedStream(record.name, stream, np.empty(stream.raw_bytes + 1, np.uint8))]
            )
