"""Rows of a tensor are those of the whole tensor, to the bit; and a bool that is none is refused on every way."""

import pytest
import torch
from spec_support import VALID, VECTORS
from spq_vectors import encode
from spq_vectors.build import File
from spq_vectors.valid import dense

import spqfmt
from spqfmt.errors import CorruptError, EncodeError
from spqfmt.importers.base import SourceModel, SourceTensor
from spqfmt.kernels.torch_arrays import to_numpy
from spqfmt.packing.options import pack_options
from spqfmt.packing.pack import pack_model
from spqfmt.progress import Silent
from spqfmt.reading.diff import diff_files
from spqfmt.reading.measure import measure_file
from spqfmt.reading.report import inspect_file


def bits(tensor):
    return tensor.shape, tensor.dtype, to_numpy(tensor).tobytes()


@pytest.mark.every_backend
@pytest.mark.parametrize("name", sorted(VALID))
def test_rows_are_those_of_the_whole_tensor(name):
    with spqfmt.open(VECTORS / "valid" / f"{name}.spq") as file:
        for tensor, handle in file.items():
            whole = handle.read()
            n = handle.shape[0] if handle.shape else 0
            for first, stop in {(0, n), (0, 1), (n // 2, n), (n // 3, n // 2 + 1), (n - 1, n), (n, n)}:
                rows = slice(max(0, first), max(0, stop))
                if handle.shape:
                    assert bits(handle.read(rows)) == bits(whole[rows].contiguous()), (tensor, rows)
                if handle.shape and whole.is_floating_point():
                    assert torch.equal(
                        handle.read(rows, torch.float32).nan_to_num(),
                        handle.read(dtype=torch.float32)[rows].nan_to_num(),
                    ), (tensor, rows)


ENCODERS = {"raw": encode.raw, "rans": encode.Rans(7), "constant": encode.constant, "zstd": encode.zstd}


@pytest.fixture(params=sorted(ENCODERS))
def no_bool(request, tmp_path):
    elements = [2] * 12 if request.param == "constant" else [0, 1, 1, 0, 1, 1, 0, 3, 1, 0, 0, 1]
    path = tmp_path / "bad.spq"
    mask = dense("mask", [6, 2], "bool", elements, encoders=[ENCODERS[request.param]])
    path.write_bytes(File([("all", [mask])]).build())
    return path


def read(path, rows=None):
    with spqfmt.open(path) as file:
        file.read("mask", rows)


def compared(path):
    good = path.with_name("good.spq")
    good.write_bytes(File([("all", [dense("mask", [6, 2], "bool", [1] * 12)])]).build())
    diff_files(good, path)


WAYS = {
    "verify": spqfmt.verify,
    "read": read,
    "rows": lambda path: read(path, slice(3, 4)),
    "unpack": lambda path: spqfmt.unpack(path, path.with_name("folder")),
    "measure": lambda path: measure_file(path, inspect_file(path)),
    "diff": compared,
}


@pytest.mark.parametrize("way", sorted(WAYS))
def test_a_bool_that_is_none_is_refused(no_bool, way):
    with pytest.raises(
        CorruptError, match=r"bad\.spq: tensor 'mask', values.*a bool is a byte other than 0 and 1"
    ):
        WAYS[way](no_bool)


def test_a_bool_that_is_none_is_not_packed(tmp_path):
    value = torch.tensor([0, 1, 2], dtype=torch.uint8).view(torch.bool)
    source = SourceTensor("mask", (3,), "bool", "all", "other", False, None, lambda: value)
    path = tmp_path / "out.spq"
    with pytest.raises(EncodeError, match="tensor 'mask'"):
        pack_model(SourceModel((source,), (), "", ""), path, pack_options(), force=False, progress=Silent())
    assert not path.exists()
