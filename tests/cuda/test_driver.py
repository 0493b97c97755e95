"""What CudaDriver gives to NVIDIA's library: held against one that writes down what it is given."""

import ctypes
import subprocess
from typing import Any

import pytest
import torch
from emulated import compiler

from spqfmt.errors import BackendError
from spqfmt.kernels.cuda import trial
from spqfmt.kernels.cuda.driver import CudaDriver, cuda_driver
from spqfmt.kernels.cuda.launches import NAMES

STREAM = 0x7FFE_DCBA_9876_5432
FUNCTION = 0x7FFE_0000_0000_0020
SOURCE = r"""
#include <cstdint>
#include <cstring>
extern "C" {
int refuses_image, refuses_launch;
uint64_t seen[11];
static char image[1 << 20];

int cuModuleLoadData(void **module, const char *text) {
  strncpy(image, text, sizeof image - 1);
  *module = reinterpret_cast<void *>(0x7ffe000000000010);
  return refuses_image;
}

int cuModuleGetFunction(void **function, void *module, const char *name) {
  char entry[99] = ".entry ";
  strcat(strcat(entry, name), "(");
  *function = reinterpret_cast<void *>(0x7ffe000000000020);
  return module == reinterpret_cast<void *>(0x7ffe000000000010) && strstr(image, entry) ? 0 : 500;
}

int cuLaunchKernel(void *function, unsigned x, unsigned y, unsigned z, unsigned tx, unsigned ty, unsigned tz,
                   unsigned shared, void *stream, uint64_t **arguments, void *extra) {
  const uint64_t all[] = {reinterpret_cast<uint64_t>(function), x, y, z, tx, ty, tz, shared,
                          reinterpret_cast<uint64_t>(stream), *arguments[0], reinterpret_cast<uint64_t>(extra)};
  memcpy(seen, all, sizeof seen);
  return refuses_launch;
}

int cuGetErrorName(int code, const char **name) {
  *name = code == 222 ? "CUDA_ERROR_UNSUPPORTED_PTX_VERSION" : "CUDA_ERROR_OTHER";
  return 0;
}
}
"""


class Arguments(ctypes.Structure):
    _fields_ = (("first", ctypes.c_uint64),)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Any:
    found = compiler()
    if found is None:
        pytest.skip("there is no compiler of C++")
    path = tmp_path_factory.mktemp("cuda") / "libcuda.so.1"
    command = [found, "-shared", "-fPIC", "-x", "c++", "-o", str(path), "-"]
    subprocess.run(command, input=SOURCE, text=True, check=True, timeout=60)
    return ctypes.CDLL(str(path))


@pytest.fixture
def device(library: Any, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    monkeypatch.setattr("spqfmt.kernels.cuda.driver.ctypes.CDLL", lambda _: library)
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda number: STREAM + number, raising=False)
    refuse(library, image=0, launch=0)
    return torch.device("cuda", 3)


def refuse(library: Any, *, image: int, launch: int) -> None:
    ctypes.c_int.in_dll(library, "refuses_image").value = image
    ctypes.c_int.in_dll(library, "refuses_launch").value = launch


def test_every_kernel_is_found_and_launched_as_it_was_asked_for(library: Any, device: torch.device) -> None:
    driver = CudaDriver(device)
    arguments = Arguments(1)
    launches = [driver.prepare(name, (1 << 31) - 1, 512, arguments) for name in NAMES]
    arguments.first = 0xFEDC_BA98_7654_3210
    launches[-1]()
    seen = list((ctypes.c_uint64 * 11).in_dll(library, "seen"))
    assert seen == [FUNCTION, (1 << 31) - 1, 1, 1, 512, 1, 1, 0, STREAM + 3, 0xFEDC_BA98_7654_3210, 0]
    with pytest.raises(BackendError, match=r"finding nothing: CUDA_ERROR_OTHER \(500\)"):
        driver.prepare("nothing", 1, 1, arguments)


def test_what_a_launch_refuses_is_said(library: Any, device: torch.device) -> None:
    launch = CudaDriver(device).prepare("finish", 1, 32, Arguments(0))
    refuse(library, image=0, launch=701)
    with pytest.raises(BackendError, match=r"finish: CUDA_ERROR_OTHER \(701\)"):
        launch()


def test_a_thread_that_has_no_context_gets_one(
    library: Any, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch = CudaDriver(device).prepare("finish", 1, 32, Arguments(7))
    waited: list[int] = []

    def synchronize(number: int) -> None:
        waited.append(number)
        refuse(library, image=0, launch=0)

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    refuse(library, image=0, launch=201)
    launch()
    launch()
    assert waited == [3]


def test_a_driver_that_is_too_old_for_the_kernels_is_not_used(library: Any, device: torch.device) -> None:
    refuse(library, image=222, launch=0)
    for cached in (cuda_driver, trial.trusted_driver):
        cached.cache_clear()
    with pytest.warns(UserWarning, match=r"decoded first: .*CUDA_ERROR_UNSUPPORTED_PTX_VERSION \(222\)"):
        assert trial.trusted_driver(device) is None
    for cached in (cuda_driver, trial.trusted_driver):
        cached.cache_clear()
