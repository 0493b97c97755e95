"""Choice of the backend, in processes of their own."""

import os
import subprocess
import sys

import pytest

from spqfmt.errors import BackendError
from spqfmt.kernels import backend, native


def run(code, name=None):
    environment = {k: v for k, v in os.environ.items() if k != backend.ENVIRONMENT_VARIABLE}
    if name is not None:
        environment[backend.ENVIRONMENT_VARIABLE] = name
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )


SHOW = "from spqfmt.kernels import backend, native; print(backend.backend(), native.active_kernels())"


@pytest.mark.parametrize("name", [None, "", "native"])
def test_the_default_is_the_best(name):
    best = native.available_kernels()[0]
    assert run(SHOW, name).stdout.split() == [best, best]


@pytest.mark.parametrize("name", native.available_kernels())
def test_a_native_backend_by_name(name):
    assert run(SHOW, name).stdout.split() == [name, name]


def test_torch_by_name():
    assert run(SHOW, "torch").stdout.split()[0] == "torch"


def test_an_unknown_name():
    result = run(SHOW, "abacus")
    assert result.returncode == 1
    assert "BackendError: unknown backend 'abacus'" in result.stderr


def test_one_that_this_machine_lacks(monkeypatch):
    monkeypatch.setattr(native, "available_kernels", lambda: ["scalar"])
    with pytest.raises(BackendError, match="cannot run on this machine"), backend.use("avx512"):
        pass


def test_use_restores_what_ran_before():
    before = backend.backend(), native.active_kernels()
    with backend.use("scalar"):
        assert (backend.backend(), native.active_kernels()) == ("scalar", "scalar")
    with pytest.raises(BackendError), backend.use("abacus"):
        pass
    assert (backend.backend(), native.active_kernels()) == before


def test_native_does_not_import_torch():
    code = "import sys, spqfmt.kernels.backend as b; b.current(); print('torch' in sys.modules)"
    assert run(code).stdout.strip() == "False"
