"""Method keep on AWQ's arrays: the values of AutoAWQ's dequantize, the same files back, products from the codes."""

import json
from pathlib import Path
from typing import Any

import packed_words
import pytest
import torch
from coded import Arrays, check_refused, keep, same, write_arrays, write_model

import spqfmt
from spqfmt.importers import open_source
from spqfmt.loaders.plan import plan_model

AT = "model.layers.0.mlp.up_proj"
ROWS, COLUMNS = 48, 512


def quantizer(group_size: int = 64, version: str = "gemm", **more: Any) -> dict[str, Any]:
    said = {"quant_method": "awq", "bits": 4, "group_size": group_size, "version": version}
    return said | {"zero_point": True} | more


def restored(codes: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor, size: int) -> torch.Tensor:
    """As AutoAWQ's dequantize_gemm does: (iweight - izeros) * scales, in float16."""
    scales, zeros = (numbers.repeat_interleave(size, 0) for numbers in (scales, zeros))
    return ((codes.to(torch.int8) - zeros.to(torch.int8)) * scales).T.contiguous()


def numbers(size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes [in, out], scales and zero points [groups, out]."""
    weight = torch.randn((ROWS, COLUMNS), generator=torch.Generator().manual_seed(size)) / 20
    scales, zeros, codes = packed_words.grid(weight, torch.arange(COLUMNS) // size, 4, symmetric=False)
    return codes, scales, zeros


def check(folder: Path, weight: torch.Tensor) -> None:
    with spqfmt.open(keep(folder)) as file:
        assert set(file) == {f"{AT}.weight"}
        assert same(file.read(f"{AT}.weight"), weight)


@pytest.mark.parametrize("version", ["gemm", "GEMM", "exllama"])
@pytest.mark.parametrize("size", [32, 128, -1])
def test_codes(tmp_path: Path, size: int, version: str) -> None:
    of_group = COLUMNS if size == -1 else size
    found = numbers(of_group)
    config = {"quantization_config": quantizer(size, version)}
    folder = write_arrays(tmp_path / "source", config, packed_words.awq_arrays(AT, *found))
    check(folder, restored(*found, of_group))


def test_codes_of_version_gemv(tmp_path: Path) -> None:
    codes, scales, zeros = numbers(64)
    arrays = {
        f"{AT}.qweight": packed_words.in_words(codes, 4).T,
        f"{AT}.qzeros": packed_words.in_words(zeros, 4).T,
        f"{AT}.scales": scales.T,
    }
    config = {"quantization_config": quantizer(64, "gemv")}
    check(write_arrays(tmp_path / "source", config, arrays), restored(codes, scales, zeros, 64))


def test_auto_round_packs_as_auto_awq_does(tmp_path: Path) -> None:
    found = numbers(64)
    said = {
        "quant_method": "auto-round",
        "packing_format": "auto_round:auto_awq",
        "bits": 4,
        "group_size": 64,
    }
    arrays = packed_words.awq_arrays(AT, *found)
    check(write_arrays(tmp_path / "source", {"quantization_config": said}, arrays), restored(*found, 64))


def test_without_a_config_shapes_tell(tmp_path: Path) -> None:
    found = numbers(64)
    folder = write_arrays(tmp_path / "source", {}, packed_words.awq_arrays(AT, *found))
    check(folder, restored(*found, 64))


def test_the_config_of_early_checkpoints_lies_beside(tmp_path: Path) -> None:
    found = numbers(64)
    folder = write_arrays(tmp_path / "source", {}, packed_words.awq_arrays(AT, *found))
    beside = {"zero_point": True, "q_group_size": 64, "w_bit": 4, "version": "GEMM"}
    (folder / "quant_config.json").write_text(json.dumps(beside))
    check(folder, restored(*found, 64))


def test_a_model_computes_from_its_codes(tmp_path: Path) -> None:
    expected: Arrays = {}

    def quantize(module: str, weight: torch.Tensor) -> Arrays:
        groups = torch.arange(weight.shape[1]) // 16
        scales, zeros, codes = packed_words.grid(weight, groups, 4, symmetric=False)
        expected[f"{module}.weight"] = restored(codes, scales, zeros, 16)
        return packed_words.awq_arrays(module, codes, scales, zeros)

    folder = tmp_path / "source"
    write_model(folder, quantizer(16), quantize)
    path = keep(folder)
    model, _ = spqfmt.load_model(path, dtype=torch.float16, packed=False)
    state = model.state_dict()
    assert expected
    assert all(same(state[name], value) for name, value in expected.items())
    assert not plan_model(path).whole
    inputs = torch.arange(20)[None]
    with torch.inference_mode():
        logits = model(inputs).logits.float()
        of_folder = spqfmt.load_model(folder, dtype=torch.float16, packed=False)[0](inputs).logits.float()
        computed = spqfmt.load_model(path, packed=True, dtype=torch.float16)[0](inputs).logits.float()
    assert torch.equal(of_folder, logits)
    assert torch.allclose(logits, computed, atol=0.05 * float(logits.std()))


PLAIN = packed_words.awq_arrays(AT, *numbers(64))
# arrays, what the config says besides, words of the error
CONTRADICTIONS: dict[str, tuple[Arrays, dict[str, Any], str]] = {
    "scales of other outputs": (
        PLAIN | {f"{AT}.scales": torch.ones(8, 40).half()},
        {},
        rf"tensor '{AT}.scales' of shape \[8, 40\] does not fit '{AT}.qweight' of shape \[512, 6\]",
    ),
    "zero points of other groups": (
        PLAIN | {f"{AT}.qzeros": torch.zeros(4, 6, dtype=torch.int32)},
        {},
        rf"tensor '{AT}.qzeros' of shape \[4, 6\] does not fit '{AT}.scales' of shape \[8, 48\]",
    ),
    "groups that do not divide": (
        PLAIN, {"group_size": 60}, rf"tensor '{AT}.scales' .* does not fit .*, 512 columns in groups of 60",
    ),
    "other groups": (PLAIN, {"group_size": 128}, "512 columns in groups of 128"),
    "other bits": (PLAIN, {"bits": 3}, rf"tensor '{AT}.qweight': config.json says AWQ of 3 bits"),
    "a version that nobody knows": (
        PLAIN, {"version": "gemx"}, rf"tensor '{AT}.qweight': config.json says AWQ of version 'gemx'",
    ),
    "no zero points": (
        {name: array for name, array in PLAIN.items() if not name.endswith("qzeros")},
        {},
        rf"tensor '{AT}.qzeros' is missing beside '{AT}.qweight'",
    ),
    "words of another dtype": (
        PLAIN | {f"{AT}.qweight": PLAIN[f"{AT}.qweight"].short(), f"{AT}.qzeros": PLAIN[f"{AT}.qzeros"].short()},
        {},
        rf"tensor '{AT}.qweight' .* is of i16, i16, f16, which is not AWQ",
    ),
    "a scale that is no number": (
        PLAIN | {f"{AT}.scales": torch.full((8, ROWS), torch.inf).half()}, {}, "holds scales that are NaN or infinite",
    ),
    "another method": (PLAIN, {"quant_method": "gptq"}, f"'{AT}.qweight' is stored as AWQ, but config.json says"),
}  # fmt: skip


@pytest.mark.parametrize("kind", CONTRADICTIONS)
def test_what_contradicts_itself_is_refused_and_kept_by_lossless(tmp_path: Path, kind: str) -> None:
    arrays, config, words = CONTRADICTIONS[kind]
    folder = write_arrays(tmp_path / "source", {"quantization_config": quantizer(**config)}, arrays)
    check_refused(folder, words)


@pytest.mark.parametrize("version", ["gemv_fast", "marlin", "gemv"])
def test_codes_that_lie_otherwise_are_left_alone(tmp_path: Path, version: str) -> None:
    """Those of version gemv where scales go beyond the groups, up to a whole word of zero points."""
    codes, scales, _ = numbers(128)
    arrays = {
        f"{AT}.qweight": packed_words.in_words(codes, 4).T,
        f"{AT}.qzeros": torch.zeros(ROWS, 1, dtype=torch.int32),
        f"{AT}.scales": torch.nn.functional.pad(scales.T, (0, 4)),
    }
    folder = write_arrays(tmp_path / "source", {"quantization_config": quantizer(128, version)}, arrays)
    assert {tensor.name for tensor in open_source(folder).as_weights().tensors} == set(arrays)
    report = spqfmt.pack(folder, tmp_path / "m.spq")
    why = "groups that do not fill whole words" if version == "gemv" else f"the version '{version}'"
    assert any("quantized already (awq)" in note and f"(because of {why})" in note for note in report.notes)
    assert spqfmt.unpack(tmp_path / "m.spq", tmp_path / "out").identical
