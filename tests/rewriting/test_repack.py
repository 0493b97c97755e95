"""A file packed again: the same bytes as packing with that plan, and nothing touched that stays."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import spqfmt
from spqfmt import wire
from spqfmt.codecs.threads import jobs
from spqfmt.container.encode import encode_chunk
from spqfmt.container.features import optional_mask
from spqfmt.container.reader import Reader
from spqfmt.container.strict_json import Json, dump
from spqfmt.container.writer import Writer
from spqfmt.errors import OptionError
from spqfmt.importers.base import SourceModel, SourceTensor
from spqfmt.packing.options import pack_options
from spqfmt.packing.pack import pack_model
from spqfmt.progress import Silent
from spqfmt.records import Stream, TensorRecord

MakeModel = Callable[..., SourceModel]
MakeTensor = Callable[..., SourceTensor]

RATES = '{"rans": {"bytes_per_s": 2000000000, "chunk_ns": 9000}, "zstd": {"bytes_per_s": 1000000000, "chunk_ns": 9000}}'
PLANS: list[dict[str, Any]] = [
    {},
    {"partial": "every:2"},
    {"partial": "every:3"},
    {"partial": "speed:35%"},
    {"codec": "zstd"},
    {"codec": "rans", "partial": "every:2"},
    {"codec": "raw"},
]
METHODS: list[dict[str, Any]] = [
    {},
    {"method": "rtn", "bits": 8},
    {"method": "rtn", "bits": 3, "group_size": 10},
]


@pytest.fixture
def rates(tmp_path: Path) -> Path:
    """A file of rates, in a folder of its own."""
    file = tmp_path / "rates" / "rates.json"
    file.parent.mkdir()
    file.write_text(RATES)
    return file


def packed(model: SourceModel, out: Path, **options: Any) -> Path:
    report = pack_model(model, out, pack_options(**options), force=True, progress=Silent())
    return report.files[-1]


def with_rates(plan: dict[str, Any], rates: Path) -> dict[str, Any]:
    return plan | {"rates": rates} if "speed" in plan.get("partial", "") else plan


def chunks(path: Path) -> list[tuple[int, int, bytes]]:
    """Codec, checksum and stored bytes of every chunk plane."""
    with Reader(path) as reader:
        return [
            (plane.codec, plane.crc32, reader.read_bytes(plane.offset, plane.stored_bytes))
            for tensor in reader.index.tensors
            for stream in tensor.streams
            for chunk in stream.chunks
            for plane in chunk.planes
        ]


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_repacked_is_what_packing_with_that_plan_gives(
    make_model: MakeModel, tmp_path: Path, rates: Path, method: dict[str, Any]
) -> None:
    direct = [
        packed(make_model(), tmp_path / f"{i}.spq", **method, **with_rates(p, rates)).read_bytes()
        for i, p in enumerate(PLANS)
    ]
    out = tmp_path / "out.spq"
    for first in range(len(PLANS)):
        for plan, expected in zip(PLANS, direct, strict=True):
            options = {"codec": "auto"} | with_rates(plan, rates)
            spqfmt.repack(tmp_path / f"{first}.spq", out, force=True, **options)
            assert out.read_bytes() == expected, (PLANS[first], plan)
    spqfmt.verify(out)


@pytest.mark.parametrize("method", METHODS[:2], ids=str)
def test_blocks_are_as_large_as_asked_for_packed_and_repacked(
    make_model: MakeModel, tmp_path: Path, method: dict[str, Any]
) -> None:
    usual = packed(make_model(), tmp_path / "usual.spq", **method)
    again = tmp_path / "again.spq"
    for block, log2 in (("4KiB", 12), (1 << 13, 13), ("gpu", 14)):
        asked = packed(make_model(), tmp_path / "asked.spq", **method, block=block)
        blocks = {
            stored[2] for codec, _, stored in chunks(asked) if codec == wire.CODEC_RANS and not stored[1]
        }
        assert blocks == {log2}
        assert asked.read_bytes() != usual.read_bytes()
        spqfmt.repack(usual, again, block=block, force=True)
        assert again.read_bytes() == asked.read_bytes()
        spqfmt.verify(again)
        with spqfmt.open(usual) as one, spqfmt.open(again) as other:
            assert all(torch.equal(one.read(name), other.read(name)) for name in one)
    # What was asked for once stays where nothing else is asked for.
    spqfmt.repack(again, tmp_path / "copy.spq")
    assert (tmp_path / "copy.spq").read_bytes() == again.read_bytes()


def test_tensors_of_shared_streams_and_treated_inputs_keep_their_records(tmp_path: Path) -> None:
    """The frozen files use every feature of the format; what a repacked one restores is what was there."""
    vectors = Path(__file__).parents[2] / "spec" / "vectors" / "valid"
    n_repacked = 0
    for path in sorted(vectors.glob("*.spq")):
        with Reader(path) as reader:
            if reader.index.shard is not None:
                continue
            out = tmp_path / path.name
            spqfmt.repack(path, out, partial="every:2")
            spqfmt.verify(out)
            n_repacked += 1
            with Reader(out) as other:
                for before, after in zip(reader.index.tensors, other.index.tensors, strict=True):
                    assert _without_chunks(before) == _without_chunks(after)
                    for role in before.by_role if before.tied_to is None else ():
                        elements = reader.read_elements(before, role)
                        assert elements.tobytes() == other.read_elements(after, role).tobytes()
                for asset in reader.index.assets:
                    assert reader.read_asset(asset.name) == other.read_asset(asset.name)
    assert n_repacked > 10


def _without_chunks(tensor: Any) -> dict[str, Any]:
    streams = [(s.role, s.dtype, s.n, s.entropy_bits, s.same_as) for s in tensor.streams]
    return {**vars(tensor), "streams": streams, "by_role": None, "matrix_shape": None}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_chunks_begin_where_they_are_asked_to(
    make_model: MakeModel, tmp_path: Path, dtype: torch.dtype
) -> None:
    plain = packed(make_model(dtype), tmp_path / "plain.spq", method="rtn", bits=8)
    aligned = packed(make_model(dtype), tmp_path / "aligned.spq", method="rtn", bits=8, chunk_alignment=4096)
    again, back = tmp_path / "again.spq", tmp_path / "back.spq"
    spqfmt.repack(plain, again, chunk_alignment=4096)
    assert again.read_bytes() == aligned.read_bytes()
    spqfmt.repack(aligned, again, force=True)
    assert again.read_bytes() == aligned.read_bytes()  # as in the file
    spqfmt.repack(aligned, back, chunk_alignment="64")
    assert back.read_bytes() == plain.read_bytes()
    assert chunks(plain) == chunks(aligned) == chunks(back)
    for path, alignment in ((plain, 64), (aligned, 4096), (back, 64)):
        spqfmt.verify(path)
        with Reader(path) as reader:
            streams = [s for t in reader.index.tensors for s in t.streams] + [
                a.stream for a in reader.index.assets
            ]
            offsets = [plane.offset for s in streams for chunk in s.chunks for plane in chunk.planes]
            assert reader.trailer.required >> wire.REQUIRED_FEATURES["chunk_alignment"] == int(
                alignment == 4096
            )
        assert {offset % alignment for offset in offsets} == {0}
        assert any(offset % 4096 for offset in offsets) == (alignment == 64)
    with pytest.raises(OptionError, match="chunk alignment 512: choose 64 or 4096"):
        spqfmt.repack(plain, back, chunk_alignment=512)


def test_chunks_that_stay_are_copied(make_model: MakeModel, tmp_path: Path) -> None:
    whole = packed(make_model(torch.float32), tmp_path / "whole.spq", method="rtn", bits=8)
    part = tmp_path / "part.spq"
    report = spqfmt.repack(whole, part, partial="every:2")
    assert report.n_copied < report.n_chunks
    before, after = chunks(whole), chunks(part)
    assert sum(a != b for a, b in zip(before, after, strict=True)) == report.n_chunks - report.n_copied

    report = spqfmt.repack(part, tmp_path / "again.spq", partial="every:2")
    assert report.n_copied == report.n_chunks
    assert (tmp_path / "again.spq").read_bytes() == part.read_bytes()


def test_compressed_chunks_keep_their_codec_unless_another_is_given(
    make_model: MakeModel, tmp_path: Path
) -> None:
    zstd = packed(make_model(), tmp_path / "z.spq", method="rtn", bits=8, codec="zstd", partial="every:2")
    spqfmt.repack(zstd, tmp_path / "whole.spq")
    codecs = {s.codec for t in spqfmt.inspect(tmp_path / "whole.spq").tensors for s in t.streams}
    assert "zstd" in codecs
    assert "rans" not in codecs
    whole = packed(make_model(), tmp_path / "w.spq", method="rtn", bits=8, codec="zstd")
    assert (tmp_path / "whole.spq").read_bytes() == whole.read_bytes()
    spqfmt.repack(zstd, tmp_path / "rans.spq", codec="rans")
    codecs = {s.codec for t in spqfmt.inspect(tmp_path / "rans.spq").tensors for s in t.streams}
    assert "zstd" not in codecs


def test_a_file_that_was_packed_raw_can_be_compressed(make_model: MakeModel, tmp_path: Path) -> None:
    raw = packed(make_model(), tmp_path / "raw.spq", method="rtn", bits=8, codec="raw")
    spqfmt.repack(raw, tmp_path / "out.spq")
    whole = packed(make_model(), tmp_path / "whole.spq", method="rtn", bits=8)
    assert (tmp_path / "out.spq").read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("plan", [{}, {"partial": "every:2"}, {"partial": "speed:35%"}], ids=str)
def test_shards_keep_their_cuts_or_get_new_ones(
    make_model: MakeModel, tmp_path: Path, rates: Path, plan: dict[str, Any]
) -> None:
    options = with_rates(plan, rates)
    small = packed(make_model(torch.float32), tmp_path / "s.spq", shard_size=40_000)
    names = [[t.name for t in spqfmt.inspect(p).tensors] for p in sorted(tmp_path.glob("s-*.spq"))]
    report = spqfmt.repack(small, tmp_path / "kept.spq", **options)
    spqfmt.verify(report.files[-1])
    assert [[t.name for t in spqfmt.inspect(p).tensors] for p in report.files[:-1]] == names
    # Cut anew at the same size, and whole: the same files as packing gives.
    direct = packed(make_model(torch.float32), tmp_path / "d.spq", shard_size=60_000, **options)
    report = spqfmt.repack(small, tmp_path / "new.spq", shard_size=60_000, **options)
    expected = sorted(tmp_path.glob("d-*.spq"))
    assert [p.read_bytes() for p in report.files[:-1]] == [p.read_bytes() for p in expected]
    one = packed(make_model(torch.float32), tmp_path / "one.spq", **options)
    report = spqfmt.repack(direct, tmp_path / "joined.spq", shard_size="1GiB", **options)
    assert chunks(report.files[0]) == chunks(one)


def test_one_shard_alone_is_refused(make_model: MakeModel, tmp_path: Path) -> None:
    packed(make_model(), tmp_path / "s.spq", shard_size=10_000)
    shard = sorted(tmp_path.glob("s-*.spq"))[0]
    with pytest.raises(spqfmt.FormatError, match=r"only shard 1 of .*index\.json"):
        spqfmt.repack(shard, tmp_path / "out.spq")


def test_a_file_whose_tensors_need_each_other_is_not_cut(tmp_path: Path) -> None:
    record = TensorRecord("a", (16,), "f32", "dense", streams=(Stream("values", "f32", 16),))
    tied = TensorRecord("b", (16,), "f32", "tied", tied_to="a")
    values = encode_chunk(np.arange(16, dtype=np.float32), "f32", "auto")
    with Writer(tmp_path / "tied.spq", 64, force=True) as writer:
        writer.begin_segment("first")
        writer.add_tensor(record, [[values]])
        writer.begin_segment("second")
        writer.add_tensor(tied, [])
        writer.seal({})
        writer.publish()
    spqfmt.repack(tmp_path / "tied.spq", tmp_path / "out.spq")
    spqfmt.verify(tmp_path / "out.spq")
    with pytest.raises(spqfmt.OptionError, match="'b' needs 'a'"):
        spqfmt.repack(tmp_path / "tied.spq", tmp_path / "cut.spq", shard_size=100)


def test_a_file_can_be_repacked_in_place(make_model: MakeModel, tmp_path: Path) -> None:
    path = packed(make_model(), tmp_path / "m.spq", method="rtn", bits=8)
    expected = packed(make_model(), tmp_path / "e.spq", method="rtn", bits=8, partial="every:2").read_bytes()
    with pytest.raises(FileExistsError):
        spqfmt.repack(path, path, partial="every:2")
    spqfmt.repack(path, path, partial="every:2", force=True)
    assert path.read_bytes() == expected


def test_the_number_of_threads_changes_nothing(make_model: MakeModel, tmp_path: Path, rates: Path) -> None:
    path = packed(make_model(), tmp_path / "m.spq", method="rtn", bits=8, codec="raw")
    contents = set()
    for n in (1, 2, 5):
        with jobs(n):
            spqfmt.repack(path, tmp_path / "out.spq", partial="speed:50%", rates=rates, force=True)
        contents.add((tmp_path / "out.spq").read_bytes())
    assert len(contents) == 1


@pytest.mark.parametrize(
    "plan", [{}, {"partial": "every:2"}, {"partial": "speed:35%"}, {"codec": "zstd"}], ids=str
)
def test_a_damaged_chunk_is_found_and_nothing_is_written(
    make_model: MakeModel, tmp_path: Path, rates: Path, plan: dict[str, Any]
) -> None:
    path = packed(make_model(), tmp_path / "m.spq", method="rtn", bits=8)
    with Reader(path) as reader:
        tensor = reader.index.by_name["layers.1.up"]
        plane = tensor.by_role["codes"].chunks[0].planes[0]
    damaged = bytearray(path.read_bytes())
    damaged[plane.offset + 5] ^= 4
    path.write_bytes(damaged)
    with pytest.raises(spqfmt.ChecksumError, match=r"m\.spq: tensor 'layers\.1\.up', codes") as caught:
        spqfmt.repack(path, tmp_path / "out.spq", **with_rates(plan, rates))
    assert caught.value.offset == plane.offset
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.spq", "rates"]


@pytest.mark.parametrize(
    "options",
    [
        {"partial": "every:0"},
        {"partial": "some"},
        {"codec": "lzma"},
        {"shard_size": 0},
        {"shard_size": "big"},
        {"block": "2KiB"},
        {"block": 5000},
        {"block": "128KiB"},
        {"block": 0},
        {"block": "tpu"},
    ],
    ids=str,
)
def test_options_that_make_no_sense(make_model: MakeModel, tmp_path: Path, options: dict[str, Any]) -> None:
    path = packed(make_model(), tmp_path / "m.spq")
    with pytest.raises(spqfmt.OptionError):
        spqfmt.repack(path, tmp_path / "out.spq", **options)
    assert [p.name for p in tmp_path.iterdir()] == ["m.spq"]


def test_names_and_files_that_make_no_sense(make_model: MakeModel, tmp_path: Path) -> None:
    path = packed(make_model(), tmp_path / "m.spq")
    with pytest.raises(spqfmt.OptionError, match=r"ends in \.spq"):
        spqfmt.repack(path, tmp_path / "out.bin")
    with pytest.raises(FileNotFoundError):
        spqfmt.repack(tmp_path / "none.spq", tmp_path / "out.spq")
    with pytest.raises(FileNotFoundError):
        spqfmt.repack(path, tmp_path / "out.spq", partial="speed", rates=tmp_path / "none.json")
    (tmp_path / "text.spq").write_text("text")
    with pytest.raises(spqfmt.NotSpqError):
        spqfmt.repack(tmp_path / "text.spq", tmp_path / "out.spq")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.spq", "text.spq"]


def test_metadata_and_assets_travel_along(make_model: MakeModel, tmp_path: Path) -> None:
    path = packed(make_model(), tmp_path / "m.spq", method="rtn", bits=4)
    spqfmt.repack(path, tmp_path / "out.spq", partial="every:2", codec="rans")
    with Reader(path) as before, Reader(tmp_path / "out.spq") as after:
        assert dict(after.index.metadata) == dict(before.index.metadata) | {"codec": "rans"}
        assert [a.name for a in after.index.assets] == [a.name for a in before.index.assets]
        assert after.read_asset("config.json") == before.read_asset("config.json")


def _later(root: Json) -> Json:
    """The index as a later version might write it: a key that is not known in every record, telling whose it is."""

    def told(record: Json, what: str) -> Json:
        return {**record, "later": [{"what": what}]}

    def asset(record: Any) -> Json:
        stream = told(record["stream"], f"stream of {record['name']}")
        return told({**record, "stream": stream}, record["name"])

    def tensor(record: Any) -> Json:
        name = record["name"]
        streams = [told(stream, f"{name}, {stream['role']}") for stream in record.get("streams", [])]
        return told({**record, "streams": streams} if "streams" in record else record, name)

    kinds: dict[str, Any] = {
        "segments": lambda record: told(record, record["name"]),
        "tensors": tensor,
        "assets": asset,
    }
    return told({k: [kinds[k](r) for r in v] if k in kinds else v for k, v in root.items()}, "root")  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "plan", [{}, {"codec": "zstd"}, {"partial": "every:2"}, {"shard_size": 40_000}], ids=str
)
@pytest.mark.parametrize("shard_size", [None, 60_000])
def test_what_a_later_version_has_put_into_the_index_travels_along(
    make_model: MakeModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    plan: dict[str, Any],
    shard_size: int | None,
) -> None:
    with monkeypatch.context() as later:
        later.setattr("spqfmt.container.writer.dump", lambda root: dump(_later(root)))
        later.setattr("spqfmt.container.writer.optional_mask", lambda names: optional_mask(names) | 1 << 40)
        source = packed(make_model(), tmp_path / "later.spq", method="rtn", bits=4, shard_size=shard_size)
    report = spqfmt.repack(source, tmp_path / "out.spq", **plan)
    files = [file for file in report.files if file.suffix == ".spq"]
    for file in files:
        with Reader(file) as reader:
            found = json.loads(reader.index_text())
            assert reader.trailer.optional >> 40 == 1
        assert found == _later({key: value for key, value in found.items() if key != "later"})
    spqfmt.verify(report.files[-1])
    assert spqfmt.diff(source, report.files[-1]).equal
