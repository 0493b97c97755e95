"""Codes of which the source would not come back byte for byte are not packed."""

import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tiny_gguf

import spqfmt
from spqfmt.errors import EncodeError
from spqfmt.importers._source_file import SourceFile
from spqfmt.packing.put_together import InTurn
from spqfmt.quantize.keep import Keep

Kind = gguf.GGMLQuantizationType
PERMUTED, PLAIN = "model.layers.1.self_attn.q_proj.weight", "model.layers.1.mlp.up_proj.weight"


def first_code(codes: Any) -> Any:
    moved = codes.codes.copy()
    moved[0, 0] ^= 1
    return replace(codes, codes=moved)


def last_code(codes: Any) -> Any:
    moved = codes.codes.copy()
    moved[-1, -1] ^= 1
    return replace(codes, codes=moved)


def last_scale(codes: Any) -> Any:
    moved = codes.scale.values.copy()
    moved.view(np.uint16)[-1, -1] ^= 1
    return replace(codes, scale=replace(codes.scale, values=moved))


def rows_apart(codes: Any) -> Any:
    return replace(codes, codes=np.roll(codes.codes, 1, 0))


def keep_altered(patch: pytest.MonkeyPatch, name: str, alter: Callable[[Any], Any]) -> None:
    keep = Keep.keep

    def kept(self: Keep, weight: Any, stored: Any) -> Any:
        return keep(self, weight, alter(stored) if weight.name == name else stored)

    patch.setattr(Keep, "keep", kept)


@pytest.mark.parametrize("alter", [first_code, last_code, last_scale, rows_apart])
@pytest.mark.parametrize("name", [PERMUTED, PLAIN])
def test_a_code_that_is_another_ends_the_pack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, alter: Callable[[Any], Any]
) -> None:
    tiny_gguf.write("llama", tmp_path / "m.gguf", quantize=Kind.Q4_0)
    # Several runs of each matrix.
    monkeypatch.setattr("spqfmt.reading.origin_gguf._BYTES_AT_ONCE", 100)
    spqfmt.pack(tmp_path / "m.gguf", tmp_path / "good.spq")
    keep_altered(monkeypatch, name, alter)
    with pytest.raises(EncodeError, match=r"its codes do not give the bytes of m\.gguf again") as caught:
        spqfmt.pack(tmp_path / "m.gguf", tmp_path / "m.spq")
    assert name in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == {"m.gguf", "good.spq"}


def test_a_file_holds_what_lies_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spqfmt.importers._source_file._COMPARE_BYTES", 16)
    data = np.arange(100, dtype=np.uint8)
    data.tofile(tmp_path / "x")
    file = SourceFile(tmp_path / "x")
    assert file.holds(10, 50, [data[10:13], data[13:60]])
    assert file.checksums == {(10, 50): zlib.crc32(data[10:60])}
    for runs in ([data[10:59]], [data[10:61]], [data[11:61]], [data[10:59], data[:1]], []):
        assert not file.holds(10, 50, runs)


def test_runs_are_taken_in_other_pieces() -> None:
    data = np.arange(20, dtype=np.uint8)
    runs = InTurn([data[:7], data[7:7], data[7:8], data[8:]])
    assert [piece.tolist() for piece in runs.take(3)] == [[0, 1, 2]]
    assert b"".join(piece.tobytes() for piece in runs.take(9)) == bytes(range(3, 12))
    assert not runs.is_over()
    assert sum(piece.size for piece in runs.take(30)) == 8
    assert runs.is_over()
    assert list(runs.take(1)) == []
