"""The emulator finds what a GPU would hang at or leave undefined."""

import ctypes

import pytest
import torch
from emulated import EmulatedDriver


@pytest.mark.parametrize(
    ("kernel", "fault"),
    [
        ("barrier_without_one", "a barrier that a lane has not come to"),
        ("different_things", "lanes meet for different things"),
        ("warp_without_one", "lanes meet when one of their warp is gone"),
        ("waits_for_ever", "lanes wait for others that do not come"),
    ],
)
@pytest.mark.parametrize("seed", [1, 7])
def test_lanes_that_do_not_meet(driver: EmulatedDriver, kernel: str, fault: str, seed: int) -> None:
    driver.seed = seed
    with pytest.raises(RuntimeError, match=fault):
        driver.run(kernel, 1, 64, None)


def test_a_load_outside_of_what_was_given(driver: EmulatedDriver) -> None:
    memory = torch.zeros(2, dtype=torch.int32)
    pointer = ctypes.c_void_p(memory.data_ptr())
    driver.give([torch.frombuffer(pointer, dtype=torch.uint8), memory])
    driver.run("reads_outside", 1, 32, ctypes.addressof(pointer))
    driver.give([torch.frombuffer(pointer, dtype=torch.uint8), memory[:1]])
    with pytest.raises(RuntimeError, match="a load outside of the memory that was given"):
        driver.run("reads_outside", 1, 32, ctypes.addressof(pointer))
