"""Method keep on optimum-quanto: bytes with the library's values, codes of less within one rounding, the same files."""

from pathlib import Path
from typing import Any

import grids
import pytest
import torch
from coded import Arrays, check_loaded, check_refused, keep, same, write_arrays, write_model

import spqfmt
from spqfmt.errors import ImporterError
from spqfmt.importers import open_source
from spqfmt.loaders.plan import plan_model

AT = "model.layers.0.mlp.up_proj.weight"


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def unpacked(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """As its unpack does: the lowest bits of all bytes first."""
    mask = (1 << bits) - 1
    return torch.cat([(packed >> shift) & mask for shift in range(0, 8, bits)])


def library(arrays: Arrays, bits: int, shape: tuple[int, ...], name: str = AT) -> torch.Tensor:
    """As its QBitsDequantizer does, each operation in the dtype of the scales."""
    codes, scales, shift = (arrays[f"{name}.{end}"] for end in ("_data._data", "_scale", "_shift"))
    data = unpacked(codes, bits)
    if not shift.is_floating_point():
        return (scales * (data.to(torch.int8) - shift)).reshape(shape)
    return (scales * data - shift).reshape(shape)


def restored(arrays: Arrays, bits: int, shape: tuple[int, ...], name: str = AT) -> torch.Tensor:
    """The same in float32, rounded once."""
    wide = {key: value.float() if value.is_floating_point() else value for key, value in arrays.items()}
    return library(wide, bits, shape, name).to(arrays[f"{name}._scale"].dtype)


@pytest.mark.parametrize("dtype", [torch.int8, *grids.FLOATS], ids=str)
@pytest.mark.parametrize("shape", [(24, 40), (8, 4, 3, 3)])
@pytest.mark.parametrize("of", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_codes_of_a_byte(tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...], of: torch.dtype) -> None:
    arrays = grids.quanto_bytes(AT, normal(*shape).to(of), dtype)
    path = keep(write_arrays(tmp_path / "source", {}, arrays))
    with spqfmt.open(path) as file:
        assert set(file) == {AT}
        assert same(file.read(AT), arrays[f"{AT}._scale"] * arrays[f"{AT}._data"].to(of))


def test_a_scale_for_the_whole_tensor(tmp_path: Path) -> None:
    arrays = grids.quanto_bytes(AT, normal(24, 40))
    arrays[f"{AT}._scale"] = torch.tensor(0.01)
    path = keep(write_arrays(tmp_path / "source", {}, arrays))
    with spqfmt.open(path) as file:
        assert same(file.read(AT), torch.tensor(0.01) * arrays[f"{AT}._data"].float())


@pytest.mark.parametrize("is_rounded", [False, True])
@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("columns", [100, 256])
def test_codes_of_less_than_a_byte(tmp_path: Path, columns: int, bits: int, is_rounded: bool) -> None:
    """Rows of 256 columns are cut into groups of 128; that these are two of a row stands in the config alone."""
    shape = (24, columns)
    arrays = grids.quanto_bits(AT, normal(*shape).bfloat16(), bits, is_rounded=is_rounded)
    path = keep(write_arrays(tmp_path / "source", llama(columns, 24), arrays))
    expected = restored(arrays, bits, shape)
    with spqfmt.open(path) as file:
        assert set(file) == {AT}
        assert same(file.read(AT), expected)
    [tensor] = open_source(tmp_path / "source").as_weights().tensors
    assert same(tensor.load(), expected)
    # Each rounds its result, and the library the product before.
    products = arrays[f"{AT}._scale"].float() * unpacked(arrays[f"{AT}._data._data"], bits)
    most = (products.reshape(shape) + 2 * expected.float().abs()) * (0 if is_rounded else 2**-8)
    assert ((library(arrays, bits, shape).float() - expected.float()).abs() <= most).all()


def llama(columns: int, rows: int) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": columns,
        "intermediate_size": rows,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 90,
        "dtype": "bfloat16",
    }


@pytest.mark.parametrize("kind", ["int8", "float8", "int4", "int2"])
def test_a_model_loads_with_the_values_of_its_library(tmp_path: Path, kind: str) -> None:
    expected: Arrays = {}

    def quantize(module: str, weight: torch.Tensor) -> Arrays:
        name = f"{module}.weight"
        if kind in ("int8", "float8"):
            arrays = grids.quanto_bytes(name, weight, getattr(torch, kind.replace("float8", "float8_e4m3fn")))
            expected[name] = arrays[f"{name}._scale"] * arrays[f"{name}._data"].to(weight.dtype)
        else:
            arrays = grids.quanto_bits(name, weight, int(kind[3:]))
            expected[name] = restored(arrays, int(kind[3:]), tuple(weight.shape), name)
        return arrays

    source = tmp_path / "source"
    write_model(source, {}, quantize)
    (source / "quanto_qmap.json").write_text('{"model.layers.0.mlp.up_proj": {"weights": "q"}}')
    path = keep(source)
    assert len(expected) == 14
    check_loaded(path, source, expected)
    assert not plan_model(path).whole


BITS = grids.quanto_bits(AT, normal(24, 256).bfloat16(), 4)
BYTES = grids.quanto_bytes(AT, normal(24, 40).bfloat16())
CONTRADICTIONS: dict[str, tuple[dict[str, Any], Arrays, str]] = {
    "scales of other rows": (
        {},
        BYTES | {f"{AT}._scale": torch.ones(23, 1)},
        rf"tensor '{AT}._scale' of shape \[23, 1\] does not fit '{AT}._data' of shape \[24, 40\]",
    ),
    "scales of columns": (
        {},
        BYTES | {f"{AT}._scale": torch.ones(1, 24)},
        rf"tensor '{AT}._scale' of shape \[1, 24\] does not fit '{AT}._data' of shape \[24, 40\]",
    ),
    "scales that are integers": (
        {},
        BYTES | {f"{AT}._scale": torch.ones(24, 1, dtype=torch.int32)},
        rf"tensor '{AT}._scale' of shape \[24, 1\] does not fit .*scales of i32",
    ),
    "a scale that is no number": (
        {},
        BYTES | {f"{AT}._scale": torch.full((24, 1), torch.nan)},
        rf"tensor '{AT}._scale' holds scales that are NaN",
    ),
    "scales of codes of other bits": (
        llama(256, 24),
        BITS | {f"{AT}._scale": torch.ones(24 * 8, 1).bfloat16()},
        rf"tensor '{AT}._scale' of shape \[192, 1\] does not fit '{AT}._data._data' of shape \[24, 128\]",
    ),
    "no scales": (
        {"quantization_config": {"quant_method": "quanto"}},
        {f"{AT}._data": BYTES[f"{AT}._data"]},
        rf"tensor '{AT}._scale' is missing beside '{AT}._data'",
    ),
    "codes in one row": (
        {"quantization_config": {"quant_method": "quanto"}},
        BYTES | {f"{AT}._data": BYTES[f"{AT}._data"].reshape(-1)},
        rf"tensor '{AT}._scale' of shape \[24, 1\] does not fit '{AT}._data' of shape \[960\]",
    ),
    "codes of another dtype": (
        {"quantization_config": {"quant_method": "quanto"}},
        BYTES | {f"{AT}._data": BYTES[f"{AT}._data"].short()},
        rf"tensor '{AT}._scale' .* does not fit '{AT}._data' .*: codes of i16",
    ),
    "no shift": (
        llama(256, 24),
        {name: value for name, value in BITS.items() if not name.endswith("_shift")},
        rf"tensor '{AT}._shift' is missing beside '{AT}._data._data'",
    ),
    "a shift of another dtype": (
        llama(256, 24),
        BITS | {f"{AT}._shift": BITS[f"{AT}._shift"].float()},
        rf"tensor '{AT}._shift' of shape \[48, 1\] does not fit '{AT}._scale'",
    ),
    "a shift that is no number": (
        llama(256, 24),
        BITS | {f"{AT}._shift": torch.full((48, 1), torch.inf).bfloat16()},
        rf"tensor '{AT}._shift' holds scales that are NaN or infinite",
    ),
    "a config of another shape": (
        llama(256, 48),
        BITS,
        rf"tensor '{AT}._data._data' holds 48 x 128 codes, but by config.json '{AT}' is 48 x 256",
    ),
    "a config of another quantizer": (
        {"quantization_config": {"quant_method": "hqq"}},
        BYTES,
        rf"'{AT}._data' is stored as codes of quanto, but config.json says quant_method 'hqq'",
    ),
}


@pytest.mark.parametrize("kind", CONTRADICTIONS)
def test_what_contradicts_itself_is_refused_and_kept_by_lossless(tmp_path: Path, kind: str) -> None:
    config, arrays, words = CONTRADICTIONS[kind]
    source = write_arrays(tmp_path / "source", config, arrays)
    check_refused(source, words)


LEFT: dict[str, tuple[dict[str, Any], Arrays, str]] = {
    "no shape": ({}, BITS, "groups, where no model"),
    "a model that nobody knows": ({"model_type": "of tomorrow"}, BITS, "groups, where no model"),
    "zero points below zero": (
        llama(256, 24),
        BITS | {f"{AT}._shift": torch.full((48, 1), -1, dtype=torch.int8)},
        "zero points below zero",
    ),
    "half a byte is no weight's": (
        {},
        grids.quanto_bits(AT, normal(24, 100), 4) | {f"{AT}._scale": torch.ones(23, 1)},
        "lines that fill no whole bytes",
    ),
}


@pytest.mark.parametrize("kind", LEFT)
def test_what_cannot_be_told_or_held_is_left_as_arrays(tmp_path: Path, kind: str) -> None:
    config, arrays, why = LEFT[kind]
    source = write_arrays(tmp_path / "source", config, arrays)
    with pytest.raises(ImporterError, match="stores no codes that method keep could keep"):
        spqfmt.pack(source, tmp_path / "m.spq", method="keep")
    notes = spqfmt.pack(source, tmp_path / "m.spq").notes
    assert any(f"because of {why}" in note for note in notes), notes
    assert spqfmt.unpack(tmp_path / "m.spq", tmp_path / "out").identical
