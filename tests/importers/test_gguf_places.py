"""Where the tensors of a GGUF file lie: in any order, at multiples of the alignment, none in another's bytes."""

import struct
from pathlib import Path

import numpy as np
import pytest

from spqfmt.errors import ImporterError
from spqfmt.importers import open_source
from spqfmt.importers._gguf_reader import read_header
from spqfmt.importers._source_file import SourceFile


def placed(folder: Path, offsets: dict[str, int], *, alignment: int | None = None) -> Path:
    """A file whose tensors, rows of 8 numbers each, begin where `offsets` say; of the name "none" it has no row."""
    file = folder / "x.gguf"
    pairs = b"" if alignment is None else struct.pack("<Q17sII", 17, b"general.alignment", 4, alignment)
    data = b"GGUF" + struct.pack("<IQQ", 3, len(offsets), int(alignment is not None)) + pairs
    for name, offset in offsets.items():
        data += struct.pack("<Q4sIQQIQ", 4, name.encode(), 2, 8, int(name != "none"), 0, offset)
    data += bytes(-len(data) % (alignment or 32))
    file.write_bytes(data + np.arange(64, dtype="<f4").tobytes())
    return file


@pytest.mark.parametrize(
    ("offsets", "alignment", "message"),
    [
        ({"left": 0, "both": 0}, None, "tensors left and both overlap"),
        ({"left": 64, "both": 32, "last": 80}, 16, "tensors left and last overlap"),
        ({"left": 0, "last": 40}, None, "tensor last begins at 40, which is no multiple of 32"),
        ({"left": 0, "last": 48}, 24, "alignment 24, which is no power of two"),
        ({"left": 0, "last": 32}, 64, "tensor last begins at 32, which is no multiple of 64"),
    ],
)
def test_tensors_that_begin_at_a_wrong_place_are_refused(
    tmp_path: Path, offsets: dict[str, int], alignment: int | None, message: str
) -> None:
    file = placed(tmp_path, offsets, alignment=alignment)
    with pytest.raises(ImporterError) as caught:
        open_source(file)
    assert str(caught.value) == f"{file}: broken GGUF file ({message}); download it again"


@pytest.mark.parametrize(
    ("offsets", "alignment"),
    [({"left": 64, "last": 32, "none": 32}, None), ({"left": 40, "none": 8, "last": 0}, 8)],
)
def test_tensors_may_lie_in_any_order_and_those_of_no_bytes_anywhere(
    tmp_path: Path, offsets: dict[str, int], alignment: int | None
) -> None:
    file = SourceFile(placed(tmp_path, offsets, alignment=alignment))
    for tensor in read_header(file).tensors:
        found = np.frombuffer(file.read(tensor.offset, tensor.n_bytes), "<f4")
        first = offsets[tensor.name] // 4
        assert found.tolist() == list(range(first, first + (8 if tensor.name != "none" else 0)))
