"""The digest of what a model holds: the same however it is stored, and another for another model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import reference_decoder
import torch
from safetensors.torch import save_file
from test_resealed import parts, sealed

import spqfmt
from spqfmt import errors
from spqfmt.container.reader import Reader
from spqfmt.importers.base import SourceModel
from spqfmt.packing.options import pack_options
from spqfmt.packing.pack import pack_model
from spqfmt.progress import Silent
from spqfmt.reading.diff import diff_files
from spqfmt.reading.verify import verify_file

MakeModel = Callable[..., SourceModel]

STORED: list[dict[str, Any]] = [
    {"codec": "raw"},
    {"codec": "zstd"},
    {"codec": "rans", "partial": "every:2"},
    {"partial": "speed:30%"},
    {"shard_size": "20kB"},
]


def packed(model: SourceModel, out: Path, **options: Any) -> Path:
    report = pack_model(model, out, pack_options(**options), force=False, progress=Silent())
    return report.files[-1]


def content(path: Path) -> str | None:
    with spqfmt.open(path) as file:
        return file.content


@pytest.mark.parametrize("method", [{}, {"method": "rtn", "bits": 4, "group_size": 8}], ids=str)
@pytest.mark.parametrize("stored", STORED, ids=str)
def test_the_same_however_it_is_stored(
    make_model: MakeModel, tmp_path: Path, stored: dict[str, Any], method: dict[str, Any]
) -> None:
    first = packed(make_model(), tmp_path / "first.spq", **method)
    second = packed(make_model(), tmp_path / "second.spq", **method, **stored)
    whole = content(first)
    assert whole == content(second) == reference_decoder.decode(first.read_bytes()).content
    assert spqfmt.verify(second, content=True) == whole
    assert spqfmt.inspect(second).content == whole
    assert spqfmt.diff(first, second).equal
    again = tmp_path / "again.spq"
    files = spqfmt.repack(second, again, partial="every:3", shard_size="1GB").files
    assert content(files[-1]) == whole


def test_every_shard_says_that_of_the_model(make_model: MakeModel, tmp_path: Path) -> None:
    index = packed(make_model(), tmp_path / "m.spq", shard_size="20kB")
    shards = sorted(tmp_path.glob("m-*.spq"))
    assert len(shards) > 1
    assert {content(path) for path in shards} == {content(index)}
    assert spqfmt.verify(shards[0], content=True) is None  # of one shard alone the model's is not known


def test_another_for_other_weights_and_for_a_quantized_model(make_model: MakeModel, tmp_path: Path) -> None:
    files = [
        packed(make_model(), tmp_path / "a.spq"),
        packed(make_model(seed=1), tmp_path / "b.spq"),
        packed(make_model(torch.float16), tmp_path / "c.spq"),
        packed(make_model(), tmp_path / "d.spq", method="rtn", bits=8),
    ]
    assert len({content(file) for file in files}) == len(files)


def test_a_file_without_it_stays_without(make_model: MakeModel, tmp_path: Path) -> None:
    path = packed(make_model(), tmp_path / "m.spq", no_identity=True)
    assert content(path) is None
    spqfmt.repack(path, tmp_path / "again.spq", partial="every:2")
    assert content(tmp_path / "again.spq") is None
    with Reader(path) as reader:
        assert reader.trailer.minor == 0


def test_diff_trusts_digests_but_not_damage(make_model: MakeModel, tmp_path: Path) -> None:
    first, second = (packed(make_model(), tmp_path / f"{n}.spq", codec=n) for n in ("raw", "zstd"))
    data = bytearray(second.read_bytes())
    data[100] ^= 1
    second.write_bytes(data)
    with pytest.raises(errors.ChecksumError):
        spqfmt.diff(first, second)


def test_an_index_that_would_be_too_large_leaves_digests_out(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = packed(make_model(), tmp_path / "without.spq", no_identity=True)
    with Reader(without) as reader:
        monkeypatch.setattr("spqfmt.wire.MAX_INDEX_RAW_BYTES", reader.trailer.index_raw_bytes)
    path = packed(make_model(), tmp_path / "m.spq")
    assert path.read_bytes() == without.read_bytes()


def test_a_digest_that_two_files_share_is_not_believed(tmp_path):
    weights = torch.arange(64, dtype=torch.float32).reshape(8, 8)
    for name, values in (("a", weights), ("b", weights + 1), ("c", weights)):
        save_file({"w": values}, tmp_path / f"{name}.safetensors")
        spqfmt.pack(
            tmp_path / f"{name}.safetensors", tmp_path / f"{name}.spq", codec="raw" if name == "c" else "auto"
        )
    before, root, trailer = parts((tmp_path / "a.spq").read_bytes())
    claimed = root["content"], root["tensors"][0]["content"]
    before, root, trailer = parts((tmp_path / "b.spq").read_bytes())
    root["content"], root["tensors"][0]["content"] = claimed
    (tmp_path / "forged.spq").write_bytes(sealed(before, root, trailer))
    assert not diff_files(tmp_path / "a.spq", tmp_path / "forged.spq").equal
    assert diff_files(tmp_path / "a.spq", tmp_path / "c.spq").equal
    with pytest.raises(errors.ChecksumError):
        verify_file(tmp_path / "forged.spq", content=True)


def test_a_source_file_that_cannot_be_made_is_found(tmp_path):
    path, changed = tmp_path / "a.spq", tmp_path / "b.spq"
    save_file({"w": torch.arange(64, dtype=torch.float32)}, tmp_path / "a.safetensors")
    spqfmt.pack(tmp_path / "a.safetensors", path)
    verify_file(path, content=True)
    before, root, trailer = parts(path.read_bytes())
    root["sources"]["files"][0]["sha256"] = "ab" * 32
    changed.write_bytes(sealed(before, root, trailer))
    spqfmt.verify(changed)
    with pytest.raises(errors.ChecksumError, match="its digest"):
        verify_file(changed, content=True)
