"""Memory of the system: zero, of its own, in large pages where they are wanted, and not a byte more than wanted."""

import mmap
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from spqfmt.kernels import pages

ALLOCATE = [pages.allocate, pages.allocate_large]


@pytest.mark.parametrize("allocate", ALLOCATE)
@pytest.mark.parametrize("n_bytes", [0, 1, 4096, (2 << 20) - 1, (5 << 20) + 3])
def test_zero_and_apart(allocate: Callable[[int], np.ndarray], n_bytes: int) -> None:
    one, other = allocate(n_bytes), allocate(n_bytes)
    assert one.dtype == np.uint8
    assert one.shape == (n_bytes,)
    assert not one.any()
    one[:] = 255
    assert not other.any()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux says how memory is mapped")
def test_large_pages_are_asked_for_where_they_are_wanted() -> None:
    large, small = pages.allocate_large(6 << 20), pages.allocate(6 << 20)
    assert "hg" not in _flags_at(small.ctypes.data)
    if not Path("/sys/kernel/mm/transparent_hugepage").exists():
        pytest.skip("a kernel without large pages")
    assert "hg" in _flags_at(large.ctypes.data)


def test_a_system_without_large_pages_gives_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    assert pages.allocate_large(6 << 20).size == 6 << 20


def _flags_at(address: int) -> list[str]:
    """The kernel's flags of the mapping that holds an address."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(found[1], 16) <= address < int(found[2], 16)
        elif inside and line.startswith("VmFlags:"):
            return line.split()[1:]
    raise AssertionError("no mapping holds the address")
