"""A server of a test module's folder."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from remote_server import Site, serving

from spqfmt.remote import blocks, web


@pytest.fixture
def site(packed: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """Serves the folder `packed`; a file has many blocks, and nobody waits long."""
    monkeypatch.setattr(blocks, "TAIL_BYTES", 4096)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 2048)
    monkeypatch.setattr(web, "_PAUSE_SECONDS", 0.001)
    with serving(packed) as site:
        yield site
