"""`unpack --as compressed-tensors`: values as the library computes them, and as this package imports them again."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import gguf
import pytest
import tiny
import tiny_gguf
import torch
from coded import digests, same, write_arrays
from packed_models import CALIBRATED, METHODS, OTHERS, values
from safetensors.torch import load_file

import spqfmt
from spqfmt.errors import EncodeError, OptionError

AS: Literal["compressed-tensors"] = "compressed-tensors"
Arrays = dict[str, torch.Tensor]


def unpacked(words: torch.Tensor, bits: int, n: int) -> torch.Tensor:
    """As the library's unpack_from_int32 does along the rows: elements at bits i * bits, counted from the middle."""
    spread = (words.long()[..., None] >> torch.arange(32)) & 1
    codes = spread.reshape(len(words), -1)[:, : n * bits].reshape(len(words), n, bits)
    return (codes << torch.arange(bits)).sum(-1) - (1 << (bits - 1))


def restored(arrays: Arrays, name: str, scheme: dict[str, Any]) -> torch.Tensor:
    """As its decompress and dequantize do: codes and zero points in the dtype of the scales, the product in it."""
    weights, scales = scheme["weights"], arrays[f"{name}_scale"]
    bits = weights["num_bits"]
    if scheme["format"] == "int-quantized":
        codes = arrays[name]
        assert codes.dtype == torch.int8
    else:
        rows, columns = arrays[f"{name}_shape"].tolist()
        codes = unpacked(arrays[f"{name}_packed"], bits, columns)
        assert len(codes) == rows
    size = weights["group_size"] or codes.shape[1]
    assert (weights["strategy"] == "group") == (weights["group_size"] is not None)
    assert scales.shape == (codes.shape[0], codes.shape[1] // size)
    found = codes.to(scales.dtype)
    assert (f"{name}_zero_point" in arrays) == (not weights["symmetric"])
    if not weights["symmetric"]:
        zeros = unpacked(arrays[f"{name}_zero_point"].T, bits, len(codes)).T
        found = found - zeros.to(scales.dtype).repeat_interleave(size, 1)
    return found * scales.repeat_interleave(size, 1)


def scheme_of(folder: Path, name: str) -> dict[str, Any] | None:
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    module = name.removesuffix(".weight")
    if module in config["ignore"]:
        return None
    [scheme] = [
        g for g in config["config_groups"].values() if g["targets"] == ["Linear"] or module in g["targets"]
    ]
    return dict(scheme)


def check(path: Path, folder: Path, arrays: Arrays) -> list[str]:
    """Every value of the folder is that of the file; names of the layers that are codes."""
    coded = []
    for name, value in values(path).items():
        if f"{name}_scale" in arrays:
            scheme = scheme_of(folder, name)
            assert scheme is not None
            assert same(restored(arrays, name, scheme).to(value.dtype), value), name
            coded.append(name)
        else:
            assert same(arrays[name], value), name
    return coded


@pytest.mark.parametrize("what", METHODS)
def test_values_are_those_of_the_file(tiny_folder: Callable[[str], Path], tmp_path: Path, what: str) -> None:
    path, out = tmp_path / "m.spq", tmp_path / "out"
    spqfmt.pack(tiny_folder("llama"), path, **METHODS[what])
    report = spqfmt.unpack(path, out, as_=AS)
    arrays = load_file(out / "model.safetensors")
    assert len(check(path, out, arrays)) == 14
    assert set(report.plain) == {"model.embed_tokens.weight", "lm_head.weight"}
    assert "config.json" in report.written
    assert scheme_of(out, "lm_head.weight") is None
    # The importer takes the same arrays: codes, not values, come back.
    spqfmt.pack(out, tmp_path / "again.spq", method="keep")
    again = values(tmp_path / "again.spq")
    for name, value in values(path).items():
        assert torch.equal(again[name].to(value.dtype), value), name
    with spqfmt.open(tmp_path / "again.spq") as file:
        assert file["model.layers.0.mlp.up_proj.weight"].info.scheme == "grouped"


@pytest.mark.parametrize("what", OTHERS)
def test_what_lies_on_no_even_grid_is_refused(
    tiny_folder: Callable[[str], Path], tmp_path: Path, what: str
) -> None:
    options, why = OTHERS[what]
    spqfmt.pack(tiny_folder("llama"), tmp_path / "m.spq", **options)
    with pytest.raises(EncodeError, match=rf"tensor 'model\.layers\.\d\.[\w.]+': .*({why}).*--as dense"):
        spqfmt.unpack(tmp_path / "m.spq", tmp_path / "out", as_=AS)
    assert [file.name for file in tmp_path.iterdir()] == ["m.spq"]


def test_rows_that_are_inputs_are_refused(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    """GPT-2's layers are no Linear, and their weights lie the other way."""
    spqfmt.pack(tiny_folder("gpt2"), tmp_path / "m.spq", method="rtn")
    with pytest.raises(
        EncodeError, match=r"tensor 'transformer.h.0.attn.c_attn.weight': its rows are inputs"
    ):
        spqfmt.unpack(tmp_path / "m.spq", tmp_path / "out", as_=AS)


def test_columns_in_another_order_are_refused(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    spqfmt.pack(tiny_folder("llama"), tmp_path / "m.spq", method="gptq", group_size=16, **CALIBRATED)
    with pytest.raises(EncodeError, match="act-order"):
        spqfmt.unpack(tmp_path / "m.spq", tmp_path / "out", as_=AS)


def test_groups_that_do_not_divide_the_columns_are_refused(
    tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    spqfmt.pack(tiny_folder("llama"), tmp_path / "m.spq", method="rtn", bits=4, group_size=64)
    with pytest.raises(
        EncodeError, match=r"down_proj.weight': 176 columns are no multiple of its groups of 64"
    ):
        spqfmt.unpack(tmp_path / "m.spq", tmp_path / "out", as_=AS)


def test_a_file_without_codes_is_refused(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    spqfmt.pack(tiny_folder("llama"), tmp_path / "m.spq")
    with pytest.raises(EncodeError, match="no layer is stored as codes"):
        spqfmt.unpack(tmp_path / "m.spq", tmp_path / "out", as_=AS)
    with pytest.raises(OptionError, match="kept packed"):
        spqfmt.unpack(tmp_path / "m.spq", tmp_path / "out", as_=AS, keep_packed=True)


def test_inputs_that_are_rounded_are_said(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    """SmoothQuant folds its scales into norms: what is left are 8 bits a row, and inputs of 8 bits."""
    path, out = tmp_path / "m.spq", tmp_path / "out"
    spqfmt.pack(
        tiny_folder("llama"), path, method="magnitude", activations="int8", granularity="row", **CALIBRATED
    )
    spqfmt.unpack(path, out, as_=AS)
    scheme = scheme_of(out, "model.layers.0.mlp.up_proj.weight")
    assert scheme is not None
    assert scheme["format"] == "int-quantized"
    assert scheme["input_activations"] == {
        "num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True
    }  # fmt: skip
    check(path, out, load_file(out / "model.safetensors"))
    spqfmt.pack(out, tmp_path / "again.spq", method="keep")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_tied_head_and_shards(tmp_path: Path, dtype: torch.dtype) -> None:
    """The head is no layer of codes, although it is a Linear; a model in shards is one folder."""
    tiny.build("llama_tied", tmp_path / "source", dtype=dtype)
    spqfmt.pack(
        tmp_path / "source", tmp_path / "m.spq", method="rtn", bits=4, group_size=16, shard_size="60kB"
    )
    path, out = tmp_path / "m.spq.index.json", tmp_path / "out"
    assert path.exists()
    spqfmt.unpack(path, out, as_=AS)
    arrays = load_file(out / "model.safetensors")
    assert "lm_head.weight" not in arrays
    assert scheme_of(out, "lm_head.weight") is None
    # Scales are of the weights' dtype where that holds them, which most programs compute in.
    of_scales = torch.float16 if dtype == torch.float16 else torch.float32
    assert arrays["model.layers.0.mlp.up_proj.weight_scale"].dtype == of_scales
    assert len(check(path, out, arrays)) == 14


def test_experts_are_layers_and_routers_are_not(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    path, out = tmp_path / "m.spq", tmp_path / "out"
    spqfmt.pack(tiny_folder("mixtral"), path, method="rtn", bits=4, group_size=16)
    spqfmt.unpack(path, out, as_=AS)
    assert len(check(path, out, load_file(out / "model.safetensors"))) == 2 * (4 + 4 * 3)
    routers = [name for name in values(path) if "gate.weight" in name]
    assert routers
    assert all(scheme_of(out, name) is None for name in routers)


def test_a_stack_of_experts_is_refused(tmp_path: Path) -> None:
    config = {"quantization_config": {"quant_method": "mxfp4"}}
    name = "model.layers.0.mlp.experts.gate_up_proj"
    arrays = {
        f"{name}_blocks": torch.zeros(2, 4, 3, 16, dtype=torch.uint8),
        f"{name}_scales": torch.full((2, 4, 3), 127, dtype=torch.uint8),
    }
    spqfmt.pack(write_arrays(tmp_path / "source", config, arrays), tmp_path / "m.spq", method="keep")
    with pytest.raises(EncodeError, match=f"tensor '{name}': it is no matrix of one layer"):
        spqfmt.unpack(tmp_path / "m.spq", tmp_path / "out", as_=AS)


@pytest.mark.parametrize(
    ("kind", "bits", "size"), [("Q4_0", 4, 32), ("Q8_0", 8, 32), ("Q5_0", 8, 32), ("Q6_K", 8, 16)]
)
def test_codes_of_ggml(tmp_path: Path, kind: str, bits: int, size: int) -> None:
    """Scales of f32 hold ggml's, and products of two of them: its values before they were rounded to f16."""
    path, out = tmp_path / "m.spq", tmp_path / "out"
    tiny_gguf.write(
        "qwen2", tmp_path / "m.gguf", quantize=gguf.GGMLQuantizationType[kind], hidden=256, inner=256
    )
    spqfmt.pack(tmp_path / "m.gguf", path)
    spqfmt.unpack(path, out, as_=AS)
    arrays = load_file(out / "model.safetensors")
    assert len(check(path, out, arrays)) == 14
    scheme = scheme_of(out, "model.layers.0.mlp.up_proj.weight")
    assert scheme is not None
    assert (scheme["weights"]["num_bits"], scheme["weights"]["group_size"]) == (bits, size)


@pytest.mark.parametrize("kind", ["Q4_1", "Q4_K", "IQ4_NL"])
def test_codes_of_ggml_that_are_no_even_grid(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "m.spq"
    tiny_gguf.write(
        "qwen2", tmp_path / "m.gguf", quantize=gguf.GGMLQuantizationType[kind], hidden=256, inner=256
    )
    spqfmt.pack(tmp_path / "m.gguf", path)
    with pytest.raises(EncodeError, match="numbers of levels" if kind == "IQ4_NL" else "minimums"):
        spqfmt.unpack(path, tmp_path / "out", as_=AS)


def test_rows_that_fill_no_words(tmp_path: Path) -> None:
    """Words are filled up with zeros; more codes than a field has, or a zero point beside them, are refused."""
    config = {"architectures": ["LlamaForCausalLM"]}
    name = "model.layers.0.mlp.up_proj.weight"
    weights = {name: torch.randn(5, 13, generator=torch.Generator().manual_seed(1)).bfloat16()}
    path, out = tmp_path / "m.spq", tmp_path / "out"
    some: tuple[dict[str, Any], ...] = (
        {"bits": 4, "granularity": "row"},
        {"bits": 4, "group_size": 13},
        {"bits": 8},
    )
    for number, options in enumerate(some):
        source = write_arrays(tmp_path / f"source{number}", config, weights)
        spqfmt.pack(source, path, method="rtn", force=True, **options)
        spqfmt.unpack(path, out / str(number), as_=AS)
        arrays = load_file(out / str(number) / "model.safetensors")
        assert arrays[f"{name}_packed"].shape == (5, 2 if options["bits"] == 4 else 4)
        assert check(path, out / str(number), arrays) == [name]


@pytest.mark.parametrize("is_asymmetric", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
def test_kept_codes_are_the_very_arrays_again(tmp_path: Path, bits: int, is_asymmetric: bool) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    generator = torch.Generator().manual_seed(bits)
    word = 1 << 31
    arrays = {
        f"{name}_packed": torch.randint(-word, word, (32, 96 * bits // 32), generator=generator).int(),
        f"{name}_scale": torch.rand(32, 3, generator=generator).add(0.01).bfloat16(),
        f"{name}_shape": torch.tensor([32, 96]),
    }
    if is_asymmetric:
        arrays[f"{name}_zero_point"] = torch.randint(-word, word, (bits, 3), generator=generator).int()
    config = {"dtype": "bfloat16", "quantization_config": {"quant_method": AS, "format": "pack-quantized"}}
    source = write_arrays(tmp_path / "source", config, arrays)
    spqfmt.pack(source, tmp_path / "whole.spq", method="keep")
    assert spqfmt.unpack(tmp_path / "whole.spq", tmp_path / "given_back", as_=AS).identical
    assert digests(tmp_path / "given_back") == digests(source)
    # Without what gives the files back, they are made of the codes.
    spqfmt.pack(source, tmp_path / "m.spq", method="keep", no_identity=True)
    assert not spqfmt.unpack(tmp_path / "m.spq", tmp_path / "out", as_=AS).identical
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found.keys() == arrays.keys()
    assert all(same(found[key], value) for key, value in arrays.items())
    scheme = scheme_of(tmp_path / "out", name)
    assert scheme is not None
    assert scheme["weights"] == {
        "num_bits": bits, "type": "int", "symmetric": not is_asymmetric, "strategy": "group", "group_size": 32,
        "dynamic": False,
    }  # fmt: skip
