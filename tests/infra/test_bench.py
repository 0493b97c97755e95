"""The benchmark measures what it says, on a tiny run, and notices a coder that is wrong."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from spqfmt.bench import ours, peers
from spqfmt.bench.contender import Contender, Stored
from spqfmt.bench.data import SYNTHETIC, synthetic
from spqfmt.bench.load.measure import measure_load
from spqfmt.bench.load.model import write_model
from spqfmt.bench.load.spq import payload_of
from spqfmt.bench.measure import better_layouts, measure
from spqfmt.bench.peers.memcpy import Memcpy
from spqfmt.bench.registry import find
from spqfmt.bench.rows import CodecRow, Rate
from spqfmt.bench.run import BenchScale, run
from spqfmt.codecs.base import Bytes
from spqfmt.errors import BackendError

ROW = CodecRow("int4", "c", "p", 0, 1, "bytes", Rate(1, 1, 1), Rate(1, 1, 1), 4.0, 3.5)


class Wrong(Memcpy):
    """Loses one byte."""

    def encode(self, raw: Bytes) -> Stored:
        return bytes(raw)[: raw.size // 2]

    def decode(self, stored: Stored, out: Bytes) -> None:
        out[:] = 0


def test_rows_of_a_tiny_run() -> None:
    report = run(None, BenchScale(n_symbols=20_000, rounds=2), lambda _: None).to_json()
    assert set(report) == {"machine", "rounds", "codecs", "load", "run", "missing"}
    rows = report["codecs"]
    assert isinstance(rows, list)
    assert {row["data"] for row in rows} == set(SYNTHETIC)
    for row in rows:
        for verb in ("encode", "decode"):
            low, high = row[f"{verb}_range"]
            assert 0 < low <= row[f"{verb}_msymbols_s"] <= high
        assert row["threads"] in (1, 2)
    codes = [row for row in rows if row["data"] == "int8" and row["codec"] == "rans"]
    assert all(row["entropy"] < row["bits_per_symbol"] < 1.1 * row["entropy"] for row in codes)
    loads = report["load"]
    assert isinstance(loads, list)
    assert {(row["data"], row["cache"]) for row in loads if row["container"] == "spq"} == {
        (data, cache) for data in ("int8", "bf16") for cache in ("cold", "warm")
    }
    assert {row["container"] for row in loads} >= {
        "raw bytes",
        "safetensors",
        "safetensors BF16",
        "zstd level 1",
    }
    copies = {row["data"]: row["bits_per_symbol"] for row in rows if row["codec"] == "memcpy"}
    assert copies == {"int8": 8, "int8_sparse": 8, "int4": 4, "int3": 4, "bf16": 16}


def test_every_path_is_measured_at_both_block_sizes() -> None:
    found = {(c.path.removesuffix(" (best)"), c.block_bytes) for c in ours.make(1)}
    paths = {path for path, _ in found}
    assert "scalar" in paths
    blocks = {1 << 14, ours.default_block_bytes()}
    assert found == {(path, block) for path in paths for block in blocks}


@pytest.mark.parametrize("name", SYNTHETIC)
def test_layouts_hold_the_same_symbols(name: str) -> None:
    data = synthetic(name, 4096)
    assert data.n_symbols == 4096
    assert 0 < data.entropy < 16
    raw = {layout.name: layout.raw for layout in data.layouts}
    if set(raw) == {"nibbles", "bytes"}:
        pairs = raw["nibbles"]
        assert np.array_equal(np.stack([pairs & 15, pairs >> 4], axis=1).ravel(), raw["bytes"])
        assert raw["bytes"].max() == {"int4": 15, "int3": 7}[name]


def test_sparse_data_has_its_zeros() -> None:
    codes = synthetic("int8_sparse", 1 << 16).layouts[0].raw
    assert 0.38 < np.mean(codes == 0) < 0.42


def test_coder_that_loses_data_is_refused() -> None:
    wrong = Contender("wrong", "here", 0, Wrong())
    with pytest.raises(BackendError, match="wrong here: int8"):
        measure(synthetic("int8", 4096), [lambda _bytes, _threads: [wrong]], [1], 1)


def test_better_layout_is_the_smaller_then_the_faster() -> None:
    smaller = replace(ROW, layout="nibbles", bits_per_symbol=3.6)
    assert better_layouts([ROW, smaller]) == [smaller]
    faster = replace(ROW, layout="nibbles", bits_per_symbol=4.05, decode=Rate(9, 9, 9))
    assert better_layouts([ROW, faster]) == [faster]


def test_missing_peer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lz4.block", None)
    monkeypatch.delitem(sys.modules, "spqfmt.bench.peers.lz4", raising=False)
    makers, missing = find(peers)
    assert "lz4" in missing
    assert "lz4" not in makers
    assert "memcpy" in makers


def test_streams_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "m.spq"
    write_model(path, "bf16", 1 << 16)
    report = run(path, BenchScale(n_symbols=1 << 16, rounds=1), lambda _: None)
    assert {row.data for row in report.codecs} == {"values (bf16)"}
    rans = next(row for row in report.codecs if row.codec == "rans")
    assert 10 < rans.entropy <= rans.bits_per_symbol < 11
    assert {row.data for row in report.load} == {"m.spq"}
    assert sorted(tmp_path.iterdir()) == [path]  # what was written beside it is gone


def test_loader_that_gives_other_bytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.spq"
    write_model(path, "int8", 1 << 12)
    payload = payload_of(path, "m")
    payload.arrays[0].raw[5] ^= 1
    with pytest.raises(BackendError, match="spq: m is not what was written"):
        measure_load(path, payload, tmp_path, [], threads=[1], rounds=1)
