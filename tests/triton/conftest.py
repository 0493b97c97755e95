"""Device kernels against the native core: as plain torch, and as Triton where TRITON_INTERPRET=1 (see the Makefile)."""

import os

import pytest
import torch

from spqfmt.kernels.choose import kernels_for

NAME = "triton" if os.environ.get("TRITON_INTERPRET") == "1" else "torch"


def pytest_collection_modifyitems(items):
    # Overflow to infinity is what the format says; the interpreter computes with numpy, which warns of it.
    for item in items:
        item.add_marker(
            pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")
        )


@pytest.fixture(scope="session")
def kernels():
    return kernels_for(torch.device("cpu"), NAME)
