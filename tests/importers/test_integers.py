"""Method keep on integer codes of compressed-tensors: its values, the same files back, products from the codes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from coded import Arrays, check_refused, keep, same, write_arrays, write_model

import spqfmt
from spqfmt.errors import ImporterError
from spqfmt.loaders.plan import plan_model

AT = "model.layers.0.mlp.up_proj.weight"


def compressed(form: str, bits: int, size: int | None = 32, **said: Any) -> dict[str, Any]:
    strategy = "channel" if size is None else "group"
    weights = {
        "num_bits": bits,
        "type": "int",
        "symmetric": True,
        "strategy": strategy,
        "group_size": size,
        **said,
    }
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": groups}


def random(low: int, high: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape) + high)
    return torch.randint(low, high, shape, generator=generator).to(torch.int8)


def packed(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """As compressed-tensors' pack_to_int32 does: codes from 0, the first in the lowest bits of a word."""
    per_word = 32 // bits
    words = (codes.long() + (1 << (bits - 1))).reshape(len(codes), -1, per_word)
    words = (words << (bits * torch.arange(per_word))).sum(-1)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)


def restored(codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None = None) -> torch.Tensor:
    """As its dequantize does: codes and zero points in the dtype of the scales, and the product in it."""
    rows, columns = codes.shape
    values = codes.to(scales.dtype)
    spread = [x.reshape(-1, x.shape[-1]).repeat_interleave(columns // x.shape[-1], 1) for x in (scales,)]
    if zeros is not None:
        values = values - zeros.to(scales.dtype).repeat_interleave(columns // zeros.shape[-1], 1).expand_as(
            values
        )
    return values * spread[0].expand(rows, columns)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("is_asymmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_packed_codes(
    tmp_path: Path, bits: int, is_asymmetric: bool, groups: int, dtype: torch.dtype
) -> None:
    low, high = -(1 << (bits - 1)), 1 << (bits - 1)
    codes, scales = random(low, high, 32, 96), torch.rand(32, groups).add(0.01).to(dtype)
    zeros = random(low, high, 32, groups) if is_asymmetric else None
    arrays = {
        f"{AT}_packed": packed(codes, bits),
        f"{AT}_scale": scales,
        f"{AT}_shape": torch.tensor([32, 96]),
    }
    if zeros is not None:
        arrays[f"{AT}_zero_point"] = packed(zeros.T.contiguous(), bits).T
    config = {
        "quantization_config": compressed("pack-quantized", bits, 96 // groups, symmetric=zeros is None)
    }
    path = keep(write_arrays(tmp_path / "source", config, arrays))
    with spqfmt.open(path) as file:
        assert set(file) == {AT}
        assert same(file.read(AT), restored(codes, scales, zeros))


@pytest.mark.parametrize("shape", [(24, 1), (1,), (1, 1)])
@pytest.mark.parametrize("is_asymmetric", [False, True])
def test_codes_of_a_byte(tmp_path: Path, is_asymmetric: bool, shape: tuple[int, ...]) -> None:
    codes, scales = random(-128, 128, 24, 40), torch.rand(shape).add(0.01).bfloat16()
    zeros = random(-128, 128, *shape) if is_asymmetric else None
    arrays = {AT: codes, f"{AT}_scale": scales}
    if zeros is not None:
        arrays[f"{AT}_zero_point"] = zeros
    config = {
        "quantization_config": compressed(
            "int-quantized",
            8,
            strategy="channel" if len(shape) == 2 and shape[0] > 1 else "tensor",
            symmetric=zeros is None,
        )
    }
    path = keep(write_arrays(tmp_path / "source", config, arrays))
    grid = (-1, 1)
    zeros = None if zeros is None else zeros.reshape(grid)
    with spqfmt.open(path) as file:
        assert same(file.read(AT), restored(codes, scales.reshape(grid), zeros))


@pytest.mark.parametrize("is_asymmetric", [False, True])
def test_a_model_computes_from_its_codes(tmp_path: Path, is_asymmetric: bool) -> None:
    expected: Arrays = {}

    def quantize(module: str, weight: torch.Tensor) -> Arrays:
        rows, columns = weight.shape
        groups = weight.float().reshape(rows, -1, 16)
        low, high = groups.amin(-1), groups.amax(-1)
        scales = ((high - low) / 15 if is_asymmetric else groups.abs().amax(-1) / 7).bfloat16()
        zeros = (-8 - low / scales.float()).round().clamp(-8, 7).to(torch.int8) if is_asymmetric else None
        shift = 0 if zeros is None else zeros.float()[..., None]
        codes = (groups / scales.float()[..., None] + shift).round().clamp(-8, 7).to(torch.int8).flatten(1)
        expected[f"{module}.weight"] = restored(codes, scales, zeros)
        arrays = {
            f"{module}.weight_packed": packed(codes, 4),
            f"{module}.weight_scale": scales,
            f"{module}.weight_shape": torch.tensor([rows, columns]),
        }
        return arrays if zeros is None else arrays | {f"{module}.weight_zero_point": packed(zeros.T, 4).T}

    source = tmp_path / "source"
    write_model(source, compressed("pack-quantized", 4, 16, symmetric=not is_asymmetric), quantize)
    path = keep(source)
    model, _ = spqfmt.load_model(path, packed=False)
    state = model.state_dict()
    assert all(same(state[name], value) for name, value in expected.items())
    assert not plan_model(path).whole
    inputs = torch.arange(20)[None]
    with torch.inference_mode():
        logits = model(inputs).logits.float()
        computed = spqfmt.load_model(path, packed=True)[0](inputs).logits.float()
    assert torch.allclose(logits, computed, atol=0.05 * float(logits.std()))


CODES, SCALES = random(-8, 8, 32, 96), torch.ones(32, 3).bfloat16()
WORDS, SHAPE = packed(CODES, 4), torch.tensor([32, 96])
PLAIN = {f"{AT}_packed": WORDS, f"{AT}_scale": SCALES, f"{AT}_shape": SHAPE}
CONTRADICTIONS: dict[str, tuple[str, Arrays, str]] = {
    "scales of other groups": (
        "pack-quantized",
        {f"{AT}_packed": WORDS, f"{AT}_scale": SCALES[:, :1].repeat(1, 5), f"{AT}_shape": SHAPE},
        rf"tensor '{AT}_scale' of shape \[32, 5\] does not fit '{AT}_packed' of shape \[32, 12\]",
    ),
    "another shape": (
        "pack-quantized",
        {f"{AT}_packed": WORDS, f"{AT}_scale": SCALES, f"{AT}_shape": torch.tensor([31, 96])},
        rf"tensor '{AT}_shape' of shape \[2\] does not fit '{AT}_packed' .* as it says \[31, 96\]",
    ),
    "zero points of other rows": (
        "pack-quantized",
        {
            f"{AT}_packed": WORDS,
            f"{AT}_scale": SCALES,
            f"{AT}_shape": SHAPE,
            f"{AT}_zero_point": torch.zeros(3, 3, dtype=torch.int32),
        },
        rf"tensor '{AT}_zero_point' of shape \[3, 3\] does not fit",
    ),
    "a scale that is no number": (
        "int-quantized",
        {AT: CODES, f"{AT}_scale": torch.full((32, 3), torch.nan).bfloat16()},
        rf"tensor '{AT}_scale' holds scales that are NaN",
    ),
    "another format": (
        "nvfp4-pack-quantized",
        {f"{AT}_packed": WORDS, f"{AT}_scale": SCALES, f"{AT}_shape": SHAPE},
        "but config.json says format nvfp4-pack-quantized",
    ),
    "words of other bits": (
        "pack-quantized",
        PLAIN | {f"{AT}_packed": WORDS[:, :6]},
        rf"tensor '{AT}_shape' .* does not fit '{AT}_packed' of shape \[32, 6\] .*, and config.json says 4 bits",
    ),
    "larger groups": (
        "pack-quantized",
        PLAIN | {f"{AT}_scale": SCALES[:, :2]},
        rf"tensor '{AT}_scale' of shape \[32, 2\] does not fit .* \[32, 96\], and config.json says groups of 32",
    ),
    "one group": (
        "pack-quantized",
        PLAIN | {f"{AT}_scale": SCALES[:, :1]},
        rf"tensor '{AT}_scale' of shape \[32, 1\] does not fit .*, and config.json says groups of 32",
    ),
    "a shape of floats": (
        "pack-quantized",
        PLAIN | {f"{AT}_shape": SHAPE.double()},
        rf"tensor '{AT}_shape' is of f64, not i64",
    ),
    "no scales": (
        "pack-quantized",
        {f"{AT}_packed": WORDS, f"{AT}_shape": SHAPE},
        rf"tensor '{AT}_scale' is missing beside '{AT}_packed'",
    ),
    "no shape": (
        "pack-quantized",
        {f"{AT}_packed": WORDS, f"{AT}_scale": SCALES},
        rf"tensor '{AT}_shape' is missing beside '{AT}_packed'",
    ),
    "bytes without scales": ("int-quantized", {AT: CODES}, rf"tensor '{AT}_scale' is missing beside '{AT}'"),
    "words of another dtype": (
        "pack-quantized",
        PLAIN | {f"{AT}_packed": WORDS.short()},
        rf"tensor '{AT}_packed' of i16 and shape \[32, 12\] is no matrix of i32",
    ),
    "scales of integers": (
        "pack-quantized",
        PLAIN | {f"{AT}_scale": SCALES.int()},
        rf"tensor '{AT}_scale' .* does not fit '{AT}_packed' .*: scales of i32",
    ),
    "zero points of symmetric codes": (
        "int-quantized",
        {AT: CODES, f"{AT}_scale": SCALES, f"{AT}_zero_point": torch.ones(32, 3).char()},
        rf"tensor '{AT}_zero_point' holds zero points, but config.json says symmetric true",
    ),
    "zero points of floats": (
        "int-quantized",
        {AT: CODES, f"{AT}_scale": SCALES, f"{AT}_zero_point": SCALES.half()},
        rf"tensor '{AT}_zero_point' is of f16, not i8",
    ),
}


def test_zero_points_of_nothing_are_taken_with_symmetric_codes(tmp_path: Path) -> None:
    arrays = {AT: CODES, f"{AT}_scale": SCALES, f"{AT}_zero_point": torch.zeros(32, 3).char()}
    config = {"quantization_config": compressed("int-quantized", 4)}
    with spqfmt.open(keep(write_arrays(tmp_path / "source", config, arrays))) as file:
        assert same(file.read(AT), restored(CODES, SCALES))


@pytest.mark.parametrize("kind", CONTRADICTIONS)
def test_what_contradicts_itself_is_refused_and_kept_by_lossless(tmp_path: Path, kind: str) -> None:
    form, arrays, words = CONTRADICTIONS[kind]
    source = write_arrays(tmp_path / "source", {"quantization_config": compressed(form, 4)}, arrays)
    check_refused(source, words)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"num_bits": 0}, rf"'{AT}_packed': config.json says num_bits 0, which is none"),
        ({"num_bits": "x"}, rf"'{AT}_packed': config.json says num_bits 'x', which is none"),
        ({"num_bits": 8}, rf"'{AT}_shape' .* and config.json says 8 bits"),
        ({"num_bits": 64}, rf"'{AT}_shape' .* and config.json says 64 bits"),
        ({"group_size": "x"}, rf"'{AT}_packed': config.json says group_size 'x', which is none"),
        ({"group_size": None}, rf"'{AT}_packed': config.json says group_size None, which is none"),
        ({"group_size": 64}, rf"'{AT}_scale' .* and config.json says groups of 64"),
        (
            {"strategy": "channel", "group_size": None},
            rf"'{AT}_scale' .* and config.json says strategy channel",
        ),
        ({"strategy": ["group"]}, rf"'{AT}_scale' .* and config.json says strategy"),
        ({"type": "float"}, rf"'{AT}_shape' .* and config.json says no bits of integers"),
        ({"symmetric": False}, rf"tensor '{AT}_zero_point' is missing, but config.json says symmetric false"),
        ({"actorder": "group"}, rf"tensor '{AT}_g_idx' is missing, but config.json says actorder group"),
    ],
    ids=str,
)
def test_a_config_that_says_something_else_is_refused(
    tmp_path: Path, said: dict[str, Any], words: str
) -> None:
    config = {"quantization_config": compressed("pack-quantized", 4, **said)}
    source = write_arrays(tmp_path / "source", config, PLAIN)
    with pytest.raises(ImporterError, match=words) as raised:
        spqfmt.pack(source, tmp_path / "m.spq", method="keep")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "other", [{"num_bits": 8, "group_size": 16}, {"type": "float"}, {"actorder": "group"}, None], ids=str
)
def test_some_group_of_a_config_says_what_the_arrays_are(
    tmp_path: Path, other: dict[str, Any] | None
) -> None:
    said = compressed("pack-quantized", 4)
    first = said["config_groups"].pop("group_0")
    weights = None if other is None else first["weights"] | other
    said["config_groups"] = {"group_0": first | {"weights": weights}, "group_1": first}
    path = keep(write_arrays(tmp_path / "source", {"quantization_config": said}, PLAIN))
    with spqfmt.open(path) as file:
        assert same(file.read(AT), restored(CODES, SCALES))


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"config_groups": {}}, "has no config_groups"),
        ({"config_groups": []}, "its config_groups of quantization are no objects"),
        ({"format": "nonsense"}, "its format 'nonsense' of compressed-tensors is none that is known"),
    ],
    ids=["no groups", "a list", "a format"],
)
def test_a_config_that_says_nothing_known_is_refused(
    tmp_path: Path, more: dict[str, Any], words: str
) -> None:
    said = compressed("pack-quantized", 4) | more
    source = write_arrays(tmp_path / "source", {"quantization_config": said}, PLAIN)
    check_refused(source, words)


@pytest.mark.parametrize(
    ("bits", "arrays"),
    [
        (3, {f"{AT}_packed": WORDS[:, :10], f"{AT}_shape": SHAPE}),
        (4, {f"{AT}_packed": packed(random(-8, 8, 32, 104), 4), f"{AT}_shape": torch.tensor([32, 100])}),
        (4, {f"{AT}_packed": WORDS, f"{AT}_shape": SHAPE, f"{AT}_g_idx": torch.arange(96).int()}),
    ],
    ids=["3 bits", "rows that fill no words", "columns in another order"],
)
def test_codes_that_would_not_come_back_are_left_alone(tmp_path: Path, bits: int, arrays: Arrays) -> None:
    config = {"quantization_config": compressed("pack-quantized", bits)}
    source = write_arrays(tmp_path / "source", config, {**arrays, f"{AT}_scale": torch.ones(32, 1)})
    with pytest.raises(ImporterError, match="stores no codes that method keep could keep"):
        spqfmt.pack(source, tmp_path / "m.spq", method="keep")
