"""The folder that keeps blocks of remote files: what is fetched again, what is not, and what goes."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
import torch
from remote_server import Site, serving
from spq_command import run

import spqfmt
from spqfmt.remote import blocks, cache
from spqfmt.remote.cache import Cache

BLOCK = 2048


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one model, `m.spq`."""
    folder = tmp_path_factory.mktemp("served")
    with tiny.quiet():
        tiny.build("llama_tied", folder / "source")
        spqfmt.pack(folder / "source", folder / "m.spq", method="rtn", bits=8)
    return folder


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder, in force."""
    monkeypatch.setenv(cache.FOLDER, str(tmp_path / "kept"))
    return tmp_path / "kept"


@pytest.fixture
def site(packed: Path, kept: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A server of the model, which has many blocks; every read of any size is of blocks."""
    monkeypatch.setattr(blocks, "TAIL_BYTES", 4096)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", BLOCK)
    with serving(packed) as site:
        yield site


def weights(path: str | Path) -> dict[str, torch.Tensor]:
    with spqfmt.open(path) as file:
        return {name: file.read(name) for name in file}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def test_blocks_are_fetched_once(packed: Path, kept: Path, site: Site) -> None:
    expected = weights(packed / "m.spq")
    assert same(weights(f"{site.url}/m.spq"), expected)
    n_first = len(site.requests)
    assert len(list(kept.iterdir())) > 20
    site.requests.clear()
    assert same(weights(f"{site.url}/m.spq"), expected)
    assert len(site.requests) < n_first / 4
    # Others cannot look into it, and nothing but the blocks is there.
    assert kept.stat().st_mode & 0o077 == 0
    assert {path.suffix for path in kept.iterdir()} == {".block"}


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty"])
def test_damaged_blocks_are_fetched_again(packed: Path, kept: Path, site: Site, damage: str) -> None:
    expected = weights(packed / "m.spq")
    weights(f"{site.url}/m.spq")
    for path in kept.iterdir():
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes({"flipped": bytes(data), "cut": bytes(data[:-9]), "empty": b""}[damage])
    site.requests.clear()
    assert same(weights(f"{site.url}/m.spq"), expected)
    assert len(site.requests) > 20
    assert same(weights(f"{site.url}/m.spq"), expected)


@pytest.mark.parametrize("with_mark", [True, False])
def test_a_file_that_has_changed_is_another_one(
    packed: Path, kept: Path, site: Site, tmp_path: Path, *, with_mark: bool
) -> None:
    """Without an ETag or date nothing is kept: nothing would tell one file from the next."""
    with tiny.quiet():
        tiny.build("llama_tied", tmp_path / "source", seed=5)
        spqfmt.pack(tmp_path / "source", tmp_path / "other.spq", method="rtn", bits=8)
    site.folder, site.with_mark = tmp_path, with_mark
    for name in (packed / "m.spq", tmp_path / "other.spq"):
        (tmp_path / "m.spq").write_bytes(name.read_bytes())
        assert same(weights(f"{site.url}/m.spq"), weights(name))
    assert any(kept.iterdir()) == with_mark


def test_what_was_used_longest_ago_goes(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_LEAST_BYTES", 0)
    monkeypatch.setenv(cache.SIZE, f"{32 * BLOCK}")
    keeping = Cache.of_environment()
    assert keeping is not None
    file = keeping.of_file("a", "tag", 1 << 30, BLOCK)
    mine = kept / "mine.txt"
    mine.write_text("of somebody else")
    for number in range(100):
        file.put(number, bytes([number]) * BLOCK)
        assert file.get(0, BLOCK) == bytes(BLOCK), number
        for age, path in enumerate(sorted(kept.glob("*.block"), reverse=True)):
            # Clocks of file systems are too coarse for a test; the first is the one that was read just now.
            when = 2e9 if path.name.endswith("-00000000.block") else 1e9 - age
            os.utime(path, (when, when))
        held = sum(path.stat().st_size for path in kept.glob("*.block"))
        assert held <= 32 * BLOCK, number
    assert held > 24 * BLOCK
    assert file.get(99, BLOCK) == bytes([99]) * BLOCK
    assert file.get(50, BLOCK) is None
    assert mine.exists()


def test_several_use_one_folder_at_once(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is got is what was put, whoever removes or replaces it meanwhile."""
    monkeypatch.setattr(cache, "_LEAST_BYTES", 0)
    monkeypatch.setenv(cache.SIZE, f"{16 * BLOCK}")
    wrong: list[int] = []

    def go(seed: int) -> None:
        keeping = Cache.of_environment()
        assert keeping is not None
        file = keeping.of_file("a", "tag", 1 << 30, BLOCK)
        for turn in range(150):
            number = (turn * 7 + seed) % 40
            found = file.get(number, BLOCK)
            if found is None:
                file.put(number, bytes([number]) * BLOCK)
            elif found != bytes([number]) * BLOCK:
                wrong.append(number)
        assert keeping._takes

    threads = [threading.Thread(target=go, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    held = sum(path.stat().st_size for path in kept.iterdir())
    assert held <= 16 * BLOCK * (1 + 4 / 16) + 4 * BLOCK


def test_a_full_disk_is_no_error(
    packed: Path, kept: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    assert same(weights(f"{site.url}/m.spq"), weights(packed / "m.spq"))
    assert list(kept.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({cache.SIZE: "lots"}, "SPQFMT_CACHE_SIZE: 'lots' is not a size"),
        ({cache.SIZE: "1MiB"}, "1MiB is too little, give at least 16MiB"),
        ({cache.FOLDER: "/dev/null/x"}, "SPQFMT_CACHE: /dev/null/x: no folder can be there"),
    ],
)
def test_settings_that_are_none_are_wrong_use(
    site: Site, monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], said: str
) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    done = run("inspect", f"{site.url}/m.spq")
    assert (done.code, done.stderr.count("\n")) == (2, 1)
    assert said in done.stderr
