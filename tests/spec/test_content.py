"""The digest of what a model holds: the same however it is stored, and another for another model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import reference_decoder
import torch

import spqfmt
from spqfmt import errors
from spqfmt.container.reader import Reader
from spqfmt.importers.base import SourceModel
from spqfmt.packing.options import pack_options
from spqfmt.packing.pack import pack_model
from spqfmt.progress import Silent

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
