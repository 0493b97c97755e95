"""Method keep on MXFP4 and NVFP4: two codes a byte, scales of eight bits, the library's own values, the same files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from coded import Arrays, check_loaded, check_refused, keep, same, write_arrays, write_model
from safetensors.torch import load_file, save_file

import spqfmt
from spqfmt.errors import ImporterError
from spqfmt.importers import open_source
from spqfmt.loaders.plan import plan_model

MODULE = "model.layers.0.mlp.up_proj"
EXPERTS = "model.layers.0.mlp.experts.gate_up_proj"
NUMBERS = torch.tensor(
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0]
)


def compressed(form: str, size: int, strategy: str) -> dict[str, Any]:
    weights = {"num_bits": 4, "type": "float", "symmetric": True, "strategy": strategy, "group_size": size}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights, "format": form}}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": groups}


MXFP4 = compressed("mxfp4-pack-quantized", 32, "group")
NVFP4 = compressed("nvfp4-pack-quantized", 16, "tensor_group")
MODELOPT = {"quant_method": "modelopt", "quant_algo": "NVFP4"}


def random_bytes(*shape: int, low: int = 0, high: int = 256) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randint(low, high, shape, generator=generator).to(torch.uint8)


def unpacked(stored: torch.Tensor) -> torch.Tensor:
    """What each half of a byte stands for, the low one first."""
    return torch.stack([NUMBERS[(stored & 15).long()], NUMBERS[(stored >> 4).long()]], -1).flatten(-2)


def gpt_oss(blocks: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """As transformers' convert_moe_packed_tensors writes it down: numbers times powers of two, exact, and turned."""
    numbers = torch.ldexp(unpacked(blocks), (scales.int() - 127)[..., None])
    return numbers.flatten(-2).transpose(1, 2).contiguous().to(dtype)


def mxfp4(packed: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """As compressed-tensors writes it down: all in bfloat16."""
    powers = 2.0 ** (scales.int() - 127).bfloat16()
    return (unpacked(packed).bfloat16().unflatten(-1, (-1, 32)) * powers[..., None]).flatten(-2)


def nvfp4(packed: torch.Tensor, scales: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """As compressed-tensors writes it down: scales in bfloat16 by a float32, which makes float32, then bfloat16."""
    scale = scales.bfloat16() / whole
    numbers = unpacked(packed).bfloat16().unflatten(-1, (-1, 16))
    return (numbers.to(scale.dtype) * scale[..., None]).flatten(-2).bfloat16()


def quantized(weight: torch.Tensor, group: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Bytes of the nearest numbers for groups that are scaled to at most 6, and these scales as float32."""
    groups = weight.float().unflatten(-1, (-1, group))
    scales = groups.abs().amax(-1) / 6
    nearest = (groups / scales[..., None]).flatten(-2)[..., None].sub(NUMBERS).abs()
    codes = nearest.argmin(-1).to(torch.uint8)
    codes[(weight < 0) & (codes == 0)] = 8
    return codes[..., 0::2] | codes[..., 1::2] << 4, scales


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def nvfp4_arrays(weight: torch.Tensor, name: str) -> Arrays:
    whole = (6 * 448 / weight.float().abs().max()).reshape(1)
    _, scales = quantized(weight, 16)
    packed, _ = quantized(weight, 16)
    return {
        f"{name}.weight_packed": packed,
        f"{name}.weight_scale": (scales * whole).to(torch.float8_e4m3fn),
        f"{name}.weight_global_scale": whole,
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_experts_of_gpt_oss(tmp_path: Path, dtype: torch.dtype) -> None:
    blocks, scales = random_bytes(3, 8, 2, 16), random_bytes(3, 8, 2, low=100, high=150)
    config = {"dtype": str(dtype)[6:], "quantization_config": {"quant_method": "mxfp4"}}
    source = write_arrays(
        tmp_path / "source", config, {f"{EXPERTS}_blocks": blocks, f"{EXPERTS}_scales": scales}
    )
    expected = gpt_oss(blocks, scales, dtype)
    with spqfmt.open(keep(source)) as file:
        assert set(file) == {EXPERTS}
        record = file.model.tensors[EXPERTS]
        assert (record.shape, record.transposed) == ((3, 64, 8), True)
        assert [(stream.role, stream.dtype) for stream in record.streams] == [
            ("codes", "f4_e2m1"),
            ("scales", "f8_e8m0"),
        ]
        assert same(file.read(EXPERTS), expected)
        assert (torch.signbit(expected) & (expected == 0)).any()
    [tensor] = open_source(source).as_weights().tensors
    assert same(tensor.load(), expected)


@pytest.mark.parametrize("columns", [64, 48])
def test_mxfp4_of_compressed_tensors(tmp_path: Path, columns: int) -> None:
    packed = random_bytes(24, columns // 2)
    scales = random_bytes(24, -(-columns // 32), low=100, high=150)
    arrays = {f"{MODULE}.weight_packed": packed, f"{MODULE}.weight_scale": scales}
    path = keep(write_arrays(tmp_path / "source", {"quantization_config": MXFP4}, arrays))
    whole = torch.nn.functional.pad(packed, (0, scales.shape[1] * 16 - packed.shape[1]))
    with spqfmt.open(path) as file:
        assert same(file.read(f"{MODULE}.weight"), mxfp4(whole, scales)[:, :columns])


@pytest.mark.parametrize("factor", [1.0, 3.0, 1234.5678, 2688 / 0.07])
def test_nvfp4_of_compressed_tensors_divides(tmp_path: Path, factor: float) -> None:
    """Every code with every scale; what a multiplication by the reciprocal would change is stored as quotients."""
    scales = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).reshape(16, 16)
    scales = torch.where(scales.float().isnan(), torch.ones(()), scales.float()).to(torch.float8_e4m3fn)
    packed = random_bytes(16, 1).repeat(1, 128).add(torch.arange(128)).to(torch.uint8)
    arrays = {
        f"{MODULE}.weight_packed": packed,
        f"{MODULE}.weight_scale": scales,
        f"{MODULE}.weight_global_scale": torch.tensor([factor]),
    }
    path = keep(write_arrays(tmp_path / "source", {"quantization_config": NVFP4, "dtype": "float16"}, arrays))
    expected = nvfp4(packed, scales, torch.tensor([factor]))
    with spqfmt.open(path) as file:
        assert same(file.read(f"{MODULE}.weight"), expected)


def test_quotients_are_levels_where_the_reciprocal_gives_other_values(tmp_path: Path) -> None:
    """The product of a code and a scale lies between two bfloat16s, and only the quotient is rounded up."""
    everything = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    factors = np.arange(1 << 20, dtype=np.uint32) * np.uint32(8) + np.float32(1).view(np.uint32)
    factors = factors.view(np.float32)
    quotient, product = np.float32(1.125) / factors, np.float32(1.125) * (np.float32(1) / factors)
    rounded = [torch.from_numpy(x).bfloat16() for x in (quotient, product)]
    [at, *_] = torch.nonzero(rounded[0] != rounded[1]).flatten().tolist()
    whole = torch.tensor([float(factors[at])])
    scales = everything[:120].reshape(8, 15).to(torch.float8_e4m3fn)
    packed = random_bytes(8, 120)
    packed[:, 0] = 2
    arrays = {
        f"{MODULE}.weight_packed": packed,
        f"{MODULE}.weight_scale": scales,
        f"{MODULE}.weight_global_scale": whole,
    }
    path = keep(write_arrays(tmp_path / "source", {"quantization_config": NVFP4}, arrays))
    with spqfmt.open(path) as file:
        assert "scale_levels" in file.model.tensors[f"{MODULE}.weight"].by_role
        assert same(file.read(f"{MODULE}.weight"), nvfp4(packed, scales, whole))


def test_nvfp4_of_modelopt_multiplies(tmp_path: Path) -> None:
    packed, scales = random_bytes(8, 24), torch.rand(8, 3).mul(400).to(torch.float8_e4m3fn)
    whole = torch.tensor(0.00123)
    arrays = {
        f"{MODULE}.weight": packed,
        f"{MODULE}.weight_scale": scales,
        f"{MODULE}.weight_scale_2": whole,
        f"{MODULE}.input_scale": torch.tensor(0.5),
    }
    config = {"quantization_config": MODELOPT, "dtype": "float16"}
    path = keep(write_arrays(tmp_path / "source", config, arrays))
    numbers = unpacked(packed).unflatten(-1, (-1, 16)) * (scales.float() * whole)[..., None]
    with spqfmt.open(path) as file:
        assert set(file) == {f"{MODULE}.weight", f"{MODULE}.input_scale"}
        assert same(file.read(f"{MODULE}.weight"), numbers.flatten(-2).half())


@pytest.mark.parametrize("kind", ["mxfp4", "nvfp4"])
def test_a_model_loads_with_the_values_of_its_library(tmp_path: Path, kind: str) -> None:
    expected: Arrays = {}

    def quantize(module: str, weight: torch.Tensor) -> Arrays:
        # 176 columns are no multiple of 32.
        if weight.shape[1] % 32:
            return {f"{module}.weight": weight}
        if kind == "nvfp4":
            arrays = nvfp4_arrays(weight, module)
            expected[f"{module}.weight"] = nvfp4(*arrays.values())
            return arrays
        packed, scales = quantized(weight, 32)
        exponents = scales.log2().ceil().add(127).to(torch.uint8)
        expected[f"{module}.weight"] = mxfp4(packed, exponents)
        return {f"{module}.weight_packed": packed, f"{module}.weight_scale": exponents}

    source = tmp_path / "source"
    write_model(source, NVFP4 if kind == "nvfp4" else MXFP4, quantize)
    path = keep(source)
    check_loaded(path, source, expected)
    assert not plan_model(path).whole
    lossless = tmp_path / "lossless.spq"
    spqfmt.pack(source, lossless, method="lossless")
    assert path.stat().st_size < lossless.stat().st_size


def test_gpt_oss_loads_with_the_values_of_transformers(tmp_path: Path) -> None:
    config = transformers.GptOssConfig(
        hidden_size=64, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        head_dim=32, num_local_experts=3, num_experts_per_tok=2, vocab_size=90, pad_token_id=0,
        layer_types=["sliding_attention", "full_attention"],
    )  # fmt: skip
    source = tmp_path / "source"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformers.GptOssForCausalLM(config).bfloat16().save_pretrained(source)
    arrays, expected = {}, {}
    for name, value in load_file(source / "model.safetensors").items():
        if not name.endswith(("gate_up_proj", "down_proj")):
            arrays[name] = value
            continue
        packed, scales = quantized(value.transpose(1, 2), 32)
        blocks, exponents = packed.unflatten(-1, (-1, 16)), scales.log2().ceil().add(127).to(torch.uint8)
        arrays |= {f"{name}_blocks": blocks, f"{name}_scales": exponents}
        expected[name] = gpt_oss(blocks, exponents, torch.bfloat16)
    assert len(expected) == 4
    save_file(arrays, source / "model.safetensors")
    file = source / "config.json"
    quantizer = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    file.write_text(json.dumps({**json.loads(file.read_text()), "quantization_config": quantizer}))
    check_loaded(keep(source), source, expected)


PACKED, SCALES = random_bytes(8, 32), random_bytes(8, 2, low=100, high=150)
E4M3 = torch.ones(8, 4).to(torch.float8_e4m3fn)
NO_NUMBER = torch.full((8, 4), torch.nan).to(torch.float8_e4m3fn)
ONE = torch.ones(1)


def of_module(**arrays: torch.Tensor) -> Arrays:
    return {f"{MODULE}.{name}": value for name, value in arrays.items()}


def with_weights(quantizer: dict[str, Any], **said: object) -> dict[str, Any]:
    return quantizer | {"config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "float", **said}}}}


CONTRADICTIONS: dict[str, tuple[dict[str, Any], Arrays, str]] = {
    "mxfp4 that the config gives other bits and groups": (
        with_weights(MXFP4, num_bits=3, group_size=48),
        of_module(weight_packed=PACKED, weight_scale=SCALES),
        rf"'{MODULE}.weight_packed' is stored as MXFP4, but config.json says num_bits 3, group_size 48; download",
    ),
    "nvfp4 that the config calls integers": (
        with_weights(NVFP4, type="int"),
        of_module(weight_packed=PACKED, weight_scale=E4M3, weight_global_scale=ONE),
        rf"'{MODULE}.weight_packed' is stored as NVFP4, but config.json says type 'int'; download both again",
    ),
    "blocks and scales": (
        {"quant_method": "mxfp4"},
        {f"{EXPERTS}_blocks": random_bytes(2, 4, 2, 16), f"{EXPERTS}_scales": random_bytes(2, 4, 3)},
        rf"tensor '{EXPERTS}_scales' of shape \[2, 4, 3\] does not fit '{EXPERTS}_blocks' of shape \[2, 4, 2, 16\]",
    ),
    "an exponent that is no number": (
        {"quant_method": "mxfp4"},
        {
            f"{EXPERTS}_blocks": random_bytes(1, 4, 2, 16),
            f"{EXPERTS}_scales": torch.full((1, 4, 2), 255).byte(),
        },
        rf"tensor '{EXPERTS}_scales' holds scales that are NaN",
    ),
    "mxfp4 of another group": (
        MXFP4,
        of_module(weight_packed=PACKED, weight_scale=random_bytes(8, 4)),
        rf"tensor '{MODULE}.weight_scale' of shape \[8, 4\] does not fit '{MODULE}.weight_packed' of shape \[8, 32\]",
    ),
    "mxfp4 that the config calls nvfp4": (
        NVFP4,
        of_module(weight_packed=PACKED, weight_scale=SCALES),
        rf"'{MODULE}.weight_packed' is stored as MXFP4, but config.json says format nvfp4-pack-quantized",
    ),
    "nvfp4 that the config calls mxfp4": (
        MXFP4,
        of_module(weight_packed=PACKED, weight_scale=E4M3, weight_global_scale=ONE),
        rf"'{MODULE}.weight_packed' is stored as NVFP4, but config.json says format mxfp4-pack-quantized",
    ),
    "nvfp4 of another group": (
        NVFP4,
        of_module(weight_packed=PACKED, weight_scale=E4M3[:, :2], weight_global_scale=ONE),
        rf"tensor '{MODULE}.weight_scale' of shape \[8, 2\] does not fit",
    ),
    "nvfp4 with a number for each row": (
        NVFP4,
        of_module(weight_packed=PACKED, weight_scale=E4M3, weight_global_scale=torch.ones(8)),
        rf"tensor '{MODULE}.weight_global_scale' of shape \[8\] does not fit",
    ),
    "a division by nothing": (
        NVFP4,
        of_module(weight_packed=PACKED, weight_scale=E4M3, weight_global_scale=torch.zeros(1)),
        rf"tensor '{MODULE}.weight_global_scale' holds a scale of 0.0; --method lossless keeps it",
    ),
    "no exponents": (
        {"quant_method": "mxfp4"},
        {f"{EXPERTS}_blocks": random_bytes(2, 8, 2, 16)},
        rf"tensor '{EXPERTS}_scales' is missing beside '{EXPERTS}_blocks'",
    ),
    "exponents of another dtype": (
        {"quant_method": "mxfp4"},
        {f"{EXPERTS}_blocks": random_bytes(2, 8, 2, 16), f"{EXPERTS}_scales": torch.ones(2, 8, 2)},
        rf"tensor '{EXPERTS}_scales' of shape \[2, 8, 2\] does not fit '{EXPERTS}_blocks' .*: u8 and f32",
    ),
    "exponents of other groups": (
        {"quant_method": "mxfp4"},
        {f"{EXPERTS}_blocks": random_bytes(2, 8, 2, 16), f"{EXPERTS}_scales": random_bytes(2, 8, 3)},
        rf"tensor '{EXPERTS}_scales' of shape \[2, 8, 3\] does not fit '{EXPERTS}_blocks' of shape \[2, 8, 2, 16\]",
    ),
    "no number for the whole": (
        NVFP4,
        of_module(weight_packed=PACKED, weight_scale=E4M3),
        rf"tensor '{MODULE}.weight_global_scale' is missing beside '{MODULE}.weight_packed'",
    ),
    "scales of another dtype": (
        NVFP4,
        of_module(weight_packed=PACKED, weight_scale=E4M3.float(), weight_global_scale=ONE),
        rf"tensor '{MODULE}.weight_scale' .* does not fit '{MODULE}.weight_packed' .*: u8 and f32",
    ),
    "a number that is none": (
        NVFP4,
        of_module(weight_packed=PACKED, weight_scale=E4M3, weight_global_scale=torch.tensor([torch.nan])),
        rf"tensor '{MODULE}.weight_global_scale' holds scales that are NaN",
    ),
    "a scale that is no number": (
        NVFP4,
        of_module(
            weight_packed=PACKED,
            weight_scale=(E4M3.float() * torch.nan).to(E4M3.dtype),
            weight_global_scale=ONE,
        ),
        rf"tensor '{MODULE}.weight_scale' holds scales that are NaN",
    ),
}


@pytest.mark.parametrize("kind", CONTRADICTIONS)
def test_what_contradicts_itself_is_refused_and_kept_by_lossless(tmp_path: Path, kind: str) -> None:
    quantizer, arrays, words = CONTRADICTIONS[kind]
    source = write_arrays(tmp_path / "source", {"quantization_config": quantizer}, arrays)
    check_refused(source, words)


@pytest.mark.parametrize(
    "arrays",
    [
        {f"{EXPERTS}_blocks": random_bytes(4, 2, 16), f"{EXPERTS}_scales": random_bytes(4, 2)},
        of_module(weight_packed=PACKED.view(torch.int32), weight_scale=torch.ones(8, 2)),
        of_module(weight_packed=PACKED, weight_scale=SCALES, weight_zero_point=SCALES),
    ],
    ids=["blocks of one matrix", "codes of integers", "asymmetric"],
)
def test_arrays_that_only_look_like_it_are_left_alone(tmp_path: Path, arrays: Arrays) -> None:
    source = write_arrays(tmp_path / "source", {}, arrays)
    with pytest.raises(ImporterError, match="stores no codes that method keep could keep; --method lossless"):
        spqfmt.pack(source, tmp_path / "m.spq", method="keep")


# The largest error against a matrix's largest weight, and how many matrices fill groups and words.
FROM_THE_TOOL = {
    "fp8": (1 / 16, 14),
    "mxfp4": (1 / 3, 12),
    "nvfp4": (1 / 4, 14),
    "nf4": (1 / 4, 14),
    "nf4-nested": (1 / 4, 14),
    "fp4": (1 / 4, 14),
    "llm-int8": (1 / 127, 14),
    "gptq": (1 / 10, 12),
    "gptq-3": (1 / 6, 8),
    "gptq-8": (1 / 100, 12),
    "gptq-act-order": (1 / 10, 12),
    "awq": (1 / 10, 12),
}


@pytest.mark.parametrize("layout", FROM_THE_TOOL)
def test_what_the_tool_writes_is_kept_and_near_to_the_weights(
    tmp_path: Path, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import quantized as tool
    import tiny

    # Scales of GPTQ and AWQ are f16, and so are their models.
    dtype = torch.float16 if layout.startswith(("gptq", "awq")) else torch.bfloat16
    tiny.build("llama", tmp_path / "plain", dtype=dtype)
    source = tmp_path / "source"
    monkeypatch.setattr("sys.argv", ["quantized.py", str(tmp_path / "plain"), str(source), layout])
    tool.main()
    path = keep(source)
    model, _ = spqfmt.load_model(path, packed=False)
    weights = load_file(tmp_path / "plain" / "model.safetensors")
    most, n_coded = FROM_THE_TOOL[layout]
    with spqfmt.open(path) as file:
        coded = [name for name in file if file[name].info.scheme != "dense"]
    assert len(coded) == n_coded
    for name, value in model.state_dict().items():
        given = weights[name].float()
        assert (value.float() - given).abs().max() <= (most * given.abs().max() if name in coded else 0)
