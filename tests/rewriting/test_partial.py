"""Which chunks a rule of partial compression chooses, and what the file says of it."""

import json
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import spqfmt
from spqfmt import wire
from spqfmt.importers.base import SourceModel, SourceTensor
from spqfmt.packing.options import pack_options
from spqfmt.packing.pack import pack_model
from spqfmt.progress import Silent
from spqfmt.residency.decode_rates import (
    CodecRate,
    DecodeRates,
    measure_decode_rates,
    parse_rates,
    read_rates,
)
from spqfmt.rewriting.partial import Candidate, ChosenChunks, Every, Speed, choose, parse_partial

MakeModel = Callable[..., SourceModel]
MakeTensor = Callable[..., SourceTensor]

RATES = DecodeRates({"rans": CodecRate(2_000_000_000, 10_000), "zstd": CodecRate(1_000_000_000, 5_000)})


@pytest.fixture
def rates_file(tmp_path: Path) -> Path:
    """RATES as a file, in a folder of its own."""
    file = tmp_path / "rates" / "rates.json"
    file.parent.mkdir()
    file.write_text(json.dumps(RATES.to_json()))
    return file


@pytest.fixture
def layers(source_tensor: MakeTensor) -> SourceModel:
    """Twelve tensors of like size whose codes have ever less entropy, with a norm between them."""
    tensors = []
    for i in range(12):
        weight = torch.randn(64, 512, generator=torch.Generator().manual_seed(i)) ** (1 + 2 * (i % 5))
        tensors.append(source_tensor(f"w{i}", weight))
        tensors.append(source_tensor(f"n{i}", torch.ones(64), role="other"))
    return SourceModel(tuple(tensors), (), "", "")


def packed(model: SourceModel, out: Path, **options: Any) -> spqfmt.PackReport:
    return pack_model(
        model, out, pack_options(method="rtn", bits=8, **options), force=True, progress=Silent()
    )


def weight_codecs(path: Path) -> dict[str, str]:
    return {t.name: s.codec for t in spqfmt.inspect(path).tensors for s in t.streams if s.role == "codes"}


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("none", Every(1)),
        ("every:1", Every(1)),
        ("every:12", Every(12)),
        ("speed", Speed("percent", 50)),
        ("speed:40%", Speed("percent", 40)),
        ("speed:0%", Speed("percent", 0)),
        ("speed:2.5ms", Speed("ms", 2.5)),
        ("speed:90MiB", Speed("bytes", 90 << 20)),
        ("speed:1.5 GB", Speed("bytes", 1_500_000_000)),
    ],
)
def test_rules_as_they_are_written(text: str, rule: Every | Speed) -> None:
    assert parse_partial(text) == rule


@pytest.mark.parametrize(
    "text",
    ["", "every", "every:0", "every:-1", "every:1.5", "every:x", "speed:", "speed:x", "speed:101%", "speed:-1ms",
     "speed:5s", "speed:90", "speed:90XB", "none:2", "fast", "speed:nanms"],
)  # fmt: skip
def test_rules_that_make_no_sense(text: str) -> None:
    with pytest.raises(spqfmt.OptionError):
        parse_partial(text)


def test_rates_belong_to_the_rule_speed(rates_file: Path) -> None:
    assert parse_partial("speed:25ms", rates_file) == Speed("ms", 25, RATES)
    with pytest.raises(spqfmt.OptionError, match="needs no rates"):
        parse_partial("every:2", rates_file)


def test_the_chunks_that_save_most_a_nanosecond_come_first() -> None:
    small, best, incompressible, slow = (
        Candidate(1000, 900, 100), Candidate(1000, 500, 100), Candidate(1000, 1000, 0), Candidate(1000, 100, 1000),
    )  # fmt: skip
    candidates = [small, best, incompressible, slow]
    assert choose(candidates, 50, Speed("percent", 0)).chunks == set()
    assert choose(candidates, 50, Speed("bytes", 3550)) == ChosenChunks(frozenset({1}), 3550, 100)
    # One byte less asked for takes one chunk more; equal savings a nanosecond go in the order of the file.
    assert choose(candidates, 50, Speed("bytes", 3549)) == ChosenChunks(frozenset({0, 1}), 3450, 200)
    assert choose([small, small], 0, Speed("bytes", 1950)).chunks == {0}
    assert choose(candidates, 50, Speed("percent", 100)) == ChosenChunks(frozenset({0, 1, 3}), 2550, 1200)
    assert choose(candidates, 50, Speed("ms", 0.0002)) == ChosenChunks(frozenset({0, 1}), 3450, 200)
    with pytest.raises(spqfmt.EncodeError, match="compressed whole they take 2550"):
        choose(candidates, 50, Speed("bytes", 2549))


@given(
    st.lists(st.tuples(st.integers(1, 50), st.integers(0, 50), st.integers(1, 20)), min_size=1, max_size=8),
    st.integers(0, 100),
)
def test_no_other_choice_saves_as_much_in_less_time(chunks: list[tuple[int, int, int]], percent: int) -> None:
    """Taking chunks by their saving a nanosecond is optimal for what it saves."""
    candidates = [Candidate(raw, max(0, raw - saved), ns) for raw, saved, ns in chunks]
    choice = choose(candidates, 7, Speed("percent", percent))
    assert choice.tensor_bytes == 7 + sum(
        c.stored_bytes if i in choice.chunks else c.raw_bytes for i, c in enumerate(candidates)
    )
    saved = sum(candidates[i].saved_bytes for i in choice.chunks)
    for n in range(len(candidates) + 1):
        for other in combinations(range(len(candidates)), n):
            if sum(candidates[i].saved_bytes for i in other) >= saved:
                assert sum(candidates[i].decode_ns for i in other) >= choice.decode_ns - 1e-9


@pytest.mark.parametrize("rule", ["speed", "speed:25%", "speed:0.05ms", "speed:300KiB"])
def test_the_file_says_how_its_chunks_were_chosen(
    layers: SourceModel, tmp_path: Path, rates_file: Path, rule: str
) -> None:
    out = tmp_path / "m.spq"
    packed(layers, out, partial=rule, rates=rates_file)
    spqfmt.verify(out)
    report = spqfmt.inspect(out)
    assert report.partial_plan == {
        "rule": "speed", "target_bytes": report.totals.tensor_bytes, "rates": RATES.to_json(),
    }  # fmt: skip
    assert set(weight_codecs(out).values()) == {"raw", "rans"}
    # The stored bytes and rates give the same choice again.
    again = tmp_path / "again.spq"
    (tmp_path / "report.json").write_text(json.dumps(report.to_json()))
    packed(layers, again, partial=f"speed:{report.totals.tensor_bytes}B", rates=tmp_path / "report.json")
    assert again.read_bytes() == out.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again.spq", "m.spq", "rates", "report.json"]


def test_a_size_is_kept_and_no_chunk_more_is_compressed(
    layers: SourceModel, tmp_path: Path, rates_file: Path
) -> None:
    out = tmp_path / "m.spq"
    packed(layers, out)
    smallest = spqfmt.inspect(out).totals.tensor_bytes
    packed(layers, out, codec="raw")
    largest = spqfmt.inspect(out).totals.tensor_bytes
    for target in (smallest, (3 * smallest + largest) // 4, (smallest + largest) // 2):
        packed(layers, out, partial=f"speed:{target}B", rates=rates_file)
        report = spqfmt.inspect(out)
        assert report.totals.tensor_bytes <= target
        saved = [
            s.raw_bytes - s.stored_bytes
            for t in report.tensors
            for s in t.streams
            if s.role == "codes" and s.codec == "rans"
        ]
        assert report.totals.tensor_bytes + min(saved) > target
    before = out.read_bytes()
    with pytest.raises(spqfmt.EncodeError, match=f"they take {smallest}"):
        packed(layers, out, partial=f"speed:{smallest - 1}B", rates=rates_file)
    assert out.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.spq", "rates"]


def test_other_rates_choose_other_chunks(tmp_path: Path, source_tensor: MakeTensor) -> None:
    """A machine with a high cost for each chunk leaves the small ones alone."""
    generator = torch.Generator().manual_seed(0)
    tensors = [source_tensor("large", torch.randn(512, 512, generator=generator) ** 3)]
    tensors += [source_tensor(f"s{i}", torch.randn(8, 512, generator=generator) ** 5) for i in range(8)]
    model = SourceModel(tuple(tensors), (), "", "")
    chosen = []
    for chunk_ns in (0, 10_000_000):
        rate = {"bytes_per_s": 2_000_000_000, "chunk_ns": chunk_ns}
        (tmp_path / "rates.json").write_text(json.dumps({"rates": {"rans": rate, "zstd": rate}}))
        packed(model, tmp_path / "m.spq", partial="speed:10%", rates=tmp_path / "rates.json")
        codecs = weight_codecs(tmp_path / "m.spq")
        chosen.append({name for name, codec in codecs.items() if codec == "rans"})
    assert "large" not in chosen[0]
    assert chosen[1] == {"large"}


def test_measured_rates_are_stored(layers: SourceModel, tmp_path: Path) -> None:
    packed(layers, tmp_path / "m.spq", partial="speed")
    plan = spqfmt.inspect(tmp_path / "m.spq").partial_plan
    assert plan is not None
    assert plan["rates"] == measure_decode_rates().to_json()
    assert measure_decode_rates().decode_ns(wire.CODEC_RANS, 1 << 20) > 0


def test_raw_chunks_cost_no_decoding() -> None:
    assert RATES.decode_ns(wire.CODEC_RAW, 1 << 20) == 0
    assert RATES.decode_ns(wire.CODEC_RANS, 2_000_000) == 1_010_000
    assert RATES.decode_ns(wire.CODEC_ZSTD, 1_000_000) == 1_005_000
    assert RATES.decode_ns(wire.CODEC_RANS, 0) == 0


@pytest.mark.parametrize(
    "text",
    ["", "[", "3", "[]", "{}", '{"rates": 1}', '{"rans": {}, "zstd": {}}', "[" * 10_000, "\xff",
     '{"rans": {"bytes_per_s": 0, "chunk_ns": 0}, "zstd": {"bytes_per_s": 1, "chunk_ns": 0}}',
     '{"rans": {"bytes_per_s": 1.5, "chunk_ns": 0}, "zstd": {"bytes_per_s": 1, "chunk_ns": 0}}',
     '{"rans": {"bytes_per_s": 1, "chunk_ns": -1}, "zstd": {"bytes_per_s": 1, "chunk_ns": 0}}',
     '{"rans": {"bytes_per_s": true, "chunk_ns": 0}, "zstd": {"bytes_per_s": 1, "chunk_ns": 0}}',
     '{"rans": {"bytes_per_s": 9007199254740992, "chunk_ns": 0}, "zstd": {"bytes_per_s": 1, "chunk_ns": 0}}'],
)  # fmt: skip
def test_files_that_hold_no_rates(tmp_path: Path, text: str) -> None:
    (tmp_path / "rates.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(spqfmt.OptionError, match=r"rates\.json: no decode rates"):
        read_rates(tmp_path / "rates.json")


def test_rates_survive_as_plain_data() -> None:
    assert parse_rates(json.loads(json.dumps(RATES.to_json()))) == RATES


def test_shards_by_the_rule_speed_hold_the_model(
    layers: SourceModel, tmp_path: Path, rates_file: Path
) -> None:
    tensors = tuple(
        SourceTensor(**{**vars(t), "segment": f"layers.{i // 2}"}) for i, t in enumerate(layers.tensors)
    )
    model = SourceModel(tensors, (), "", "")
    report = packed(model, tmp_path / "m.spq", partial="speed:40%", rates=rates_file, shard_size=150_000)
    assert len(report.files) > 3
    spqfmt.verify(report.files[-1])
    whole = packed(model, tmp_path / "w.spq", partial="speed:40%", rates=rates_file)
    assert weight_codecs(report.files[-1]) == weight_codecs(whole.files[-1])
