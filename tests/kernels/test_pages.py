"""Memory of the system: zero, of its own, in large pages where there are some, and not a byte more than wanted."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from spqfmt.kernels import pages


@pytest.mark.parametrize("n_bytes", [0, 1, 4096, (2 << 20) - 1, (5 << 20) + 3])
def test_zero_and_apart(n_bytes: int) -> None:
    one, other = pages.allocate(n_bytes), pages.allocate(n_bytes)
    assert one.dtype == np.uint8
    assert one.shape == (n_bytes,)
    assert not one.any()
    one[:] = 255
    assert not other.any()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux says how memory is mapped")
@pytest.mark.parametrize(
    ("n_bytes", "small_seconds", "large"),
    [(2 << 20, 9.0, False), (6 << 20, 9.0, True), (6 << 20, 0.0, False)],
)
def test_large_pages_are_asked_for_as_long_as_they_come_fast(
    monkeypatch: pytest.MonkeyPatch, n_bytes: int, small_seconds: float, *, large: bool
) -> None:
    slow: list[float] = []
    monkeypatch.setattr(pages, "_slow", slow)
    monkeypatch.setattr(pages, "_small_seconds", lambda: small_seconds)
    memory = pages.allocate_large(n_bytes)
    flags = _flags_at(memory.ctypes.data)
    if "hg" not in flags and not Path("/sys/kernel/mm/transparent_hugepage").exists():
        pytest.skip("a kernel without large pages")
    assert ("hg" in flags) == large
    assert not memory.any()
    assert len(slow) == (small_seconds == 0.0)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux says how memory is mapped")
def test_after_some_slow_ones_no_large_page_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "_slow", [0.1] * pages._SLOW_AT_MOST)
    monkeypatch.setattr(pages, "_small_seconds", lambda: 9.0)
    assert "hg" not in _flags_at(pages.allocate_large(6 << 20).ctypes.data)


def test_small_pages_take_some_time() -> None:
    assert 0 < pages._small_seconds() < 1


def _flags_at(address: int) -> list[str]:
    """The kernel's flags of the mapping that holds an address."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(found[1], 16) <= address < int(found[2], 16)
        elif inside and line.startswith("VmFlags:"):
            return line.split()[1:]
    raise AssertionError("no mapping holds the address")
