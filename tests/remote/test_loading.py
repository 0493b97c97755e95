"""What loading a model and its passes fetch of a file at an address, counted by the server."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from numpy.typing import NDArray
from remote_server import Site

import spqfmt
from spqfmt.errors import RemoteError
from spqfmt.remote import cache, expected, web

PROMPT = torch.tensor([[1, 2, 3]])


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model that has tied embeddings, and with one of experts."""
    folder = tmp_path_factory.mktemp("served")
    with tiny.quiet():
        for family in ("llama_tied", "mixtral"):
            tiny.build(family, folder / family)
            spqfmt.pack(folder / family, folder / f"{family}.spq", method="rtn", bits=8)
    return folder


def fetched(site: Site, size: int) -> NDArray[np.int64]:
    """How often each byte was asked for; waits until nothing more is."""
    n, since = -1, time.monotonic()
    while n != len(site.requests) or time.monotonic() - since < 0.7:
        if n != len(site.requests):
            n, since = len(site.requests), time.monotonic()
        time.sleep(0.05)
    counts = np.zeros(size, np.int64)
    for asked in site.requests:
        begin, _, end = asked.removeprefix("bytes=").partition("-")
        counts[slice(-int(end), None) if not begin else slice(int(begin), int(end) + 1)] += 1
    return counts


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(input_ids=PROMPT).logits
    return found


@pytest.mark.parametrize("ahead", [expected.AHEAD_BYTES, 3000])
@pytest.mark.parametrize("options", [{"packed": False}, {"packed": True}, {"memory": "220KiB"}], ids=str)
def test_loading_fetches_each_byte_once_and_a_pass_what_is_on_disk(
    packed: Path, site: Site, options: dict[str, Any], ahead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expected, "AHEAD_BYTES", ahead)
    file = packed / "llama_tied.spq"
    model, _ = spqfmt.load_model(f"{site.url}/{file.name}", **options)
    size = file.stat().st_size
    loaded = fetched(site, size)
    assert loaded.max() == 1
    here, _ = spqfmt.load_model(file, **options)
    assert torch.equal(logits(model), logits(here))
    first = fetched(site, size)
    on_disk = 0
    if options.get("packed") is not False:
        plan = model.packed_weights.plan
        parts = [p.item.part for p in plan.parts if p.residency == "disk"]
        assert bool(parts) == ("memory" in options)
        on_disk = sum(part.stored_bytes for part in parts)
    # Behind the pass the ring has the first parts of the next one.
    again = int((first > 1).sum())
    assert again <= sum(sorted(part.stored_bytes for part in parts)[-3:]) if on_disk else again == 0
    logits(model)
    assert (fetched(site, size) - first).sum() == on_disk
    if options.get("packed") is not False:
        model.packed_weights.close()


def test_the_first_token_comes_before_the_file_is_through_where_not_all_is_needed(
    packed: Path, site: Site
) -> None:
    """A dense model's first token takes each weight once; of experts it takes those that are asked."""
    file = packed / "mixtral.spq"
    model, _ = spqfmt.load_model(f"{site.url}/{file.name}", memory="290KiB")
    with torch.inference_mode():
        model(input_ids=PROMPT[:, :1])
    counts = fetched(site, file.stat().st_size)
    model.packed_weights.close()
    assert (counts == 0).mean() > 0.2
    assert counts.sum() < counts.size


def test_what_is_announced_and_never_read_holds_nobody_up(packed: Path, site: Site) -> None:
    size = (packed / "llama_tied.spq").stat().st_size
    data = (packed / "llama_tied.spq").read_bytes()
    with spqfmt.open(f"{site.url}/llama_tied.spq") as file:
        remote = file.model.readers[0].remote
        assert remote is not None
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(expected, "AHEAD_BYTES", 4096)
            remote.expect([(at, at + 1024) for at in range(0, 65536, 2048)])
            out = np.empty(1024, np.uint8)
            for at in reversed(range(8192, 65536, 2048)):
                remote.read_into(at, out)
                assert out.tobytes() == data[at : at + 1024]
        assert fetched(site, size)[4096:65536].max() == 1
        # Twice, or across the border of what was announced: as any other bytes.
        for at in (8192, 9000):
            remote.read_into(at, out)
            assert out.tobytes() == data[at : at + 1024]


def test_what_goes_wrong_ahead_is_told_when_it_is_asked_for(packed: Path, site: Site) -> None:
    data = (packed / "llama_tied.spq").read_bytes()
    with spqfmt.open(f"{site.url}/llama_tied.spq") as file:
        remote = file.model.readers[0].remote
        assert remote is not None
        out = np.empty(1024, np.uint8)
        site.statuses = [404]
        remote.expect([(4096, 5120), (65536, 66560)])
        found = []
        for at in (4096, 65536):
            try:
                remote.read_into(at, out)
            except RemoteError as error:
                found.append(str(error))
                remote.read_into(at, out)
            assert out.tobytes() == data[at : at + 1024]
        assert len(found) == 1
        assert "answers 404" in found[0]


@pytest.mark.parametrize("drips_heads", [False, True])
def test_a_server_that_drips_is_left(
    packed: Path, site: Site, monkeypatch: pytest.MonkeyPatch, *, drips_heads: bool
) -> None:
    """Each read of a connection gets a byte in time, for hours."""
    monkeypatch.setattr(web, "WAIT_SECONDS", 0.2)
    with spqfmt.open(f"{site.url}/llama_tied.spq") as file:
        site.drip, site.drips_heads = 0.05, drips_heads
        began = time.monotonic()
        with pytest.raises(RemoteError, match="sends less than 4096 bytes a second"):
            file.model.readers[0].read_bytes(8192, 1024)
        assert time.monotonic() - began < 5


def test_what_is_said_beside_another_place_is_not_waited_for(packed: Path, site: Site) -> None:
    site.said_beside_place = 1 << 40
    began = time.monotonic()
    with spqfmt.open(f"{site.url}/moved/llama_tied.spq") as file:
        assert list(file)
    assert time.monotonic() - began < 5


def test_a_signed_address_is_one_file_of_the_cache_whoever_signed_it(
    packed: Path, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(cache.FOLDER, str(tmp_path / "kept"))
    address = f"{site.url}/llama_tied.spq"

    def n_asked(query: str) -> int:
        site.requests.clear()
        with spqfmt.open(address + query) as file:
            for name in file:
                file.read(name)
        return len(site.requests)

    first = n_asked("?X-Amz-Date=1&X-Amz-Signature=a")
    assert n_asked("?X-Amz-Date=2&X-Amz-Signature=b") < first / 4
    assert n_asked("?se=3&sp=r&sig=b") < first / 4
    # What may say which file it is stays.
    assert n_asked("?file=2&X-Amz-Signature=b") >= first
