"""Checkpoints that are quantized already: named, kept by lossless, refused by every other method."""

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
import tiny_gguf
import torch
from coded import check_refused
from safetensors.torch import save_file
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING

import spqfmt
from spqfmt.errors import ImporterError
from spqfmt.importers import open_source
from spqfmt.quantize.registry import METHODS

AT = "model.layers.0.mlp.up_proj"
INTS, BYTES = torch.zeros(8, 16, dtype=torch.int32), torch.zeros(8, 16, dtype=torch.uint8)
CODES = torch.zeros(8, 16, dtype=torch.int8)
FLOATS = torch.ones(8, 16, dtype=torch.bfloat16)
FP8 = FLOATS.to(torch.float8_e4m3fn)

# config beside the architecture, tensors, what has quantized them
SOURCES: dict[str, tuple[dict[str, Any], dict[str, torch.Tensor], str]] = {
    "gptq": ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, {f"{AT}.qweight": INTS}, "gptq"),
    "gptq without its config": ({}, {f"{AT}.qweight": INTS, f"{AT}.scales": FLOATS}, "gptq or awq"),
    "awq": ({"quantization_config": {"quant_method": "awq"}}, {f"{AT}.qweight": INTS}, "awq"),
    "fp8": (
        {"quantization_config": {"quant_method": "fp8"}},
        {f"{AT}.weight": FP8, f"{AT}.weight_scale_inv": torch.ones(1, 1)},
        "fp8",
    ),
    "bare fp8": ({}, {f"{AT}.weight": FP8}, f"{AT}.weight is f8_e4m3"),
    "fp8 with scales": ({}, {f"{AT}.weight": FP8, f"{AT}.weight_scale_inv": torch.ones(1, 1)}, "fp8"),
    "bitsandbytes 4": (
        {"quantization_config": {"load_in_4bit": True, "quant_method": "bitsandbytes"}},
        {f"{AT}.weight": BYTES.reshape(-1, 1), f"{AT}.weight.absmax": torch.ones(4)},
        "bitsandbytes",
    ),
    "bitsandbytes 8 without its config": (
        {},
        {f"{AT}.SCB": torch.ones(8), f"{AT}.weight": CODES},
        "bitsandbytes",
    ),
    "old bitsandbytes": (
        {"quantization_config": {"load_in_8bit": True}},
        {f"{AT}.weight": CODES},
        "bitsandbytes",
    ),
    "compressed-tensors": (
        {"compression_config": {"quant_method": "compressed-tensors"}},
        {f"{AT}.weight_packed": INTS, f"{AT}.weight_scale": FLOATS},
        "compressed-tensors",
    ),
    "mxfp4": (
        {"quantization_config": {"quant_method": "mxfp4"}},
        {
            f"{AT}_blocks": torch.zeros(2, 8, 4, 16, dtype=torch.uint8),
            f"{AT}_scales": torch.zeros(2, 8, 4, dtype=torch.uint8),
        },
        "mxfp4",
    ),
    "mxfp4 without its config": (
        {},
        {f"{AT}_blocks": torch.zeros(2, 8, 4, 16, dtype=torch.uint8)},
        f"{AT}_blocks is u8",
    ),
    "in the text model": (
        {"text_config": {"quantization_config": {"quant_method": "awq"}}},
        {f"{AT}.qweight": INTS},
        "awq",
    ),
    "in the language model": (
        {"language_config": {"quantization_config": {"quant_method": "awq"}}},
        {f"{AT}.weight": FLOATS},
        "awq",
    ),
    "in a part of a part": (
        {"thinker_config": {"llm_config": {"quantization_config": {"quant_method": "gptq"}}}},
        {f"{AT}.weight": FLOATS},
        "gptq",
    ),
    "a text": ({"quantization_config": "gptq"}, {f"{AT}.weight": FLOATS}, "gptq"),
    "a list": (
        {"quantization_config": [{}, {"quant_method": "fp8"}, {"quant_method": "awq"}]},
        {f"{AT}.weight": FLOATS},
        "fp8",
    ),
    "neither": ({"quantization_config": 4}, {f"{AT}.weight": FLOATS}, "config.json says so"),
    "a config that speaks of it": (
        {"quantization_config": {"bits": 4}},
        {f"{AT}.weight": FLOATS},
        "config.json says so",
    ),
}
# What transformers' quantizers and others leave without a config, by their names in transformers where they have one.
LEFT: dict[str, tuple[dict[str, torch.Tensor], str]] = {
    "gptq": ({"qweight": INTS, "qzeros": INTS, "scales": FLOATS, "g_idx": INTS[0]}, "gptq or awq"),
    "auto-round": ({"qweight": INTS, "qzeros": INTS, "scales": FLOATS}, "gptq or awq"),
    "awq": ({"qweight": INTS, "qzeros": INTS, "scales": FLOATS}, "gptq or awq"),
    "aqlm": (
        {"codes": CODES[..., None], "codebooks": FLOATS[:, None], "scales": FLOATS[..., None, None]}, "aqlm",
    ),
    "vptq": ({"indices": INTS, "centroids.weight": FLOATS, "weight_bias": FLOATS[0]}, "vptq"),
    "quanto": ({"weight._data": CODES, "weight._scale": FLOATS[:, :1], "input_scale": FLOATS[0, 0]}, "quanto"),
    "torchao": ({"_weight_qdata": CODES, "_weight_scale": FLOATS}, "torchao"),
    "older torchao": ({"weight:qdata": CODES, "weight:scale": FLOATS}, "torchao"),
    "hqq": ({"W_q": BYTES, "scale": FLOATS, "zero": FLOATS}, "hqq or sinq"),
    "sinq": ({"W_q": BYTES, "meta": BYTES}, "hqq or sinq"),
    "eetq": ({"weight": CODES, "weight_scales": FLOATS[0].half()}, "eetq"),
    "higgs": ({"weight": INTS.short(), "scales": FLOATS, "tables": FLOATS, "tables2": FLOATS}, "higgs"),
    "spqr": (
        {"dense_weights": INTS, "row_offsets": INTS[0], "col_vals": INTS[0], "in_perm": INTS[0].short()}, "spqr",
    ),
    "spqr's own": ({"quant_weights": BYTES, "quant_layer_scale": BYTES, "perm": INTS[0]}, "spqr"),
    "bitnet": ({"weight": BYTES, "weight_scale": FLOATS[0, :1]}, "compressed-tensors or fp8"),
    "fbgemm_fp8": ({"weight": FP8, "weight_scale": FLOATS[:, :1]}, "compressed-tensors or fp8"),
    "fp8": ({"weight": FP8, "weight_scale_inv": FLOATS[:1, :1]}, "fp8"),
    "mxfp8": ({"weight": FP8, "weight_scale_inv": BYTES}, "fp8"),
    "mxfp4": ({"down_proj_blocks": BYTES[..., None], "down_proj_scales": BYTES}, f"{AT}.down_proj_blocks is u8"),
    "nvfp4": ({"weight": BYTES, "weight_scale": FP8, "weight_scale_2": FLOATS[0, 0]}, "nvfp4"),
    "nvfp4 once loaded": ({"weight": BYTES, "weight_sf": INTS, "weight_global_scale": FLOATS[0, :1]}, "nvfp4"),
    "fp_quant": ({"dqweight": FLOATS, "scales": BYTES}, "fp_quant"),
    "fouroversix": (
        {"quantized_weight_values": BYTES, "quantized_weight_scale_factors": FP8, "quantized_weight_amax": FLOATS[0]},
        "fouroversix",
    ),
    "quark": ({"weight": CODES, "weight_quantizer.scale": FLOATS[0]}, "quark or modelopt"),
    "compressed-tensors": ({"weight_packed": INTS, "weight_shape": INTS[0]}, "compressed-tensors"),
    "sparse compressed-tensors": ({"compressed": FLOATS[0], "bitmask": BYTES}, "compressed-tensors"),
    "bitsandbytes_4bit": (
        {"weight": BYTES.reshape(-1, 1), "weight.absmax": FLOATS[0], "weight.quant_map": FLOATS[0]}, "bitsandbytes",
    ),
    "bitsandbytes_8bit": ({"weight": CODES, "SCB": FLOATS[0]}, "bitsandbytes"),
    "metal": ({"weight": INTS, "scales": FLOATS, "qbiases": FLOATS}, "metal"),
    "mlx": ({"weight": INTS, "scales": FLOATS, "biases": FLOATS}, "mlx"),
    "gemma": ({"embedding_quantized": BYTES, "embedding_scale": FLOATS[:, :1]}, "gemma"),
    "exl2": ({"q_weight": INTS, "q_scale": INTS, "q_groups": INTS[0].short(), "q_invperm": INTS[0]}, "exl2"),
    "exl3": ({"trellis": INTS.short(), "suh": FLOATS[0].half(), "svh": FLOATS[0].half()}, "exl3"),
    "quip#": ({"Qidxs": INTS.long(), "SU": FLOATS[0], "SV": FLOATS[0]}, "quip#"),
    "qtip": ({"trellis": INTS.short(), "SU": FLOATS[0], "SV": FLOATS[0]}, "qtip"),
    "marlin": ({"B": INTS, "s": FLOATS}, "marlin"),
}  # fmt: skip


def folder(path: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Path:
    path.mkdir()
    tensors = {name: value.clone() for name, value in tensors.items()}
    save_file(tensors | {"model.norm.weight": torch.ones(8)}, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], **config}))
    return path


@pytest.mark.parametrize("kind", SOURCES)
def test_a_quantized_checkpoint_is_named_kept_by_lossless_and_refused_by_rtn(
    kind: str, tmp_path: Path
) -> None:
    config, tensors, by = SOURCES[kind]
    source = folder(tmp_path / "source", config, tensors)
    assert open_source(source).quantized == by
    out = tmp_path / "m.spq"
    with pytest.raises(ImporterError) as refused:
        spqfmt.pack(source, out, method="rtn")
    assert f"quantized already ({by}): only --method lossless keeps it" in str(refused.value)
    assert not out.exists()
    spqfmt.pack(source, out, method="lossless")
    with spqfmt.open(out) as file:
        for name, value in tensors.items():
            assert torch.equal(file.read(name).view(torch.uint8), value.view(torch.uint8))


@pytest.mark.parametrize("kind", ["aqlm", "vptq", "exl2", "exl3", "quip#", "higgs", "spqr", "qtip"])
def test_arrays_of_a_book_or_another_layout_are_exact_bytes_and_inspect_lists_them(
    kind: str, tmp_path: Path
) -> None:
    """Codes of several dimensions at once, and bits of a layer in one array: at their own width, under their names."""
    arrays, by = LEFT[kind]
    tensors = {f"{AT}.{name}": value for name, value in arrays.items()}
    source = folder(tmp_path / "source", {"quantization_config": {"quant_method": by}}, tensors)
    spqfmt.pack(source, tmp_path / "m.spq")
    report = spqfmt.inspect(tmp_path / "m.spq")
    codes = {name: value for name, value in tensors.items() if not value.is_floating_point()}
    listed = {tensor.name: tensor for tensor in report.tensors if tensor.form}
    assert listed.keys() == codes.keys()
    for name, tensor in listed.items():
        assert (tensor.scheme, tensor.form_bytes) == ("dense", codes[name].nbytes)
    assert report.source is not None
    [(form, (n, there, _))] = report.source.forms.items()
    assert (form, n) == (f"arrays of {by}", len(codes))
    assert there == sum(value.nbytes for value in codes.values())
    assert spqfmt.unpack(tmp_path / "m.spq", tmp_path / "out").identical
    for file in source.iterdir():
        assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize("kind", LEFT)
def test_what_quantizers_leave_is_known_without_a_config(kind: str, tmp_path: Path) -> None:
    arrays, by = LEFT[kind]
    tensors = {f"{AT}.{name}": value for name, value in arrays.items()}
    source = folder(tmp_path / "source", {}, tensors)
    assert open_source(source).quantized == by
    assert open_source(source / "model.safetensors").quantized == by
    with pytest.raises(ImporterError, match="quantized already"):
        spqfmt.pack(source, tmp_path / "m.spq", method="rtn")
    torch.save(tensors, tmp_path / "m.pt")
    assert open_source(tmp_path / "m.pt").quantized == by


@pytest.mark.parametrize("kind", ["a text", "a list", "neither"])
def test_a_config_that_is_no_object_is_refused_unless_the_arrays_are_asked_for(
    kind: str, tmp_path: Path
) -> None:
    config, tensors, _ = SOURCES[kind]
    check_refused(folder(tmp_path / "source", config, tensors), "its quantization_config is .*, no object")


def test_a_method_that_is_no_name_is_refused(tmp_path: Path) -> None:
    config = {"quantization_config": {"quant_method": ["fp8"]}}
    check_refused(
        folder(tmp_path / "source", config, {f"{AT}.weight": FP8}),
        r"its quant_method is \"\['fp8'\]\", no name",
    )


def test_every_quantizer_of_transformers_is_among_them() -> None:
    # A GGUF file is a source of its own.
    assert AUTO_QUANTIZER_MAPPING.keys() - {"gguf"} <= LEFT.keys()


@pytest.mark.parametrize(
    ("name", "by"),
    [
        ("quantize_config.json", "gptq"),
        ("quant_config.json", "awq"),
        ("hf_quant_config.json", "modelopt"),
        ("quanto_qmap.json", "quanto"),
    ],
)
def test_a_file_beside_the_weights_tells(name: str, by: str, tmp_path: Path) -> None:
    source = folder(tmp_path / "source", {}, {f"{AT}.weight": FLOATS})
    (source / name).write_text("{}")
    assert open_source(source).quantized == by
    with pytest.raises(ImporterError, match=rf"quantized already \({by}\)"):
        spqfmt.pack(source, tmp_path / "m.spq", method="rtn")
    spqfmt.pack(source, tmp_path / "m.spq")
    (tmp_path / "pipeline").mkdir()
    source.rename(tmp_path / "pipeline" / "unet")
    (tmp_path / "pipeline" / "model_index.json").write_text('{"unet": ["diffusers", "UNet2DConditionModel"]}')
    assert open_source(tmp_path / "pipeline").quantized == by


def test_a_folder_that_spqr_has_written_is_not_taken_for_what_it_left_out(tmp_path: Path) -> None:
    (tmp_path / "source" / "0").mkdir(parents=True)
    torch.save({"model.norm.weight": FLOATS[0]}, tmp_path / "source" / "not_quantized_weights.pt")
    torch.save({"quant_weights": BYTES}, tmp_path / "source" / "0" / "self_attn.q_proj")
    for method in ("lossless", "rtn"):
        with pytest.raises(ImporterError, match=r"quantized already \(spqr\)"):
            spqfmt.pack(tmp_path / "source", tmp_path / "m.spq", method=method)


@pytest.mark.parametrize("method", sorted(METHODS.keys() - {"lossless", "keep"}))
def test_every_method_refuses_it(method: str, tmp_path: Path) -> None:
    config, tensors, _ = SOURCES["gptq"]
    source = folder(tmp_path / "source", config, tensors)
    with pytest.raises(ImporterError, match=rf"for {method} give the model that it was made from"):
        spqfmt.pack(source, tmp_path / "m.spq", method=method)


@pytest.mark.parametrize(
    ("config", "tensors"),
    [
        ({}, {f"{AT}.weight": FLOATS}),
        ({"quantization_config": None}, {f"{AT}.weight": FLOATS}),
        ({"quantization_config": {}}, {f"{AT}.weight": FLOATS}),
        # What a model of floats may hold besides: a causal mask, positions, counters.
        ({}, {"h.0.attn.bias": torch.ones(1, 1, 8, 8, dtype=torch.uint8), "h.0.mlp.c_fc.weight": FLOATS}),
        ({}, {"embeddings.position_ids": torch.arange(8).reshape(1, 8), f"{AT}.weight": FLOATS}),
        ({}, {"bn.num_batches_tracked": torch.tensor(3), f"{AT}.weight": FLOATS}),
        ({"quantization_config": "none"}, {f"{AT}.weight": FLOATS}),
        ({"text_config": {"quantization_config": {}}, "quantization_config": []}, {f"{AT}.weight": FLOATS}),
        # Names that mean something only beside others.
        (
            {},
            {"encoder.codebooks": FLOATS, "encoder.indices": INTS[0], "x.B": FLOATS, f"{AT}.weight": FLOATS},
        ),
        ({}, {"a.codes": FLOATS, "b.codebooks": FLOATS, "a.scales": FLOATS, f"{AT}.weight": FLOATS}),
    ],
)
def test_floats_are_not_called_quantized(
    config: dict[str, Any], tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    source = folder(tmp_path / "source", config, tensors)
    assert open_source(source).quantized == ""
    spqfmt.pack(source, tmp_path / "m.spq", method="rtn")


def test_blocks_of_a_gguf_file_are_dequantized_and_taken_as_floats(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    tiny_gguf.write("llama", path, quantize=gguf.GGMLQuantizationType.Q8_0)
    assert open_source(path).quantized == ""
    spqfmt.pack(path, tmp_path / "m.spq", method="rtn", dequantize=True)
