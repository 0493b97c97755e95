"""The frozen files through the device kernels: matrices and dense tensors, bit for bit what the reader restores."""

from pathlib import Path

import numpy as np
import pytest
import torch
from staged import matrix_of, stage_part, unfold

from spqfmt import wire
from spqfmt.container.reader import Reader
from spqfmt.kernels.torch_arrays import TORCH_DTYPES, to_torch
from spqfmt.residency.parts import cut
from spqfmt.residency.sides import read_sides
from spqfmt.schemes.codes import by_columns

VECTORS = Path(__file__).resolve().parents[2] / "spec" / "vectors"


def quantized():
    for path in (*sorted(VECTORS.glob("valid/*.spq")), *sorted(VECTORS.glob("1.1/valid/*.spq"))):
        with Reader(path) as reader:
            for number, record in enumerate(reader.index.tensors):
                # The elements of a view, or of a transposed tensor, are given in the tensor's own order.
                is_plain = record.view is None and not record.transposed
                if record.scheme in ("uniform", "grouped") and is_plain:
                    yield pytest.param(path, number, id=f"{path.stem}-{record.name}")


def dense():
    for path in sorted(VECTORS.glob("valid/*.spq")):
        with Reader(path) as reader:
            for number, record in enumerate(reader.index.tensors):
                if record.scheme == "dense" and record.n_weights:
                    yield pytest.param(path, number, id=f"{path.stem}-{record.name}")


@pytest.mark.parametrize(("path", "number"), list(quantized()))
def test_a_matrix(kernels, path, number):
    with Reader(path) as reader:
        record = reader.index.tensors[number]
        sides = read_sides(reader, record)
        dtype = record.dtype if record.dtype != "f64" else "f32"
        expected = to_torch(reader.read_rows(record, dtype=dtype), dtype, record.matrix_shape)
        for part in cut(record):
            staged = stage_part(reader, part)
            codes = unfold(kernels, part, torch.from_numpy(staged.decode(kernels)))
            assert staged.error.item() == 0
            matrix = matrix_of(sides, part.dtype)
            channels = range(part.first, part.stop)
            rows, columns = record.matrix_shape
            shape = (rows, len(channels)) if by_columns(record) else (len(channels), columns)
            out = torch.empty(shape, dtype=TORCH_DTYPES[dtype])
            kernels.dequantize(codes, matrix, channels, out)
            assert same(out, _part_of(expected, sides, part))


def same(found, expected):
    """Whether all bits are alike, but for those of what is no number."""
    neither = found.isnan() & expected.isnan()
    bits = {4: torch.int32, 2: torch.int16}[found.element_size()]
    return torch.equal(found.view(bits)[~neither], expected.view(bits)[~neither])


def _part_of(expected, sides, part):
    """The channels of the part as they are stored; the kernels put permuted columns back themselves where they can."""
    channels = np.arange(part.first, part.stop)
    if sides.order is not None:
        channels = sides.order[channels]
    if not by_columns(sides.record):
        return expected[channels].contiguous()
    return expected[:, channels if sides.permutation is None else sides.permutation[channels]].contiguous()


@pytest.mark.parametrize(("path", "number"), list(dense()))
def test_a_dense_tensor(kernels, path, number):
    with Reader(path) as reader:
        record = reader.index.tensors[number]
        stored = reader.read_rows(record)
        expected = to_torch(stored, record.dtype, stored.shape).reshape(-1)
        at = 0
        for part in cut(record):
            planes = torch.from_numpy(stage_part(reader, part).decode(kernels))
            for merge, chunk in zip(part.merges, part.chunks, strict=True) if part.merges else ():
                out = torch.empty(chunk.n_elements, dtype=expected.dtype)
                here = planes[merge.scratch_offset : merge.scratch_offset + merge.n_bytes]
                rotated = wire.DTYPES[part.dtype].rotate
                kernels.merge_planes(here.view(-1, chunk.n_elements), out, rotated=rotated)
                part_of = expected[at : at + chunk.n_elements]
                assert torch.equal(out.view(torch.uint8), part_of.view(torch.uint8))
                at += chunk.n_elements
            if not part.merges:
                n = part.n_weights
                assert torch.equal(planes, expected[at : at + n].view(torch.uint8))
                at += n
        assert at == expected.numel()
