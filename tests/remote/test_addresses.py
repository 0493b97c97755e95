"""Files at an address: what is asked of a server, and what becomes of one that breaks, lies or changes its files."""

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from remote_server import Site, serving
from spq_command import run

import spqfmt
from spqfmt.address import Address
from spqfmt.container.model import open_model
from spqfmt.container.reader import Reader
from spqfmt.errors import ChecksumError, NotSpqError, OptionError, RemoteError
from spqfmt.remote import blocks, web


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one model as a file, `m.spq`, and in shards, `p.spq.index.json`."""
    folder = tmp_path_factory.mktemp("served")
    with tiny.quiet():
        tiny.build("llama_tied", folder / "source")
        spqfmt.pack(folder / "source", folder / "m.spq", method="rtn", bits=8)
        spqfmt.pack(folder / "source", folder / "p.spq", shard_size="60KiB")
    return folder


def weights(path: str | Path) -> dict[str, torch.Tensor]:
    with spqfmt.open(path) as file:
        return {name: file.read(name) for name in file}


def test_inspect_asks_for_the_end_the_beginning_and_the_config_alone(
    packed: Path, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = (packed / "m.spq").stat().st_size
    with Reader(packed / "m.spq") as reader:
        index_offset = reader.trailer.index_offset
    monkeypatch.setattr(blocks, "TAIL_BYTES", size - index_offset)
    there = run("inspect", f"{site.url}/m.spq", "--json")
    assert there.code == 0, there.stderr
    assert site.requests[:2] == [f"bytes=-{size - index_offset}", "bytes=0-63"]
    assert len(site.requests) <= 3
    here = run("inspect", packed / "m.spq", "--json")
    for key in ('"bits_per_weight"', '"entropy_bits_per_weight"', '"content"'):
        assert [part[:30] for part in there.stdout.split(key)[1:]] == [
            part[:30] for part in here.stdout.split(key)[1:]
        ]


@pytest.mark.parametrize("name", ["m.spq", "p.spq.index.json"])
def test_weights_are_those_of_the_file(packed: Path, site: Site, name: str) -> None:
    expected = weights(packed / name)
    found = weights(f"{site.url}/{name}")
    assert list(found) == list(expected)
    assert all(torch.equal(found[n], expected[n]) for n in expected)
    assert run("verify", f"{site.url}/{name}").code == 0


def test_reading_in_order_fetches_each_byte_once_and_rows_alone_only_theirs(packed: Path, site: Site) -> None:
    size = (packed / "m.spq").stat().st_size
    source = Reader(Address(f"{site.url}/m.spq"))
    with source:
        site.requests.clear()
        out = np.empty(512, np.uint8)
        data = (packed / "m.spq").read_bytes()
        for offset in range(1024, size - 512, 512):
            source.read_into(offset, out)
            assert out.tobytes() == data[offset : offset + 512]
        blocks_asked = [r for r in site.requests if r.endswith("2047") or r != "bytes=1024-1535"]
        assert len(set(blocks_asked)) == len(blocks_asked) <= size // 2048 + 1
        site.requests.clear()
    with Reader(Address(f"{site.url}/m.spq")) as source:
        site.requests.clear()
        source.read_into(50_000, out)
        assert site.requests == ["bytes=50000-50511"]


def test_the_model_runs_under_a_ceiling(packed: Path, site: Site) -> None:
    options = ["--prompt", "hello", "--raw", "--max-new-tokens", "6", "--memory", "220KiB", "--quiet"]
    there, here = run("run", f"{site.url}/m.spq", *options), run("run", packed / "m.spq", *options)
    assert (there.code, there.stdout) == (0, here.stdout), there.stderr
    assert run("plan", f"{site.url}/m.spq", "--memory", "220KiB").code == 0


def test_the_other_commands_take_addresses(packed: Path, site: Site, tmp_path: Path) -> None:
    """Each says what it says of the file here."""
    text = tmp_path / "text"
    text.write_text("hello world " * 12)
    for command in (
        "unpack {0} {out}",
        "diff {0} {0}",
        "repack {0} {out}.spq --codec zstd",
        "eval {0} --text {text}",
    ):
        said = []
        for number, file in enumerate((f"{site.url}/m.spq", packed / "m.spq")):
            out = tmp_path / f"{command[:4]}{number}"
            words = command.format(file, out=out, text=text).split()
            done = run(*words)
            assert done.code == 0, done.stderr
            said.append(done.stdout.replace(str(file), "FILE"))
        assert said[0] == said[1]
    for first, second in (("repa0.spq", "repa1.spq"), ("unpa0/model.safetensors", "unpa1/model.safetensors")):
        assert (tmp_path / first).read_bytes() == (tmp_path / second).read_bytes()


def test_verify_asks_for_blocks_and_not_for_the_gaps_between_chunks(packed: Path, site: Site) -> None:
    assert run("verify", f"{site.url}/m.spq").code == 0
    n_blocks = -(-(packed / "m.spq").stat().st_size // 2048)
    sizes = [
        int(end) - int(begin) + 1 for begin, end in (r[6:].split("-") for r in site.requests if r[6] != "-")
    ]
    assert len([size for size in sizes if size < 64]) <= 2
    assert len(sizes) <= n_blocks + 4


@pytest.mark.parametrize("after", [100, 1500])
def test_broken_connections_are_taken_up_where_they_broke(packed: Path, site: Site, after: int) -> None:
    site.breaks_after = after
    expected = weights(packed / "m.spq")
    found = weights(f"{site.url}/m.spq")
    assert all(torch.equal(found[n], expected[n]) for n in expected)
    begins = [int(r[6:].partition("-")[0]) for r in site.requests if not r.startswith("bytes=-")]
    assert any(begin % after == 0 and begin % 2048 for begin in begins)


def test_a_server_that_is_busy_is_asked_again_and_one_that_stays_so_is_named(site: Site) -> None:
    site.statuses = [503, 500, 429]
    assert run("verify", f"{site.url}/m.spq").code == 0
    site.statuses = [503] * 20
    done = run("verify", f"{site.url}/m.spq")
    assert done.code == 1
    assert f"{site.url}/m.spq: the server answers 503" in done.stderr
    assert len(site.statuses) == 20 - web.N_TRIES


def test_a_server_that_sends_nothing_for_long_is_left(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "WAIT_SECONDS", 0.1)
    monkeypatch.setattr(web, "N_TRIES", 2)
    site.breaks_after, site.stalls = 0, True
    with pytest.raises(RemoteError, match="does not answer, tried 2 times"):
        spqfmt.open(f"{site.url}/m.spq")


def test_nobody_there_is_said_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "_PAUSE_SECONDS", 0.001)
    done = run("inspect", "http://127.0.0.1:9/m.spq")
    assert done.code == 1
    assert done.stderr.startswith(
        "spqfmt: http://127.0.0.1:9/m.spq: the server does not answer, tried 5 times: Failed"
    )
    assert done.stderr.count("\n") == 1
    assert "host=" not in done.stderr


@pytest.mark.parametrize("with_mark", [True, False])
def test_a_file_that_changes_is_an_error(
    packed: Path, site: Site, tmp_path: Path, *, with_mark: bool
) -> None:
    site.folder, site.with_mark = tmp_path, with_mark
    shutil.copy(packed / "m.spq", tmp_path / "m.spq")
    with open_model(f"{site.url}/m.spq") as model:
        data = bytearray((tmp_path / "m.spq").read_bytes())
        # Of the same size where there is an ETag, of another one where there is none.
        data[5000] ^= 1
        (tmp_path / "m.spq").write_bytes(data if with_mark else bytes(data) + b"more")
        with pytest.raises(RemoteError, match="the file changed while it was read"):
            model.readers[0].read_bytes(4096, 100)


def test_without_a_mark_checksums_see_a_change(packed: Path, site: Site, tmp_path: Path) -> None:
    site.folder, site.with_mark = tmp_path, False
    data = bytearray((packed / "m.spq").read_bytes())
    (tmp_path / "m.spq").write_bytes(data)
    with spqfmt.open(f"{site.url}/m.spq") as file:
        name = next(iter(file))
        at = file.model.tensors[name].streams[0].chunks[0].planes[0].offset
        data[at + 8] ^= 0x40
        (tmp_path / "m.spq").write_bytes(data)
        with pytest.raises(ChecksumError, match=r"m\.spq: tensor"):
            file.read(name)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"with_ranges": False}, "the server sends whole files only, no ranges; download the file"),
        ({"shift": -8}, "the server sends"),
        ({"said_more": 100}, "the server sends"),
        ({"encoding": "gzip"}, "the server encodes the file's bytes"),
        ({"page": b"<!doctype html><p>Log in"}, "a web page, not the file itself; give its raw address"),
        ({"statuses": [404]}, "the server answers 404: there is no such file"),
        ({"statuses": [403]}, "the server answers 403: it refuses"),
        ({"statuses": [204]}, "the server answers 204"),
    ],
)
def test_lies_and_refusals_are_called_what_they_are(site: Site, fault: dict[str, object], said: str) -> None:
    for name, value in fault.items():
        setattr(site, name, value)
    done = run("inspect", f"{site.url}/m.spq")
    assert done.code == 1
    assert done.stderr.startswith(f"spqfmt: {site.url}/m.spq: ")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_lies_after_the_first_answer(packed: Path, site: Site) -> None:
    with open_model(f"{site.url}/m.spq") as model:
        for name, value, said in [
            ("shift", -8, "sends others"),
            ("said_more", 5, "changed while it was read"),
            ("with_ranges", False, "no ranges"),
        ]:
            setattr(site, name, value)
            with pytest.raises(RemoteError, match=said):
                model.readers[0].read_bytes(8192, 64)
            setattr(site, name, type(value)(0) if name != "with_ranges" else True)
        assert model.readers[0].read_bytes(8192, 64) == (packed / "m.spq").read_bytes()[8192:8256]


def test_other_files_and_empty_ones_are_told(site: Site, tmp_path: Path) -> None:
    site.folder = tmp_path
    (tmp_path / "empty.spq").write_bytes(b"")
    (tmp_path / "page.spq").write_bytes(b"<html>")
    (tmp_path / "text.spq").write_bytes(b"x" * 9000)
    for name in ("empty", "page", "text"):
        there, here = run("verify", f"{site.url}/{name}.spq"), run("verify", tmp_path / f"{name}.spq")
        assert there.code == here.code == 1
        assert there.stderr.partition("spq: ")[2] == here.stderr.partition("spq: ")[2]


def test_a_password_is_sent_and_not_shown(site: Site) -> None:
    address = site.url.replace("://", "://me:se%20cret@") + "/m.spq"
    done = run("verify", address)
    assert (done.code, "se" in done.stderr.partition("sound")[0].partition("@")[0]) == (0, False)
    assert site.headers[0]["authorization"] == "Basic bWU6c2UgY3JldA=="
    assert "secret" not in repr(Address(address)) + str(Address(address))


def test_what_was_closed_raises_and_a_model_at_an_address_is_not_saved(site: Site, tmp_path: Path) -> None:
    file = spqfmt.open(f"{site.url}/m.spq")
    file.close()
    with pytest.raises(ValueError, match="closed"):
        file.read(next(iter(file)))
    with tiny.quiet():
        model, _ = spqfmt.load_model(f"{site.url}/m.spq", packed=True)
    with pytest.raises(OptionError, match="a model at an address is not saved"):
        model.save_pretrained(tmp_path / "saved")
    model.packed_weights.close()


def test_fsspec_reads_what_it_knows(packed: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe("/models/m.spq", (packed / "m.spq").read_bytes())
    try:
        expected, found = weights(packed / "m.spq"), weights("memory://models/m.spq")
        assert all(torch.equal(found[n], expected[n]) for n in expected)
        assert run("verify", "memory://models/m.spq").code == 0
        missing = run("verify", "memory://models/none.spq")
        assert (missing.code, missing.stderr) == (
            1,
            "spqfmt: memory://models/none.spq: there is no such file\n",
        )
    finally:
        memory.rm("/models", recursive=True)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("nothing://host/m.spq", "nothing here reads such addresses, but https://, http://, hf://, s3://"),
        ("hf://model.spq", "give hf://OWNER/MODEL/FILE.spq"),
        ("http:///m.spq", "an address without a host"),
    ],
)
def test_addresses_that_are_none_are_wrong_use(address: str, said: str) -> None:
    done = run("inspect", address)
    assert done.code == 2
    assert said in done.stderr


def test_a_host_that_is_asked_at_once_is_named() -> None:
    """Of fsspec's file systems this one connects before it is asked for a file."""
    done = run("inspect", "ftp://127.0.0.1:9/m.spq")
    assert (done.code, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("spqfmt: ftp://127.0.0.1:9/m.spq: Connection refused; read are https://")


def test_small_files_come_whole_from_servers_without_ranges(packed: Path, site: Site) -> None:
    size = (packed / "m.spq").stat().st_size
    site.with_ranges = False
    for tail, code in [(size, 0), (size - 1, 1)]:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(blocks, "TAIL_BYTES", tail)
            assert run("verify", f"{site.url}/m.spq").code == code
    assert len(site.requests) == 2


def test_the_hub_is_asked_by_its_own_address_with_the_token(
    packed: Path, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", site.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", site.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_token")
    site.folder = tmp_path
    (tmp_path / "me/model/resolve/v1").mkdir(parents=True)
    shutil.copy(packed / "m.spq", tmp_path / "me/model/resolve/v1/m.spq")
    assert run("verify", "hf://me/model@v1/m.spq").code == 0
    assert {h["authorization"] for h in site.headers} == {"Bearer hf_token"}
    # Offline, what is in the cache is read, and nothing else.
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    done = run("verify", "hf://me/model@v1/m.spq")
    assert (done.code, "HF_HUB_OFFLINE" in done.stderr) == (1, True)
    commit = "0" * 40
    snapshot = tmp_path / "cache/models--me--model/snapshots" / commit
    snapshot.mkdir(parents=True)
    shutil.copy(packed / "m.spq", snapshot / "m.spq")
    site.requests.clear()
    assert run("verify", f"hf://me/model@{commit}/m.spq").code == 0
    assert site.requests == []


def test_an_address_is_a_path_that_keeps_its_words() -> None:
    address = Address("https://me:pw@host/a%20b/m-00001-of-00002.spq?sig=1//2")
    assert str(address) == "https://host/a%20b/m-00001-of-00002.spq?sig=1//2"
    assert (address.name, address.suffix, address.stem) == (
        "m-00001-of-00002.spq",
        ".spq",
        "m-00001-of-00002",
    )
    assert address.with_name("n.spq").url == "https://me:pw@host/a%20b/n.spq?sig=1//2"
    again = pickle.loads(pickle.dumps(address))  # noqa: S301  # made a line above
    assert (again.url, type(again)) == (address.url, Address)
    assert address.resolve() is address


def test_outputs_and_sources_are_no_addresses(tmp_path: Path) -> None:
    key = tmp_path / "key.pub"
    key.touch()
    for words in (
        ["pack", "https://host/m", tmp_path / "o.spq"],
        ["unpack", "m.spq", "s3://b/o"],
        ["sign", "https://host/m.spq", "--key", key],
        ["verify", "https://host/m.spq", "--key", key],
        ["bench", "https://host/m.spq"],
    ):
        assert run(*words).code == 2, words


def test_a_page_is_not_taken_for_a_model(site: Site) -> None:
    site.page = b"<html>"
    with pytest.raises(NotSpqError, match="a web page"):
        spqfmt.open(f"{site.url}/m.spq")


def test_a_server_may_send_on(site: Site, tmp_path: Path) -> None:
    """As the hub does for large files; a password stays with the host that it was given to."""
    expected = [tensor.name for tensor in spqfmt.inspect(site.folder / "m.spq").tensors]
    secret = site.url.replace("http://", "http://me:pw@") + "/moved/m.spq"
    site.moved_to = ""
    with spqfmt.open(secret) as file:
        assert list(file) == expected
    assert all("authorization" in headers for headers in site.headers)
    with serving(site.folder) as other:
        site.moved_to = other.url
        site.headers.clear()
        with spqfmt.open(secret) as file:
            assert list(file) == expected
        assert all("authorization" in headers for headers in site.headers)
        assert other.headers
        assert not any("authorization" in headers for headers in other.headers)


@pytest.mark.parametrize(
    ("moved_to", "words"),
    [
        ("/moved", "sends on to other addresses more than 8 times"),
        ("file://", "no http address"),
        ("file://127.0.0.1", "no http address"),
    ],
)
def test_it_does_not_lead_in_circles_nor_to_files(site: Site, moved_to: str, words: str) -> None:
    site.moved_to = moved_to
    with pytest.raises(RemoteError, match=words):
        spqfmt.open(f"{site.url}/moved/m.spq")
