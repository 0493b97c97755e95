"""Pack and read back: what comes out is what went in."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import spqfmt
from spqfmt.codecs.rans import RansParts
from spqfmt.codecs.threads import jobs
from spqfmt.importers.base import SourceModel, SourceTensor
from spqfmt.kernels.torch_arrays import to_numpy
from spqfmt.packing.options import pack_options
from spqfmt.packing.pack import pack_model
from spqfmt.progress import Silent
from spqfmt.quantize.base import MethodOptions, Weight
from spqfmt.quantize.registry import METHODS
from spqfmt.quantize.rtn import round_groups, round_symmetric

MakeModel = Callable[..., SourceModel]
MakeTensor = Callable[..., SourceTensor]


def packed(model: SourceModel, out: Path, *, force: bool = False, **options: Any) -> spqfmt.PackReport:
    return pack_model(model, out, pack_options(**options), force=force, progress=Silent())


def bits_equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Also for NaN."""
    return a.dtype == b.dtype and a.shape == b.shape and bool((to_numpy(a) == to_numpy(b)).all())


@pytest.mark.every_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("codec", ["auto", "raw", "zstd", "rans"])
def test_lossless_keeps_every_bit(
    make_model: MakeModel, tmp_path: Path, dtype: torch.dtype, codec: str
) -> None:
    model = make_model(dtype)
    out = tmp_path / "m.spq"
    report = packed(model, out, codec=codec)
    assert report.file_bytes == out.stat().st_size
    spqfmt.verify(out)
    with spqfmt.open(out) as file:
        assert set(file) == {tensor.name for tensor in model.tensors}
        for tensor in model.tensors:
            assert bits_equal(file.read(tensor.name), tensor.load()), tensor.name
        assert file.assets == {asset.name: asset.data for asset in model.assets}
        assert file.tied == {"head": "embed"}


def test_lossless_keeps_nan_inf_and_minus_zero(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model(torch.float32)
    special = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 1e-45] * 100)
    tensor = model.tensors[1]
    odd = type(tensor)(**{**vars(tensor), "shape": (500,), "load": special.clone})
    model = SourceModel((*model.tensors[:1], odd), model.assets, "", "")
    packed(model, tmp_path / "m.spq")
    with spqfmt.open(tmp_path / "m.spq") as file:
        restored = file.read(odd.name)
    assert restored.numpy().tobytes() == special.numpy().tobytes()


QUANTIZED = [
    {"bits": 8, "granularity": "tensor"},
    {"bits": 8},
    {"bits": 4, "granularity": "row"},
    {"bits": 3, "granularity": "row"},
    {"bits": 2, "granularity": "tensor"},
    {"bits": 8, "group_size": 16},
    {"bits": 4, "group_size": 64},
    {"bits": 3, "group_size": 10},
    {"bits": 2, "group_size": 1000},
]


@pytest.mark.every_backend
@pytest.mark.parametrize("options", QUANTIZED, ids=str)
def test_rtn_stores_exactly_what_the_quantizer_made(
    make_model: MakeModel, tmp_path: Path, options: dict[str, Any]
) -> None:
    model = make_model(torch.float32)
    out = tmp_path / "m.spq"
    packed(model, out, method="rtn", **options)
    spqfmt.verify(out)
    asked = METHODS["rtn"].check(MethodOptions(**options))
    with spqfmt.open(out) as file:
        for tensor in model.tensors:
            weight = Weight(tensor.name, tensor.shape, tensor.dtype, tensor.role, tensor.transposed)
            restored = file.read(tensor.name)
            if tensor.role == "other" or tensor.tied_to:
                continue
            quantized: Any = METHODS["rtn"].quantize(weight, tensor.load(), asked)
            expected = torch.from_numpy(quantized.dequantize())
            expected = expected.t() if tensor.transposed else expected
            assert bits_equal(restored, expected.contiguous()), tensor.name
            assert file[tensor.name].info.scheme in {"uniform", "grouped"}


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("per_row", [True, False])
def test_symmetric_rounding_is_within_half_a_step(bits: int, per_row: bool) -> None:
    matrix = torch.randn(40, 50, generator=torch.Generator().manual_seed(bits))
    matrix[3] = 0
    quantized = round_symmetric(matrix, bits, per_row=per_row)
    step = matrix.abs().amax(1, keepdim=True) if per_row else matrix.abs().max()
    step = step / (2 ** (bits - 1) - 1)
    error = (torch.from_numpy(quantized.dequantize()) - matrix).abs()
    assert (error <= step * 0.5 * (1 + 1e-5)).all()


@pytest.mark.parametrize(("bits", "group_size"), [(2, 8), (3, 16), (4, 7), (8, 64)])
def test_group_rounding_is_within_half_a_step(bits: int, group_size: int) -> None:
    matrix = torch.randn(21, 50, generator=torch.Generator().manual_seed(bits)) + 0.3
    quantized = round_groups(matrix, bits, group_size)
    scale = torch.from_numpy(quantized.scale.values.astype(np.float32))
    step = scale.repeat_interleave(group_size, 1)[:, :50]
    error = (torch.from_numpy(quantized.dequantize()) - matrix).abs()
    # The zero point is rounded, so an end of the range may be another half step away; f16 scales add 2^-11.
    assert (error <= step * (1 + 2.0**-10 * 2**bits)).all()
    assert error.mean() < 0.3 * step.mean()


@pytest.mark.parametrize(
    "method", [{"method": "rtn", "bits": 4, "group_size": 16}, {"method": "ecq", "bits": 7}]
)
@pytest.mark.parametrize("factor", [1e-30, 1e-8, 1.0, 1e6, 1e20])
def test_weights_of_any_magnitude_come_back(
    make_model: MakeModel, tmp_path: Path, method: dict[str, Any], factor: float
) -> None:
    model = make_model(torch.bfloat16)
    value = (torch.randn(129, 37, generator=torch.Generator().manual_seed(1)) * factor).bfloat16()
    tensors = [
        replace(tensor, load=value.clone) if tensor.name == "layers.0.up" else tensor
        for tensor in model.tensors
    ]
    more = {"no_calibration": True} if method["method"] == "ecq" else {}
    packed(replace(model, tensors=tuple(tensors)), tmp_path / "m.spq", **method, **more)
    spqfmt.verify(tmp_path / "m.spq")
    with spqfmt.open(tmp_path / "m.spq") as file:
        assert file["layers.0.up"].info.scheme != "dense"
        off = file.read("layers.0.up").double() - value.double()
    assert (off.norm(dim=1) < 0.12 * value.double().norm(dim=1)).all()


def test_rows_are_the_rows_of_the_whole(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model(torch.float16)
    for options in ({}, {"method": "rtn", "bits": 4, "group_size": 16}):
        packed(model, tmp_path / "m.spq", force=True, **options)
        with spqfmt.open(tmp_path / "m.spq") as file:
            for name in ("embed", "layers.0.up", "layers.0.down", "layers.0.norm", "head"):
                whole = file.read(name)
                for rows in (slice(0, 1), slice(5, 30), slice(-2, None), slice(9, 9), slice(0, 10**6)):
                    assert bits_equal(file.read(name, rows), whole[rows].contiguous()), (name, rows)


def test_rows_decode_only_their_chunks(
    tmp_path: Path, make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    big = torch.randn(6000, 1024, generator=torch.Generator().manual_seed(0)).bfloat16()
    tensor = make_model().tensors[0]
    tensor = type(tensor)(**{**vars(tensor), "shape": tuple(big.shape), "load": big.clone})
    packed(SourceModel((tensor,), (), "", ""), tmp_path / "m.spq")
    with spqfmt.open(tmp_path / "m.spq") as file:
        sizes: list[int] = []
        original = RansParts.read

        def counted(self: RansParts, first: int, out: Any) -> None:
            sizes.append(out.size)
            original(self, first, out)

        monkeypatch.setattr(RansParts, "read", counted)
        rows = file.read("embed", slice(3000, 3001))
        assert bits_equal(rows, big[3000:3001])
        # The exponents of one row; the mantissas are raw, and read from where they lie.
        assert sizes == [1024]


def test_the_same_input_gives_the_same_bytes_with_any_number_of_threads(
    make_model: MakeModel, tmp_path: Path
) -> None:
    contents = set()
    for n in (1, 2, 5):
        with jobs(n):
            packed(make_model(), tmp_path / "m.spq", method="rtn", bits=4, force=True)
        contents.add((tmp_path / "m.spq").read_bytes())
    assert len(contents) == 1


def test_partial_compresses_the_last_of_every_n_chunks(tmp_path: Path, source_tensor: MakeTensor) -> None:
    tensors = tuple(
        source_tensor(f"w{i}", torch.randn(64, 256, generator=torch.Generator().manual_seed(i)))
        for i in range(6)
    )
    model = SourceModel(tensors, (), "", "")
    packed(model, tmp_path / "m.spq", method="rtn", bits=8, partial="every:3")
    report = spqfmt.inspect(tmp_path / "m.spq")
    codecs = [tensor.streams[0].codec for tensor in report.tensors]
    assert codecs == ["raw", "raw", "rans"] * 2
    spqfmt.verify(tmp_path / "m.spq")


def test_shards_hold_the_model_together(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model(torch.float32)
    report = packed(model, tmp_path / "m.spq", shard_size=60_000)
    *shards, index = report.files
    assert index.name == "m.spq.index.json"
    assert len(shards) > 1
    assert [shard.name for shard in shards] == [
        f"m-{k:05d}-of-{len(shards):05d}.spq" for k in range(1, len(shards) + 1)
    ]
    assert all(shard.stat().st_size <= 60_000 for shard in shards)
    spqfmt.verify(index)
    for shard in shards:
        spqfmt.verify(shard)
    with spqfmt.open(index) as file:
        for tensor in model.tensors:
            assert bits_equal(file.read(tensor.name), tensor.load())
        assert file.assets == {asset.name: asset.data for asset in model.assets}
    assert spqfmt.inspect(index).file_bytes == sum(f.stat().st_size for f in report.files)


def test_shards_of_two_packs_do_not_mix(make_model: MakeModel, tmp_path: Path) -> None:
    first = packed(make_model(seed=1), tmp_path / "m.spq", shard_size=30_000)
    other = packed(make_model(seed=2), tmp_path / "o.spq", shard_size=30_000)
    first.files[1].write_bytes(other.files[1].read_bytes())
    with pytest.raises(spqfmt.CorruptError, match=r"m-00002.* is not the file that the index"):
        spqfmt.open(first.files[-1])
    first.files[1].unlink()
    with pytest.raises(FileNotFoundError):
        spqfmt.open(first.files[-1])


def test_report_adds_up_to_the_files_bytes(make_model: MakeModel, tmp_path: Path) -> None:
    packed(make_model(), tmp_path / "m.spq", method="rtn", bits=4)
    report = spqfmt.inspect(tmp_path / "m.spq")
    totals = report.totals
    parts = (
        totals.tensor_bytes, totals.asset_bytes, totals.padding_bytes, totals.index_bytes,
        totals.header_bytes, totals.trailer_bytes,
    )  # fmt: skip
    assert sum(parts) == report.file_bytes == (tmp_path / "m.spq").stat().st_size
    assert totals.padding_bytes >= 0
    assert totals.tensor_bytes == sum(s.stored_bytes for t in report.tensors for s in t.streams)
    for tensor in report.tensors:
        if tensor.n_weights and tensor.entropy_bits_per_weight is not None:
            assert tensor.bits_per_weight >= tensor.entropy_bits_per_weight - 1e-9


def test_eight_bits_per_tensor_cost_little_more_than_their_entropy(
    tmp_path: Path, source_tensor: MakeTensor
) -> None:
    weight = torch.randn(1024, 1024, generator=torch.Generator().manual_seed(0))
    packed(
        SourceModel((source_tensor("w", weight),), (), "", ""),
        tmp_path / "m.spq",
        method="rtn",
        bits=8,
        granularity="tensor",
    )
    info = spqfmt.inspect(tmp_path / "m.spq").tensors[0]
    assert info.entropy_bits_per_weight is not None
    assert 1 <= info.bits_per_weight / info.entropy_bits_per_weight < 1.015


def test_a_large_row_and_one_column(tmp_path: Path, source_tensor: MakeTensor) -> None:
    generator = torch.Generator().manual_seed(0)
    tensors = (
        source_tensor("wide", torch.randn(3, 40_000, generator=generator)),
        source_tensor("tall", torch.randn(40_000, 1, generator=generator)),
        source_tensor("one", torch.randn(1, 1, generator=generator)),
    )
    for bits, group_size in ((8, None), (4, 64), (2, 7)):
        out = tmp_path / "m.spq"
        packed(
            SourceModel(tensors, (), "", ""), out, method="rtn", bits=bits, group_size=group_size, force=True
        )
        spqfmt.verify(out)
        with spqfmt.open(out) as file:
            for tensor in tensors:
                error = (file.read(tensor.name) - tensor.load()).norm() / tensor.load().norm()
                assert error < {8: 0.02, 4: 0.2, 2: 1.0}[bits]


@pytest.mark.parametrize("codec", ["auto", "zstd"])
@pytest.mark.parametrize("shard_size", [None, "64KiB"])
def test_constant_weights_beyond_what_a_file_earns_are_stored_raw_in_part(
    source_tensor: MakeTensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    codec: str,
    shard_size: str | None,
) -> None:
    """The limit of section 9, made small: claims of 64 raw bytes a byte instead of 1024, and no slack."""
    monkeypatch.setattr("spqfmt.wire.EXPANSION_RATIO", 64)
    monkeypatch.setattr("spqfmt.wire.EXPANSION_SLACK_BYTES", 1 << 16)
    tensors = tuple(
        source_tensor(f"w{k}", torch.full((1024, 2048), float(k)), segment=f"{k}") for k in range(4)
    )
    report = packed(SourceModel(tensors, (), "", ""), tmp_path / "m.spq", codec=codec, shard_size=shard_size)
    assert report.file_bytes < report.raw_bytes / 4
    spqfmt.verify(report.files[-1] if shard_size is None else next(tmp_path.glob("*.json")))
    with spqfmt.open(report.files[-1] if shard_size is None else next(tmp_path.glob("*.json"))) as file:
        assert all(bits_equal(file.read(tensor.name), tensor.load()) for tensor in tensors)


@pytest.mark.slow
def test_three_hundred_megabytes_of_one_value(source_tensor: MakeTensor, tmp_path: Path) -> None:
    value = torch.full((150, 1 << 20), 1.0, dtype=torch.bfloat16)
    packed(SourceModel((source_tensor("w", value),), (), "", ""), tmp_path / "m.spq")
    spqfmt.verify(tmp_path / "m.spq")
    with spqfmt.open(tmp_path / "m.spq") as file:
        assert torch.equal(file.read("w"), value)
    assert (tmp_path / "m.spq").stat().st_size < 2 << 20
