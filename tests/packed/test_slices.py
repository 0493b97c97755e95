"""Rows or columns of a tensor as a tensor of their own: what a rank holds of a layer."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_linear import COLUMNS, FORMS, RATES, ROWS
from torch import nn

from spqfmt.container.reader import Reader
from spqfmt.container.slices import SliceRecord, held_channels, laid_for_ranks, slice_of
from spqfmt.errors import OptionError, SpqError
from spqfmt.loaders.packed import HostWeights, PackedEmbedding, PackedLinear
from spqfmt.loaders.packed.shares import is_of_each, of_all_inputs, refuse_rounding
from spqfmt.models.places import Place, Share
from spqfmt.models.rank_plan import part_of
from spqfmt.models.treatments import TOKEN_INT8, range_clamp, ratio_clamp, treatment
from spqfmt.reading.restore import restore
from spqfmt.records import TensorRecord
from spqfmt.residency.cpu import plan_residency
from spqfmt.residency.inventory import Inventory, Item
from spqfmt.residency.parts import cut
from spqfmt.residency.sides import side_bytes
from spqfmt.residency.workspace import workspace_bytes
from spqfmt.schemes.base import Encoded
from spqfmt.schemes.registry import packed_scheme

Write = Callable[..., Path]


def engine_of(path: Path, record: TensorRecord) -> HostWeights:
    items = tuple(Item(part, True, True) for part in cut(record, part_bytes=1 << 10))
    workspace = workspace_bytes(*record.matrix_shape, 4)
    inventory = Inventory(items, 0, side_bytes([item.part for item in items]), workspace)
    engine = HostWeights(plan_residency(inventory, RATES, None), [Reader(path)], torch.float32)
    assert engine.held_bytes <= engine.plan.held_bytes
    return engine


def record_of(encoded: Encoded) -> TensorRecord:
    return TensorRecord(
        "w",
        (ROWS, COLUMNS),
        "bf16",
        encoded.scheme,
        parameters=encoded.parameters,
        streams=tuple(stream.record for stream in encoded.streams),
    )


@pytest.mark.parametrize("of_columns", [False, True], ids=["rows", "columns"])
@pytest.mark.parametrize("name", sorted(FORMS))
def test_ranks_together_compute_what_one_does(
    write_tensor: Write, generator: np.random.Generator, name: str, of_columns: bool
) -> None:
    encoded = FORMS[name](generator).encode()
    path = write_tensor(encoded, (ROWS, COLUMNS), chunk_bytes=1 << 10)
    with Reader(path) as reader:
        whole = reader.index.by_name["w"]
        matrix = restore(reader, whole, None if whole.scheme == "dense" else "f32").float()
    bias = nn.Parameter(torch.randn(ROWS), requires_grad=False)
    x = torch.randn(3, COLUMNS)
    found = []
    for rank in range(3):
        wanted = part_of(COLUMNS if of_columns else ROWS, rank, 3)
        held, why = held_channels(whole, wanted, of_columns=of_columns)
        assert held.start <= wanted.start < wanted.stop <= held.stop
        assert (held == wanted) == (not why)
        share = Share((ROWS, COLUMNS), of_columns=of_columns, wanted=wanted, held=held)
        record = slice_of(whole, held, of_columns=of_columns)
        assert isinstance(record, SliceRecord) == (record.shape != whole.shape)
        engine = engine_of(path, record)
        part = slice(wanted.start, wanted.stop)
        own = None if of_columns else nn.Parameter(bias[part].clone(), requires_grad=False)
        module = PackedLinear(record, torch.float32, own, int8_activations=False, share=share)
        module.attach(engine)
        assert (module.out_features, module.in_features) == (ROWS, COLUMNS)
        assert module.weight.shape == (ROWS, COLUMNS)
        with pytest.raises(SpqError, match="this rank has a part of the weight"):
            module.weight.decoded()
        found.append(module(x[:, part] if of_columns else x))
        engine.close()
    y = sum(found) + bias if of_columns else torch.cat(found, 1)
    size = x.double().abs() @ matrix.t().double().abs()
    assert ((y - (x.double() @ matrix.t().double() + bias)).abs() <= 1e-5 * size + 1e-5).all()


@pytest.mark.parametrize("of_columns", [False, True], ids=["rows", "columns"])
@pytest.mark.parametrize("name", sorted(FORMS))
def test_laid_for_ranks_it_is_the_same_and_each_has_its_part(
    write_tensor: Write, generator: np.random.Generator, name: str, of_columns: bool
) -> None:
    encoded = FORMS[name](generator).encode()
    path = write_tensor(encoded, (ROWS, COLUMNS))
    with Reader(path) as reader:
        before = restore(reader, reader.index.by_name["w"])
    laid = laid_for_ranks(record_of(encoded), encoded, 3, of_columns=of_columns)
    permuted = any(stream.role == "permutation" for stream in encoded.streams)
    reordered = any(stream.role == "channel_order" for stream in encoded.streams)
    is_path = "trellis" in encoded.parameters and (of_columns or reordered)
    assert (laid is encoded) == ((of_columns and permuted) or is_path)
    if laid is encoded:
        return
    path = write_tensor(laid, (ROWS, COLUMNS), chunks_as_they_are=True)
    with Reader(path) as reader:
        record = reader.index.by_name["w"]
        reader.check_elements(record)
        assert torch.equal(restore(reader, record), before)
        unit = packed_scheme(record).slice_unit(record, of_columns=of_columns)
        n = COLUMNS if of_columns else ROWS
        for rank in range(3):
            wanted = part_of(n, rank, 3)
            held, _ = held_channels(record, wanted, of_columns=of_columns)
            # Elements narrower than a byte may ask for whole bytes more.
            assert wanted.start - held.start < 4 * unit
            assert held.stop - wanted.stop < 4 * unit


def test_a_rank_has_zeros_for_rows_of_others(write_tensor: Write, generator: np.random.Generator) -> None:
    path = write_tensor(FORMS["u4 groups"](generator).encode(), (ROWS, COLUMNS), chunk_bytes=1 << 10)
    with Reader(path) as reader:
        whole = reader.index.by_name["w"]
        table = restore(reader, whole, "f32").float()
    ids, total = torch.randint(ROWS, (2, 9)), torch.zeros(2, 9, COLUMNS)
    for rank in range(4):
        wanted = part_of(ROWS, rank, 4)
        held, _ = held_channels(whole, wanted, of_columns=False)
        record = slice_of(whole, held, of_columns=False)
        engine = engine_of(path, record)
        share = Share((ROWS, COLUMNS), of_columns=False, wanted=wanted, held=held)
        module = PackedEmbedding(record, torch.float32, None, share)
        module.attach(engine)
        rows = module(ids)
        assert not rows[(ids < wanted.start) | (ids >= wanted.stop)].any()
        total += rows
        engine.close()
    assert torch.allclose(total, table[ids], rtol=1e-6, atol=1e-6)


def test_inputs_that_are_rounded_as_a_whole_are_put_together(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 8)
    share = Share((5, 8), of_columns=True, wanted=range(4, 8), held=range(4, 8))

    def all_reduce(inputs: torch.Tensor) -> None:
        inputs[:, :4] += x[:, :4]

    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    treat: Any = treatment(None, TOKEN_INT8)
    assert torch.equal(of_all_inputs(treat, share)(x[:, 4:]), treat(x)[:, 4:])
    assert is_of_each(range_clamp(-0.5, 0.5), None)
    assert not is_of_each(ratio_clamp(0.1, "token"), None)
    assert not is_of_each(None, TOKEN_INT8)


def test_inputs_with_scales_are_not_rounded_in_parts(generator: np.random.Generator) -> None:
    record = record_of(FORMS["i8 rich"](generator).encode())
    share = Share((ROWS, COLUMNS), of_columns=True, wanted=range(65), held=range(65))
    place = Place("layers.0.down_proj", "w", record, is_embedding=False)
    refuse_rounding([place, replace(place, share=replace(share, of_columns=False))])
    with pytest.raises(OptionError, match=r"activations int8: layers\.0\.down_proj is cut along its inputs"):
        refuse_rounding([replace(place, share=share)])
