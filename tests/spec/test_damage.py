"""Every prefix and flipped bits of each valid vector, under both readers: an error of ours, or the very same content.

A plain run flips one bit of a byte, a different one from byte to byte: in every byte under the reference decoder, in
some thousand of a file under the product, which opens it anew each time. SPQFMT_ALL_FLIPS=1 flips all eight bits
of every byte under both (ten minutes).
"""

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from spec_support import READERS, VALID, VECTORS, Content, RefusedError


def check(read: Callable[[Path], Content], path: Path, content: Content, what: str) -> None:
    """Read a damaged file; only an error of ours or the content of the whole file passes."""
    try:
        damaged = read(path)
    except RefusedError:
        return
    assert damaged == content, f"{what}: other content, and no error"


@pytest.fixture(params=sorted(READERS))
def read(request):
    return READERS[request.param]


@pytest.mark.parametrize("name", sorted(VALID))
def test_every_prefix(read, name, tmp_path):
    whole = VECTORS / "valid" / f"{name}.spq"
    path = tmp_path / "cut.spq"
    path.write_bytes(whole.read_bytes())
    for n_bytes in reversed(range(VALID[name]["file_bytes"])):
        os.truncate(path, n_bytes)
        with pytest.raises(RefusedError) as refused:
            read(path)
        assert refused.value.kind == ("not spq" if n_bytes < 8 else "truncated"), n_bytes


def flip(
    read: Callable[[Path], Content], name: str, path: Path, bits_of: Callable[[int], Iterable[int]]
) -> None:
    """Flip single bits of a vector, one at a time."""
    whole = (VECTORS / "valid" / f"{name}.spq").read_bytes()
    path.write_bytes(whole)
    content = read(path)
    with path.open("r+b", buffering=0) as file:
        for offset, byte in enumerate(whole):
            for bit in bits_of(offset):
                os.pwrite(file.fileno(), bytes([byte ^ 1 << bit]), offset)
                check(read, path, content, f"byte {offset}, bit {bit}")
            os.pwrite(file.fileno(), bytes([byte]), offset)


@pytest.mark.parametrize("name", sorted(VALID))
def test_one_flipped_bit_in_a_byte(read, name, tmp_path):
    every = 1 if read is READERS["reference"] else VALID[name]["file_bytes"] // 2000 + 1
    flip(read, name, tmp_path / "flipped.spq", lambda offset: [offset * 5 % 8] if offset % every == 0 else [])


@pytest.mark.slow
@pytest.mark.skipif("SPQFMT_ALL_FLIPS" not in os.environ, reason="ten minutes; set SPQFMT_ALL_FLIPS=1")
@pytest.mark.parametrize("name", sorted(VALID))
def test_every_flipped_bit(read, name, tmp_path):
    flip(read, name, tmp_path / "flipped.spq", lambda _: range(8))
