"""Method keep on FP8 checkpoints: codes and scales as they are, the library's own values, the same files back."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from coded import Arrays, check_loaded, check_refused, keep, same, write_arrays, write_model
from safetensors.torch import load_file, save_file

import spqfmt
from spqfmt.errors import ImporterError, UnsupportedError
from spqfmt.importers import open_source
from spqfmt.loaders.plan import plan_model
from spqfmt.reading.reference import open_reference
from spqfmt.schemes import group_numbers

AT = "model.layers.0.mlp.up_proj.weight"
BLOCKS = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "activation_scheme": "dynamic",
    "weight_block_size": [128, 128],
}
FP8 = torch.float8_e4m3fn


def compressed(strategy: str, **scheme: Any) -> dict[str, Any]:
    weights = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": strategy, **scheme}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    return {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": groups}


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def blocks(weight: torch.Tensor, rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes, and the scales of blocks that are cut short at the edges."""
    *stack, height, width = weight.shape
    scales = torch.empty(*stack, -(-height // rows), -(-width // columns))
    codes = torch.empty(weight.shape, dtype=FP8)
    for i in range(scales.shape[-2]):
        for j in range(scales.shape[-1]):
            at = (..., slice(i * rows, (i + 1) * rows), slice(j * columns, (j + 1) * columns))
            scale = weight[at].float().abs().amax((-2, -1)) / 448
            scales[..., i, j] = scale
            codes[at] = (weight[at].float() / scale[..., None, None]).to(FP8)
    return codes, scales


def restored(
    codes: torch.Tensor, scales: torch.Tensor, rows: int, columns: int, dtype: torch.dtype
) -> torch.Tensor:
    """What DeepSeek's weight_dequant and transformers' Fp8Dequantize give: code * scale in float32, rounded once."""
    spread = scales.float().repeat_interleave(rows, -2).repeat_interleave(columns, -1)
    return (codes.float() * spread[..., : codes.shape[-2], : codes.shape[-1]]).to(dtype)


@pytest.mark.parametrize("shape", [(256, 128), (192, 320), (40, 16), (130, 129)])
def test_blocks_of_deepseeks_layout(tmp_path: Path, shape: tuple[int, int]) -> None:
    codes, scales = blocks(normal(*shape), 128, 128)
    config = {"dtype": "bfloat16", "quantization_config": BLOCKS}
    path = keep(write_arrays(tmp_path / "source", config, {AT: codes, f"{AT}_scale_inv": scales}))
    with spqfmt.open(path) as file:
        info = file[AT].info
        assert (info.scheme, info.method, info.dtype) == ("grouped", "keep", "bf16")
        assert set(file) == {AT}
        assert same(file.read(AT), restored(codes, scales, 128, 128, torch.bfloat16))
        assert same(file.read(AT, rows=slice(7, 31)), file.read(AT)[7:31])


def test_zeros_keep_their_sign_and_codes_that_are_no_numbers_their_bits(tmp_path: Path) -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(FP8).reshape(16, 16)
    arrays = {AT: codes, f"{AT}_scale_inv": torch.full((1, 1), 3.0)}
    path = keep(write_arrays(tmp_path / "source", {"quantization_config": BLOCKS}, arrays))
    with spqfmt.open(path) as file:
        values = file.read(AT)
    assert values.isnan().sum() == 2
    finite = ~values.isnan()
    assert torch.equal(values[finite], (codes.float() * 3).bfloat16()[finite])
    assert values.view(-1)[128].item() == 0
    assert torch.signbit(values.view(-1)[128])


# config of the quantizer, scales, what a scale is for: rows and columns
SCALES: dict[str, tuple[dict[str, Any], torch.Tensor, tuple[int, int]]] = {
    "of the tensor": (compressed("tensor"), torch.tensor([0.37], dtype=torch.bfloat16), (24, 40)),
    "of the tensor, one number": ({"quant_method": "fp8"}, torch.tensor(0.37), (24, 40)),
    "of rows": (compressed("channel"), normal(24, 1).abs().bfloat16(), (1, 40)),
    "of rows, float16": (compressed("channel"), normal(24, 1).abs().half(), (1, 40)),
    "of rows, float32": (compressed("channel"), normal(24, 1).abs(), (1, 40)),
    "of blocks": (compressed("block", block_structure=[16, 16]), normal(2, 3).abs().bfloat16(), (16, 16)),
    "of 32 columns": (
        {"quant_method": "compressed-tensors", "format": "mxfp8-quantized"},
        torch.arange(112, 160, dtype=torch.uint8).reshape(24, 2),
        (1, 32),
    ),
    "of columns": ({"quant_method": "fbgemm_fp8"}, normal(1, 40).abs(), (24, 1)),
    "powers of two": (BLOCKS, torch.tensor([[-3.0]]).exp2().to(torch.float8_e8m0fnu), (128, 128)),
    "of no config": ({}, normal(3, 5), (8, 8)),
}


@pytest.mark.parametrize("kind", SCALES)
def test_scales_of_other_tiles_and_dtypes(tmp_path: Path, kind: str) -> None:
    """compressed-tensors computes in the dtype of the scales; what is float32 is rounded to the model's dtype."""
    quantizer, scales, tile = SCALES[kind]
    codes = normal(24, 40).mul(100).to(FP8)
    name = f"{AT}_scale" if "compressed" in str(quantizer) else f"{AT}_scale_inv"
    config = {"dtype": "float16", "quantization_config": quantizer}
    path = keep(write_arrays(tmp_path / "source", config, {AT: codes, name: scales}))
    numbers = scales.view(torch.float8_e8m0fnu) if scales.dtype == torch.uint8 else scales
    grid = numbers.float().reshape(-(-24 // tile[0]), -(-40 // tile[1]))
    by_scales = name.endswith("_scale") and scales.dtype in (torch.float16, torch.bfloat16)
    expected = restored(codes, grid, *tile, dtype=scales.dtype if by_scales else torch.float16)
    with spqfmt.open(path) as file:
        assert same(file.read(AT), expected)
    [tensor] = open_source(tmp_path / "source").as_weights().tensors
    assert same(tensor.load(), expected)


def test_scales_multiply_in_their_own_dtype_to_the_same_bits(tmp_path: Path) -> None:
    """As compressed-tensors writes it down: the codes become bfloat16, and the product is rounded to bfloat16."""
    codes, scales = normal(24, 40).mul(100).to(FP8), normal(24, 1).abs().bfloat16()
    config = {"quantization_config": compressed("channel")}
    path = keep(write_arrays(tmp_path / "source", config, {AT: codes, f"{AT}_scale": scales}))
    with spqfmt.open(path) as file:
        assert same(file.read(AT), codes.bfloat16() * scales)


def test_blocks_begin_anew_in_each_expert(tmp_path: Path) -> None:
    name = "model.layers.0.mlp.experts.gate_up_proj"
    codes, scales = blocks(normal(3, 40, 24), 16, 16)
    config = {"quantization_config": {**BLOCKS, "weight_block_size": [16, 16]}}
    source = write_arrays(tmp_path / "source", config, {name: codes, f"{name}_scale_inv": scales})
    expected = restored(codes, scales, 16, 16, torch.bfloat16)
    with spqfmt.open(keep(source)) as file:
        assert same(file.read(name), expected)
    [tensor] = open_source(source).as_weights().tensors
    assert same(tensor.load(), expected)


def test_a_model_loads_with_the_values_of_its_library(tmp_path: Path) -> None:
    expected: Arrays = {}

    def quantize(module: str, weight: torch.Tensor) -> Arrays:
        codes, scales = blocks(weight, 16, 16)
        expected[f"{module}.weight"] = restored(codes, scales, 16, 16, torch.bfloat16)
        return {f"{module}.weight": codes, f"{module}.weight_scale_inv": scales}

    source = tmp_path / "source"
    write_model(source, {**BLOCKS, "weight_block_size": [16, 16]}, quantize)
    path = keep(source)
    check_loaded(path, source, expected)
    assert not plan_model(path).whole
    lossless = tmp_path / "lossless.spq"
    spqfmt.pack(source, lossless, method="lossless")
    assert path.stat().st_size < lossless.stat().st_size * 1.02
    with pytest.raises(UnsupportedError, match="quantized by another format"):
        spqfmt.load_model(lossless)


def test_plain_weights_are_written_without_the_quantizer(tmp_path: Path) -> None:
    codes, scales = blocks(normal(40, 16), 128, 128)
    config = {"quantization_config": BLOCKS, "x": "\u00fc"}
    path = keep(write_arrays(tmp_path / "source", config, {AT: codes, f"{AT}_scale_inv": scales}))
    report = spqfmt.unpack(path, tmp_path / "dense", as_="dense")
    assert report.left_out == {
        "config.json: what it says of a quantizer": "the weights are written as they are decoded"
    }
    assert (tmp_path / "dense" / "config.json").read_text() == '{\n  "x": "\u00fc"\n}\n'


def test_a_repacked_and_a_sharded_file_give_the_same_files(tmp_path: Path) -> None:
    arrays: Arrays = {}
    for k in range(3):
        codes, scales = blocks(normal(64, 48 + k), 16, 16)
        name = AT.replace("layers.0", f"layers.{k}")
        arrays |= {name: codes, f"{name}_scale_inv": scales}
    config = {"quantization_config": {**BLOCKS, "weight_block_size": [16, 16]}}
    source = write_arrays(tmp_path / "source", config, arrays)
    path = tmp_path / "m.spq"
    [*shards, _] = spqfmt.pack(source, path, method="keep", shard_size="4kB").files
    assert len(shards) > 1
    for options in ({"codec": "raw"}, {"partial": "every:3", "shard_size": "1GB"}):
        path = spqfmt.repack(
            tmp_path / "m.spq.index.json", tmp_path / "again.spq", force=True, **options
        ).files[-1]
        assert spqfmt.unpack(path, tmp_path / "out").identical
        for file in (tmp_path / "out").iterdir():
            assert file.read_bytes() == (source / file.name).read_bytes()
            file.unlink()
        (tmp_path / "out").rmdir()


@pytest.mark.parametrize("most_between", [0, 8])
@pytest.mark.parametrize("rows_of_block", [1, 128])
def test_rows_are_sorted_into_classes_where_that_saves_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_of_block: int, most_between: int
) -> None:
    """Every other row is small, so that two tables are better than one: rows are stored in another order.

    Their scales are then read with those between them, or each run of lines on its own.
    """
    monkeypatch.setattr(group_numbers, "_SPARSE", most_between)
    weight = normal(512, 256) * torch.tensor([1.0, 0.01]).repeat(256)[:, None]
    codes, scales = blocks(weight, 128, 256)
    scales = scales.repeat_interleave(128 // rows_of_block, 0)
    quantizer = {**BLOCKS, "weight_block_size": [rows_of_block, 256]}
    source = write_arrays(
        tmp_path / "source", {"quantization_config": quantizer}, {AT: codes, f"{AT}_scale_inv": scales}
    )
    path = keep(source)
    expected = restored(codes, scales, rows_of_block, 256, torch.bfloat16)
    with spqfmt.open(path) as file:
        assert len(file.model.tensors[AT].parameters["class_sizes"]) > 1
        assert same(file.read(AT), expected)
        for rows in (slice(0, 1), slice(3, 40), slice(100, 400), slice(511, 512)):
            assert same(file.read(AT, rows=rows), expected[rows])
    lossless = tmp_path / "lossless.spq"
    spqfmt.pack(source, lossless, method="lossless")
    assert path.stat().st_size < 0.95 * lossless.stat().st_size


def test_stacked_matrices_keep_the_order_of_their_rows(tmp_path: Path) -> None:
    weight = normal(2, 512, 256) * torch.tensor([1.0, 0.01]).repeat(256)[:, None]
    codes, scales = blocks(weight, 128, 128)
    config = {"quantization_config": BLOCKS}
    with spqfmt.open(
        keep(write_arrays(tmp_path / "source", config, {AT: codes, f"{AT}_scale_inv": scales}))
    ) as file:
        assert "channel_order" not in file.model.tensors[AT].by_role


CODES = normal(24, 40).to(FP8)
CONTRADICTIONS: dict[str, tuple[dict[str, Any], Arrays, str]] = {
    "scales of other blocks": (
        BLOCKS,
        {f"{AT}_scale_inv": torch.ones(2, 1)},
        rf"tensor '{AT}_scale_inv' of shape \[2, 1\] does not fit '{AT}' of shape \[24, 40\] in blocks of 128 x 128",
    ),
    "scales of no blocks": (
        {},
        {f"{AT}_scale": torch.ones(7, 3)},
        rf"tensor '{AT}_scale' of shape \[7, 3\] does not fit '{AT}'",
    ),
    "scales of another rank": (
        compressed("channel"),
        {f"{AT}_scale": torch.ones(40)},
        r"_scale' of shape \[40\]",
    ),
    "scales that are integers": (
        {},
        {f"{AT}_scale": torch.ones(1, dtype=torch.int32)},
        rf"tensor '{AT}_scale' .*: scales of i32",
    ),
    "a scale that is no number": (
        BLOCKS,
        {f"{AT}_scale_inv": torch.tensor([[float("nan")]])},
        rf"tensor '{AT}_scale_inv' holds scales that are NaN or infinite; --method lossless",
    ),
    "a scale that is infinite": (
        compressed("tensor"),
        {f"{AT}_scale": torch.tensor([float("inf")])},
        rf"tensor '{AT}_scale' holds scales that are NaN or infinite",
    ),
    "a power of two that is no number": (
        BLOCKS,
        {f"{AT}_scale_inv": torch.full((1, 1), 255, dtype=torch.uint8).view(torch.float8_e8m0fnu)},
        rf"tensor '{AT}_scale_inv' holds scales that are NaN",
    ),
    "another quantizer's config": (
        {"quant_method": "gptq", "bits": 4},
        {f"{AT}_scale": torch.ones(1)},
        rf"tensor '{AT}' is stored as F8_E4M3, but config.json says quant_method 'gptq'",
    ),
    "another format's config": (
        {"quant_method": "compressed-tensors", "format": "pack-quantized"},
        {f"{AT}_scale": torch.ones(1)},
        "but config.json says format pack-quantized",
    ),
    "blocks of no size": (
        {**BLOCKS, "weight_block_size": [0, 128]},
        {f"{AT}_scale_inv": torch.ones(1, 1)},
        r"weight_block_size of quantization is \[0, 128\], not two numbers",
    ),
    "no scale at all": (
        BLOCKS,
        {},
        rf"tensor '{AT}_scale_inv' is missing beside '{AT}'; download the model again",
    ),
    "no scale of compressed-tensors": (
        {"quant_method": "compressed-tensors", "format": "float-quantized"},
        {},
        rf"'{AT}_scale' is missing beside",
    ),
    "no codes": (
        BLOCKS,
        {f"{AT}_scale_inv": torch.ones(1, 1), f"{AT.replace('up', 'down')}_scale_inv": torch.ones(1, 1)},
        rf"tensor '{AT.replace('up', 'down')}' is missing beside",
    ),
    "scales of 64 bits": (
        BLOCKS,
        {f"{AT}_scale_inv": torch.ones(1, 1, dtype=torch.float64)},
        rf"tensor '{AT}_scale_inv' of shape \[1, 1\] does not fit '{AT}' of shape \[24, 40\]: scales of f64; download",
    ),
    "another float": (
        {**BLOCKS, "fmt": "e5m2"},
        {f"{AT}_scale_inv": torch.ones(1, 1)},
        rf"tensor '{AT}' holds F8_E4M3, but config.json says fmt 'e5m2'",
    ),
    "groups of nothing": (
        {"quant_method": "compressed-tensors", "config_groups": [1]},
        {f"{AT}_scale": torch.ones(1)},
        "config_groups of quantization are no objects",
    ),
}


@pytest.mark.parametrize("kind", CONTRADICTIONS)
def test_what_contradicts_itself_is_refused_and_kept_by_lossless(tmp_path: Path, kind: str) -> None:
    quantizer, scales, words = CONTRADICTIONS[kind]
    source = write_arrays(tmp_path / "source", {"quantization_config": quantizer}, {AT: CODES, **scales})
    check_refused(source, words)
    path = tmp_path / "m.spq"
    with pytest.raises(ImporterError, match=words) as refused:
        spqfmt.pack(source, path, method="keep", force=True)
    [note] = spqfmt.pack(source, path, method="lossless", force=True).notes
    by = "fp8" if quantizer == BLOCKS else quantizer.get("quant_method", open_source(source).quantized)
    assert note.startswith(f"quantized already ({by}): no model is loaded from its arrays; --method keep ")
    if "NaN" not in str(refused.value):  # which shows when they are read
        assert note.endswith(f" cannot take its codes: {refused.value}")
    with pytest.raises(ImporterError, match="only --method lossless keeps it as it is"):
        spqfmt.pack(source, tmp_path / "rtn.spq", method="rtn")


def test_what_no_family_knows_stays_an_array(tmp_path: Path) -> None:
    """Asymmetric codes beside symmetric ones: the file gives all back, and no model is made of it."""
    other = AT.replace("up_proj", "down_proj")
    arrays = {AT: CODES, f"{AT}_scale": torch.ones(1), other: CODES, f"{other}_scale": torch.ones(1)}
    arrays[f"{other}_zero_point"] = torch.zeros(1).to(FP8)
    source = write_arrays(tmp_path / "source", {"quantization_config": compressed("tensor")}, arrays)
    path = keep(source)
    assert spqfmt.pack(source, path, method="keep", force=True).notes == (
        "1 tensor is codes in the source (F8_E4M3 with scales of 24 x 40): these are kept",
        f"arrays of a quantizer that keep does not know are stored as they are: {other} and 1 more (because of zero "
        "points of floats); no model is loaded",
    )
    with spqfmt.open(path) as file:
        assert {name: file[name].dtype for name in file} == {
            AT: "bf16", other: "f8_e4m3", f"{other}_scale": "f32", f"{other}_zero_point": "f8_e4m3",
        }  # fmt: skip


def test_arrays_of_a_quantizer_that_nobody_knows_are_left_alone(tmp_path: Path) -> None:
    config = {"quantization_config": {"quant_method": "something_new"}}
    source = write_arrays(tmp_path / "source", config, {AT: CODES, f"{AT}_scale": torch.ones(1)})
    with pytest.raises(ImporterError, match="stores no codes that method keep could keep; --method lossless"):
        spqfmt.pack(source, tmp_path / "m.spq", method="keep")


def test_other_methods_say_that_keep_keeps_the_codes(tmp_path: Path) -> None:
    arrays = {AT: CODES, f"{AT}_scale": torch.ones(1)}
    source = write_arrays(tmp_path / "source", {"quantization_config": compressed("tensor")}, arrays)
    with pytest.raises(
        ImporterError, match="only --method lossless keeps it as it is, and --method keep its codes"
    ):
        spqfmt.pack(source, tmp_path / "m.spq", method="rtn")
    [note] = spqfmt.pack(source, tmp_path / "m.spq", method="lossless").notes
    assert note.startswith(
        "quantized already (compressed-tensors): no model is loaded from its arrays; --method keep"
    )


def test_codes_are_kept_where_no_method_is_named(tmp_path: Path) -> None:
    """Unless arrays are left that nobody takes apart: then all are stored as they are."""
    arrays = {AT: CODES, f"{AT}_scale": torch.ones(1)}
    config = {"quantization_config": compressed("tensor")}
    source = write_arrays(tmp_path / "source", config, arrays)
    assert spqfmt.pack(source, tmp_path / "m.spq").notes == (
        "1 tensor is codes in the source (F8_E4M3 with scales of 24 x 40): these are kept",
    )
    other = AT.replace("up_proj", "down_proj")
    more = {other: CODES, f"{other}_scale": torch.ones(1), f"{other}_zero_point": torch.zeros(1).to(FP8)}
    source = write_arrays(tmp_path / "asymmetric", config, arrays | more)
    spqfmt.pack(source, tmp_path / "m.spq", force=True)
    with spqfmt.open(tmp_path / "m.spq") as file:
        assert set(file) == {*arrays, *more}


DOWN = AT.replace("up_proj", "down_proj")
# Arrays of an FP8 config that are packed as they are, and what keep would do.
NOT_KEPT: dict[str, tuple[Arrays, str]] = {
    "vectors alone": (
        {AT: CODES[0], f"{AT}_scale_inv": torch.ones(1)},
        f"cannot take its codes: {AT}_scale_inv and what lies beside are of no kind that it knows",
    ),
    "zero points": (
        {
            AT: CODES,
            f"{AT}_scale_inv": torch.ones(1, 1),
            DOWN: CODES,
            f"{DOWN}_scale_inv": torch.ones(1, 1),
            f"{DOWN}_zero_point": CODES[:1],
        },
        f"takes its codes, but not {DOWN} and 1 more (because of zero points of floats), and no model is loaded then "
        "either",
    ),
}


@pytest.mark.parametrize("kind", NOT_KEPT)
def test_a_pack_says_why_no_codes_were_kept(tmp_path: Path, kind: str) -> None:
    arrays, why = NOT_KEPT[kind]
    source = write_arrays(tmp_path / "source", {"quantization_config": BLOCKS}, arrays)
    said = f"quantized already (fp8): no model is loaded from its arrays; --method keep {why}"
    for options in ({}, {"method": "lossless"}):
        assert spqfmt.pack(source, tmp_path / "m.spq", force=True, **options).notes == (said,)


def test_weights_that_load_are_not_said_to_be_refused(tmp_path: Path) -> None:
    """Floats of 8 bits that nothing scales are numbers, and floats whose config has a quantizer's file are no codes."""
    source = write_arrays(tmp_path / "source", {}, {AT: CODES})
    assert not spqfmt.pack(source, tmp_path / "m.spq").notes
    source = write_arrays(tmp_path / "floats", {}, {AT: torch.ones(4, 4)})
    (source / "quantize_config.json").write_text("{}")
    assert not spqfmt.pack(source, tmp_path / "m.spq", force=True).notes


def test_codes_and_scales_may_lie_in_different_shards(tmp_path: Path) -> None:
    codes, scales = blocks(normal(256, 192), 128, 128)
    source = tmp_path / "source"
    source.mkdir()
    names = {AT: "model-00001-of-00002.safetensors", f"{AT}_scale_inv": "model-00002-of-00002.safetensors"}
    for (name, file), value in zip(names.items(), (codes, scales), strict=True):
        save_file({name: value, f"{name}.more": torch.ones(3)}, source / file)
        names = {**names, f"{name}.more": file}
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    (source / "config.json").write_text(json.dumps({"quantization_config": BLOCKS}))
    with spqfmt.open(keep(source)) as file:
        assert same(file.read(AT), restored(codes, scales, 128, 128, torch.bfloat16))


@pytest.mark.parametrize("method", ["keep", "lossless"])
def test_a_file_is_compared_with_the_folder_as_weights_or_as_arrays(tmp_path: Path, method: str) -> None:
    codes, scales = blocks(normal(40, 16), 128, 128)
    config = {"quantization_config": BLOCKS}
    source = write_arrays(tmp_path / "source", config, {AT: codes, f"{AT}_scale_inv": scales})
    path = tmp_path / "m.spq"
    spqfmt.pack(source, path, method=method)
    with open_reference(source) as reference, spqfmt.open(path) as file:
        for name in file:
            [reader] = file.model.readers
            record = file.model.tensors[name]
            assert reference.shape(name) == record.shape
            assert reference.beside(name, reader, record).relative == 0


def test_a_part_of_a_pipeline_keeps_its_codes(tmp_path: Path) -> None:
    codes, scales = blocks(normal(256, 128), 128, 128)
    source = tmp_path / "source"
    source.mkdir()
    (source / "model_index.json").write_text(
        json.dumps({"_class_name": "P", "text": ["x", "Y"], "vae": ["x", "Z"]})
    )
    write_arrays(source / "text", {"quantization_config": BLOCKS}, {AT: codes, f"{AT}_scale_inv": scales})
    write_arrays(source / "vae", {}, {"conv.weight": normal(4, 3, 2, 2)})
    with spqfmt.open(keep(source)) as file:
        assert set(file) == {f"text/{AT}", "vae/conv.weight"}
        assert same(file.read(f"text/{AT}"), restored(codes, scales, 128, 128, torch.bfloat16))


def test_one_file_of_weights_keeps_its_codes_too(tmp_path: Path) -> None:
    codes, scales = blocks(normal(256, 128), 128, 128)
    source = write_arrays(tmp_path / "source", {}, {AT: codes, f"{AT}_scale_inv": scales})
    spqfmt.pack(source / "model.safetensors", tmp_path / "m.spq", method="keep")
    assert spqfmt.unpack(tmp_path / "m.spq", tmp_path / "out").identical
    with spqfmt.open(tmp_path / "m.spq") as file:
        assert same(file.read(AT), restored(codes, scales, 128, 128, torch.bfloat16))


def _byte(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.uint8)


# Arrays that stand for a weight of [out, in] where no config says so, by their last names.
LEFT_ALONE: dict[str, Callable[[int, int], Arrays]] = {
    "fp8": lambda r, c: {"weight": torch.ones(r, c).to(FP8), "weight_scale_inv": torch.full((1, 1), 0.5)},
    "compressed-tensors or fp8": lambda r, c: {
        "weight": torch.ones(r, c).to(FP8), "weight_scale": torch.full((r, 1), 0.5),
    },
    "gptq or awq": lambda r, c: {
        "qweight": torch.zeros(c // 8, r, dtype=torch.int32), "scales": torch.ones(1, r),
    },
    "nvfp4": lambda r, c: {
        "weight": _byte(r, c // 2), "weight_scale": torch.ones(r, c // 16).to(FP8), "weight_scale_2": torch.ones(()),
    },
    "model.layers.0.self_attn.q_proj.weight_blocks is u8": lambda r, c: {
        "weight_blocks": _byte(1, r, 1, 16), "weight_scales_": _byte(1, r, 1),
    },
    "model.layers.0.self_attn.q_proj.weight is i8": lambda r, c: {"weight": torch.zeros(r, c, dtype=torch.int8)},
}  # fmt: skip


@pytest.mark.parametrize("by", LEFT_ALONE)
def test_arrays_of_a_quantizer_are_no_weights_even_where_no_config_says_so(tmp_path: Path, by: str) -> None:
    import transformers

    def quantize(module: str, weight: torch.Tensor) -> Arrays:
        rows, columns = weight.shape
        return {f"{module}.{name}": value for name, value in LEFT_ALONE[by](rows, columns).items()}

    source = tmp_path / "source"
    write_model(source, {}, quantize)
    path = tmp_path / "m.spq"
    spqfmt.pack(source, path, method="lossless")
    words = re.escape(f"its tensors are quantized by another format ({by}), of which its config.json says")
    spqfmt.unpack(path, packed := tmp_path / "packed", keep_packed=True)
    loads: list[Callable[[], object]] = [
        lambda: spqfmt.load_model(path),
        lambda: spqfmt.load_model(path, packed=True),
        lambda: plan_model(path),
        lambda: transformers.AutoModelForCausalLM.from_pretrained(packed),
        lambda: transformers.AutoModelForCausalLM.from_pretrained(packed, memory="1GiB"),
    ]
    for load in loads:
        with pytest.raises(UnsupportedError, match=words):
            load()
    assert spqfmt.unpack(path, tmp_path / "out").identical


def test_what_is_left_beside_kept_codes_is_no_weight_either(tmp_path: Path) -> None:
    """One scale is missing, and no config says that there was one; floats of 8 bits without any are numbers."""
    lacks = "model.layers.1.mlp.up_proj"

    def quantize(module: str, weight: torch.Tensor) -> Arrays:
        codes, scales = blocks(weight, 16, 16)
        return {f"{module}.weight": codes} | (
            {} if module == lacks else {f"{module}.weight_scale_inv": scales}
        )

    write_model(tmp_path / "source", {}, quantize)
    path = keep(tmp_path / "source")
    with pytest.raises(
        UnsupportedError, match=rf"\({lacks}.weight is f8_e4m3\), of which its config.json says"
    ):
        spqfmt.load_model(path)
    write_model(tmp_path / "bare", {}, lambda module, weight: {f"{module}.weight": weight.to(FP8)})
    assert not spqfmt.pack(tmp_path / "bare", path, force=True).notes
    weights = load_file(tmp_path / "bare" / "model.safetensors")
    loaded = spqfmt.load_model(path, packed=False)[0].state_dict()
    assert torch.equal(loaded[f"{lacks}.weight"], weights[f"{lacks}.weight"].to(torch.bfloat16))
