"""A driver is used for products after it has made some right ones."""

import ctypes

import pytest
import torch
from emulated import EmulatedDriver

from spqfmt.errors import BackendError
from spqfmt.kernels.cuda import trial
from spqfmt.kernels.cuda.driver import Driver, Launch

CPU = torch.device("cpu")


class _Anywhere:
    """The emulator, with all memory given; `wrong`: what is launched does nothing."""

    def __init__(self, driver: EmulatedDriver, *, wrong: bool) -> None:
        driver.give_all()
        self._driver, self._wrong = driver, wrong

    def prepare(self, name: str, programs: int, threads: int, arguments: ctypes.Structure) -> Launch:
        launch = self._driver.prepare(name, programs, threads, arguments)
        return (lambda: None) if self._wrong else launch


@pytest.mark.parametrize("wrong", [False, True])
def test_a_driver_that_multiplies_wrong_is_found(driver: EmulatedDriver, wrong: bool) -> None:
    assert trial.multiplies_right(_Anywhere(driver, wrong=wrong), CPU) is not wrong


def test_a_driver_that_fails_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: torch.device) -> Driver:
        raise BackendError("no driver of CUDA: not here")

    monkeypatch.setattr(trial, "cuda_driver", refuse)
    trial.trusted_driver.cache_clear()
    with pytest.warns(
        UserWarning, match="not used on cuda, where codes are decoded first: no driver of CUDA: not"
    ):
        assert trial.trusted_driver(torch.device("cuda")) is None
    trial.trusted_driver.cache_clear()


def test_there_is_none_for_what_is_not_cuda() -> None:
    assert trial.trusted_driver(CPU) is None
