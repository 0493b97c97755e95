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


@pytest.mark.parametrize(("name", "on_device"), [("native", None), ("torch", "torch"), ("triton", "triton")])
def test_what_computes_on_a_device(monkeypatch, name, on_device):
    monkeypatch.setattr(backend, "find_spec", lambda package: object())
    with backend.use(name) as selected:
        assert selected.device_kernels == on_device
        assert not selected.device_zstd
        assert selected.kernels == native.available_kernels()[0]


def test_nvcomp_is_triton_with_zstd_on_the_device(monkeypatch):
    asked = []
    monkeypatch.setattr(backend, "find_spec", asked.append)
    with pytest.raises(BackendError, match="backend 'nvcomp' needs the package triton"):
        backend.use("nvcomp").__enter__()
    monkeypatch.setattr(backend, "find_spec", lambda package: asked.append(package) or object())
    with backend.use("nvcomp") as selected:
        assert (backend.backend(), selected.device_kernels, selected.device_zstd) == (
            "nvcomp",
            "triton",
            True,
        )
    assert asked == ["triton", "triton", "nvidia.nvcomp"]


@pytest.mark.parametrize("package", ["triton", "nvidia.nvcomp"])
def test_a_missing_package_is_named(monkeypatch, package):
    def find(name):
        if name == package:
            raise ModuleNotFoundError(name)
        return object()

    monkeypatch.setattr(backend, "find_spec", find)
    name = "triton" if package == "triton" else "nvcomp"
    with (
        pytest.raises(BackendError, match=f"backend '{name}' needs the package {package}"),
        backend.use(name),
    ):
        pass


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
