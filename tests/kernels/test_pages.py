"""Memory of the system: zero, of its own, in large pages where there are some, and not a byte more than wanted."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from spqfmt.kernels.pages import allocate


@pytest.mark.parametrize("n_bytes", [0, 1, 4096, (2 << 20) - 1, (5 << 20) + 3])
def test_zero_and_apart(n_bytes: int) -> None:
    one, other = allocate(n_bytes), allocate(n_bytes)
    assert one.dtype == np.uint8
    assert one.shape == (n_bytes,)
    assert not one.any()
    one[:] = 255
    assert not other.any()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux says how memory is mapped")
@pytest.mark.parametrize(("n_bytes", "large"), [(1 << 20, False), (6 << 20, True)])
def test_large_memory_asks_for_large_pages(n_bytes: int, *, large: bool) -> None:
    memory = allocate(n_bytes)
    flags = _flags_at(memory.ctypes.data)
    if "hg" not in flags and not Path("/sys/kernel/mm/transparent_hugepage").exists():
        pytest.skip("a kernel without large pages")
    assert ("hg" in flags) == large


def _flags_at(address: int) -> list[str]:
    """The kernel's flags of the mapping that holds an address."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(found[1], 16) <= address < int(found[2], 16)
        elif inside and line.startswith("VmFlags:"):
            return line.split()[1:]
    raise AssertionError("no mapping holds the address")
