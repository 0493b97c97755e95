"""Which kernels compute on which device."""

import os

import pytest
import torch

from spqfmt.errors import BackendError
from spqfmt.kernels import backend
from spqfmt.kernels.choose import kernels_for

CPU, GPU = torch.device("cpu"), torch.device("cuda")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def test_the_twins_run_where_nobody_asks_for_more():
    assert kernels_for(CPU).name == "torch"


def test_a_gpu_gets_triton():
    pytest.importorskip("triton")
    assert kernels_for(GPU).name == "triton"


def test_the_backend_decides_for_every_device():
    with backend.use("torch"):
        assert kernels_for(GPU).name == "torch"
        assert kernels_for(CPU).name == "torch"


def test_an_unknown_name_is_an_error():
    with pytest.raises(BackendError, match="unknown kernels 'abacus'"):
        kernels_for(CPU, "abacus")


def test_triton_needs_a_gpu_or_its_interpreter():
    pytest.importorskip("triton")
    if INTERPRETED:
        assert kernels_for(CPU, "triton").name == "triton"
    else:
        with pytest.raises(BackendError, match="needs a GPU, not cpu"):
            kernels_for(CPU, "triton")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "spqfmt.kernels.triton.kernels", None)
    with pytest.raises(BackendError, match="backend 'triton' needs triton"):
        kernels_for(GPU, "triton")
