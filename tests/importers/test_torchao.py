"""Method keep on torchao: tensors of its classes taken apart in safetensors, its values, the same files."""

import json
import re
from pathlib import Path

import pytest
import tensor_classes as ao
import torch
from coded import Arrays, check_loaded, check_refused, keep, same, write_arrays, write_model

import spqfmt
from spqfmt.errors import ImporterError
from spqfmt.importers import open_source
from spqfmt.loaders.plan import plan_model

STEM = "model.layers.0.mlp.up_proj"
AT = f"{STEM}.weight"
DATA = f"{STEM}._weight_qdata"
TORCHAO = {"quantization_config": {"quant_method": "torchao", "quant_type": {}}, "dtype": "bfloat16"}


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def restored(arrays: Arrays, metadata: dict[str, str], name: str = AT) -> torch.Tensor:
    """As its _dequantize_affine and _dequantize_affine_float8 do; Int4Tensor as its kernel's description says."""
    said = json.loads(metadata[name])
    stem = name.removesuffix("weight")
    data, scale = arrays[f"{stem}_weight_qdata"], arrays[f"{stem}_weight_scale"]
    zero = arrays.get(f"{stem}_weight_zero_point")
    if said["_type"] == "Int4Tensor":
        codes = torch.stack([data << 4 >> 4, data >> 4], -1).flatten(-2).float()
        size = said["_data"]["block_size"][-1]
        scale, zero = (
            x.transpose(-1, -2).repeat_interleave(size, -1).float()
            for x in (scale, arrays[f"{stem}_weight_zero_point"])
        )
        return (codes * scale + zero).to(arrays[f"{stem}_weight_scale"].dtype)
    dtype = getattr(torch, said["_data"]["dtype"]["_data"])
    rows, columns = data.shape[-2] // scale.shape[-2], data.shape[-1] // scale.shape[-1]

    def spread(x: torch.Tensor) -> torch.Tensor:
        return x.repeat_interleave(rows, -2).repeat_interleave(columns, -1)

    if said["_type"] == "Float8Tensor":
        return (data.float() * spread(scale)).to(dtype)
    return ((data.to(dtype) - spread(zero).to(dtype)) * spread(scale)).to(dtype)


KINDS = {
    "int8 by rows": lambda w: ao.int8(AT, w),
    "int8 in groups": lambda w: ao.int8(AT, w, (1, 32)),
    "int8 in tiles": lambda w: ao.int8(AT, w, (8, 32)),
    "int8 as a whole": lambda w: ao.int8(AT, w, w.shape),
    **{f"int{bits} in groups": lambda w, bits=bits: ao.intx(AT, w, bits, 32) for bits in range(1, 9)},
    "int4 by rows": lambda w: ao.intx(AT, w, 4),
    "float8 by rows": lambda w: ao.float8(AT, w),
    "float8 as a whole": lambda w: ao.float8(AT, w, w.shape),
    "float8 in tiles": lambda w: ao.float8(AT, w, (8, 32)),
    "float8 of five bits of exponent": lambda w: ao.float8(AT, w, dtype=torch.float8_e5m2),
    "Int4Tensor": lambda w: ao.int4(AT, w, 32),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_tensors_of_its_classes(tmp_path: Path, kind: str, dtype: torch.dtype) -> None:
    arrays, metadata = KINDS[kind](normal(24, 96).to(dtype))
    path = keep(write_arrays(tmp_path / "source", TORCHAO, arrays, metadata | {"format": "pt"}))
    expected = restored(arrays, metadata)
    with spqfmt.open(path) as file:
        assert set(file) == {AT}
        assert same(file.read(AT), expected)
    [tensor] = open_source(tmp_path / "source").as_weights().tensors
    assert same(tensor.load(), expected)


def test_experts(tmp_path: Path) -> None:
    name = "model.layers.0.mlp.experts.gate_up_proj"
    arrays, metadata = ao.int4(name, normal(3, 8, 64).bfloat16(), 32)
    path = keep(write_arrays(tmp_path / "source", TORCHAO, arrays, metadata))
    wide = {key.replace("gate_up_proj", "weight"): value for key, value in arrays.items()}
    data, scale, zero = wide.values()
    codes = torch.stack([data << 4 >> 4, data >> 4], -1).flatten(-2).float()
    scale, zero = (x.transpose(1, 2).repeat_interleave(32, 2).float() for x in (scale, zero))
    with spqfmt.open(path) as file:
        assert same(file.read(name), (codes * scale + zero).bfloat16())


def test_zero_points_that_are_not_there(tmp_path: Path) -> None:
    arrays, metadata = ao.int8(AT, normal(24, 96).bfloat16())
    zeros = arrays.pop(f"{STEM}._weight_zero_point")
    path = keep(write_arrays(tmp_path / "source", TORCHAO, arrays, metadata))
    with spqfmt.open(path) as file:
        assert same(file.read(AT), restored(arrays | {f"{STEM}._weight_zero_point": zeros}, metadata))


@pytest.mark.parametrize(("block", "shape"), [((1, 96), (24,)), ((24, 96), ()), ((24, 96), (1,))])
def test_scales_may_lack_dimensions_of_one(
    tmp_path: Path, block: tuple[int, int], shape: tuple[int, ...]
) -> None:
    arrays, metadata = ao.int8(AT, normal(24, 96).bfloat16(), block)
    expected = restored(arrays, metadata)
    flat = {name: value if name == DATA else value.reshape(shape) for name, value in arrays.items()}
    path = keep(write_arrays(tmp_path / "source", TORCHAO, flat, metadata))
    with spqfmt.open(path) as file:
        assert same(file.read(AT), expected)


@pytest.mark.parametrize("kind", ["int8", "int4", "float8", "Int4Tensor"])
def test_a_model_loads_with_the_values_of_its_library(tmp_path: Path, kind: str) -> None:
    expected: Arrays = {}
    metadata = {"format": "pt"}

    def quantize(module: str, weight: torch.Tensor) -> Arrays:
        name = f"{module}.weight"
        make = {"int8": ao.int8, "float8": ao.float8}.get(kind)
        if make is not None:
            arrays, said = make(name, weight)
        else:
            arrays, said = ao.intx(name, weight, 4, 16) if kind == "int4" else ao.int4(name, weight, 16)
        metadata.update(said)
        expected[name] = restored(arrays, said, name)
        return arrays

    source = tmp_path / "source"
    write_model(source, TORCHAO["quantization_config"], quantize, metadata=metadata)  # type: ignore[arg-type]
    path = keep(source)
    assert len(expected) == 14
    check_loaded(path, source, expected)
    assert not plan_model(path).whole
    if kind == "int4":  # a code takes a byte in the source
        assert path.stat().st_size < 0.65 * (source / "model.safetensors").stat().st_size


INT8, SAID = ao.int8(AT, normal(24, 96).bfloat16())
INT4, SAID4 = ao.intx(AT, normal(24, 96).bfloat16(), 4, 32)
PACKED, SAID_PACKED = ao.int4(AT, normal(24, 96).bfloat16(), 32)
SCALE, ZERO = f"{STEM}._weight_scale", f"{STEM}._weight_zero_point"


def saying(said: dict[str, str], **changed: object) -> dict[str, str]:
    """The metadata with some attributes changed."""
    found = json.loads(said[AT])
    return {AT: json.dumps({**found, "_data": {**found["_data"], **changed}})}


CONTRADICTIONS: dict[str, tuple[Arrays, dict[str, str], str]] = {
    "codes in one row": (
        INT8 | {DATA: INT8[DATA].reshape(-1)},
        SAID,
        rf"tensor '{DATA}' of i8 and shape \[2304\] is no matrix of Int8Tensor",
    ),
    "codes of another dtype": (
        INT8 | {DATA: INT8[DATA].short()},
        SAID,
        rf"tensor '{DATA}' of i16 and shape .* is no matrix of Int8Tensor",
    ),
    "metadata that is cut short": (
        INT8,
        {AT: SAID[AT][:30]},
        rf"tensor '{AT}': the metadata of its file is no JSON",
    ),
    "metadata without attributes": (INT8, {AT: "{}"}, rf"tensor '{AT}': the metadata of its file is no JSON"),
    "scales of other rows": (
        INT8 | {SCALE: torch.ones(23, 1)},
        SAID,
        rf"tensor '{SCALE}' of shape \[23, 1\] does not fit '{DATA}' of shape \[24, 96\] in blocks of 1 x 96",
    ),
    "blocks of another size": (
        INT8,
        saying(SAID, block_size=[1, 32]),
        rf"tensor '{SCALE}' .* in blocks of 1 x 32",
    ),
    "blocks that do not divide": (
        INT8,
        saying(SAID, block_size=[1, 40]),
        rf"tensor '{AT}': blocks of \[1, 40\] do not",
    ),
    "blocks of nothing": (
        INT8,
        saying(SAID, block_size=[0, 96]),
        rf"tensor '{AT}': blocks of \[0, 96\] do not",
    ),
    "blocks of a line": (INT8, saying(SAID, block_size=[96]), rf"tensor '{AT}': blocks of \[96\] do not"),
    "zero points of other rows": (
        INT8 | {ZERO: torch.zeros(5, 1, dtype=torch.int8)},
        SAID,
        rf"tensor '{ZERO}' of shape \[5, 1\] does not fit",
    ),
    "no scales": (
        {name: value for name, value in INT8.items() if name != SCALE},
        SAID,
        rf"tensor '{SCALE}' is missing beside '{DATA}'",
    ),
    "scales of integers": (
        INT8 | {SCALE: torch.ones(24, 1, dtype=torch.int32)},
        SAID,
        rf"tensor '{SCALE}' .* scales of i32",
    ),
    "a scale that is no number": (
        INT8 | {SCALE: torch.full((24, 1), torch.nan)},
        SAID,
        rf"tensor '{SCALE}' holds scales that are NaN",
    ),
    "codes of more bits": (
        INT4 | {DATA: torch.full((24, 96), 8, dtype=torch.int8)},
        SAID4,
        rf"tensor '{DATA}' holds 8, more than codes of 4 bits can be",
    ),
    "zero points of more bits": (
        INT4 | {ZERO: torch.full((24, 3), -9, dtype=torch.int8)},
        SAID4,
        rf"tensor '{ZERO}' holds -9, more than codes of 4 bits can be",
    ),
    "another shape of packed codes": (
        PACKED,
        saying(SAID_PACKED, shape=[24, 48]),
        rf"tensor '{SCALE}' .* whose weight is said to be \[24, 48\]",
    ),
    **{
        f"{what} of packed codes the other way round": (
            PACKED | {name: PACKED[name].t()},
            SAID_PACKED,
            rf"tensor '{name}' of shape \[24, 3\] does not fit '{DATA}' of shape \[24, 48\] in blocks of 1 x 32: "
            r"\[3, 24\] are due",
        )
        for what, name in {"scales": SCALE, "what is added": ZERO}.items()
    },
    "packed codes to which nothing is added": (
        {name: value for name, value in PACKED.items() if name != ZERO},
        SAID_PACKED,
        rf"tensor '{ZERO}' is missing beside '{DATA}'",
    ),
    "packed codes in blocks of rows": (
        PACKED,
        saying(SAID_PACKED, block_size=[2, 16]),
        rf"tensor '{AT}': blocks of \[2, 16\] are none of Int4Tensor",
    ),
    **{
        f"as many blocks of {block[0]} rows": (
            INT8,
            saying(SAID, block_size=block),
            rf"tensor '{SCALE}' of shape \[24, 1\] does not fit .* {block[0]} x {block[1]}: .* are due",
        )
        for block in ([2, 48], [24, 4])
    },
    "zero points of another grid": (
        INT8 | {ZERO: torch.zeros(1, 24, dtype=torch.int8)},
        SAID,
        rf"tensor '{ZERO}' of shape \[1, 24\] does not fit .*: \[24, 1\] are due",
    ),
    **{
        f"a dtype that is {json.dumps(dtype)}": (
            INT8,
            saying(SAID, dtype=dtype),
            rf"tensor '{AT}' is said to have dtype {re.escape(json.dumps(dtype))}; download",
        )
        for dtype in (
            "bfloat16",
            5,
            {"_type": "torch.dtype", "_data": "nope"},
            {"_type": "torch.dtype", "_data": "int8"},
            {"_type": "torch.device", "_data": "bfloat16"},
        )
    },
    "codes of which nothing is said": (
        INT8,
        {},
        rf"tensor '{DATA}': the file's metadata does not say which class",
    ),
    "what is added is no number": (
        PACKED | {ZERO: torch.full((3, 24), torch.inf).bfloat16()},
        SAID_PACKED,
        rf"tensor '{ZERO}' holds scales that are NaN or infinite",
    ),
}


@pytest.mark.parametrize("kind", CONTRADICTIONS)
def test_what_contradicts_itself_is_refused_and_kept_by_lossless(tmp_path: Path, kind: str) -> None:
    arrays, metadata, words = CONTRADICTIONS[kind]
    source = write_arrays(tmp_path / "source", TORCHAO, arrays, metadata)
    check_refused(source, words)


def test_a_config_of_another_quantizer_is_refused(tmp_path: Path) -> None:
    config = {"quantization_config": {"quant_method": "gptq"}}
    source = write_arrays(tmp_path / "source", config, INT8, SAID)
    with pytest.raises(
        ImporterError, match=rf"'{DATA}' is stored as codes of torchao, but config.json says quant_m"
    ):
        spqfmt.pack(source, tmp_path / "m.spq", method="keep")


LEFT: dict[str, tuple[Arrays, dict[str, str], str]] = {
    "a class of GPUs": (
        INT8,
        {AT: SAID[AT].replace("Int8Tensor", "Int4TilePackedTo4dTensor")},
        "Int4TilePackedTo4dTensor of torchao",
    ),
    "a class of tomorrow": (
        INT8,
        {AT: SAID[AT].replace("Int8Tensor", "Int9Tensor")},
        "Int9Tensor of torchao",
    ),
    "scales of inputs": (
        INT8 | {f"{STEM}._weight_act_pre_scale": torch.ones(96)},
        SAID,
        "torchao's scales of inputs",
    ),
    "weights of doubles": (
        INT8,
        saying(SAID, dtype={"_type": "torch.dtype", "_data": "float64"}),
        "weights of float64",
    ),
    "zero points of floats": (INT8 | {ZERO: torch.zeros(24, 1)}, SAID, "zero points of f32"),
}


@pytest.mark.parametrize("kind", LEFT)
def test_what_is_not_known_is_left_as_arrays_and_a_pack_says_why(tmp_path: Path, kind: str) -> None:
    arrays, metadata, why = LEFT[kind]
    source = write_arrays(tmp_path / "source", TORCHAO, arrays, metadata)
    report = spqfmt.pack(source, tmp_path / "m.spq")
    assert any(f"because of {why}" in note for note in report.notes), report.notes
    assert spqfmt.unpack(tmp_path / "m.spq", tmp_path / "out").identical
