"""Files whose layers each of several ranks reads a part of alone."""

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

import spqfmt
from spqfmt.container.reader import Reader
from spqfmt.container.slices import held_channels
from spqfmt.errors import OptionError
from spqfmt.models.rank_plan import part_of

METHODS: list[dict[str, Any]] = [
    {},
    {"method": "rtn", "bits": 8},
    {"method": "rtn", "bits": 4, "group_size": 16},
    {"method": "ecq", "bits": 4, "no_calibration": True},
]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    tiny.build("llama", folder, dtype=torch.bfloat16)
    return folder


@pytest.mark.parametrize("options", METHODS, ids=str)
def test_repacked_for_ranks_each_layer_ends_where_a_part_does(
    llama: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    spqfmt.pack(llama, tmp_path / "m.spq", **options)
    report = spqfmt.repack(tmp_path / "m.spq", tmp_path / "ranks.spq", ranks=4)
    assert 0 < report.n_copied < report.n_chunks
    spqfmt.verify(tmp_path / "ranks.spq")
    with spqfmt.open(tmp_path / "m.spq") as before, spqfmt.open(tmp_path / "ranks.spq") as after:
        assert all(torch.equal(before.read(name), after.read(name)) for name in before)
    with Reader(tmp_path / "ranks.spq") as reader:
        for name, of_columns in (("self_attn.o_proj", True), ("self_attn.q_proj", False)):
            record = reader.index.by_name[f"model.layers.1.{name}.weight"]
            for size in (2, 4):
                parts = [part_of(64, rank, size) for rank in range(size)]
                held = [held_channels(record, part, of_columns=of_columns) for part in parts]
                assert held == [(part, "") for part in parts]
    # All that a packer decides is decided the same way.
    if options.get("method") != "ecq":
        spqfmt.pack(llama, tmp_path / "packed.spq", ranks=4, **options)
        assert (tmp_path / "packed.spq").read_bytes() == (tmp_path / "ranks.spq").read_bytes()
    # And undone by 1, which leaves alone what no ranks have cut.
    spqfmt.repack(tmp_path / "ranks.spq", tmp_path / "one.spq", ranks=1)
    spqfmt.repack(tmp_path / "m.spq", tmp_path / "as it was.spq", ranks=1)
    as_before = (tmp_path / "m.spq").read_bytes()
    assert (tmp_path / "one.spq").read_bytes() == as_before
    assert (tmp_path / "as it was.spq").read_bytes() == as_before


def test_a_lossless_file_for_ranks_gives_the_source_back(llama: Path, tmp_path: Path) -> None:
    spqfmt.pack(llama, tmp_path / "m.spq")
    spqfmt.pack(llama, tmp_path / "ranks.spq", ranks=2)
    spqfmt.unpack(tmp_path / "ranks.spq", tmp_path / "out")
    assert (tmp_path / "out/model.safetensors").read_bytes() == (llama / "model.safetensors").read_bytes()


def test_what_cannot_be_stored_for_ranks_is_refused(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="--ranks changes the size that was asked for"):
        spqfmt.pack(llama, tmp_path / "m.spq", fit="1MiB", ranks=2)
    with pytest.raises(OptionError, match="ranks 0: give a number of processes"):
        spqfmt.pack(llama, tmp_path / "m.spq", ranks=0)
    tiny.build("gpt2", tmp_path / "gpt2", dtype=torch.bfloat16)
    with pytest.raises(OptionError, match="no plan for the ranks of this model"):
        spqfmt.pack(tmp_path / "gpt2", tmp_path / "m.spq", ranks=2)
    assert not (tmp_path / "m.spq").exists()
    spqfmt.pack(tmp_path / "gpt2", tmp_path / "m.spq")
    for options in ({"ranks": 2}, {"ranks": 2, "partial": "speed:40%"}):
        with pytest.raises(OptionError, match="--ranks"):
            spqfmt.repack(tmp_path / "m.spq", tmp_path / "out.spq", **options)
    assert not (tmp_path / "out.spq").exists()
