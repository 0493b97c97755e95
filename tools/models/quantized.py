"""A Hugging Face folder with its linear layers in the layout of a quantizer, rounded to nearest.

    python tools/models/quantized.py SOURCE OUT_DIR LAYOUT [--matrices-only]

Layouts are fp8, mxfp4, nvfp4, int4 and int8 of compressed-tensors, hqq and quanto-int8 (tools/models/grids.py), of
torchao-int8, torchao-int4 and torchao-float8 (tools/models/tensor_classes.py), of bitsandbytes nf4, nf4-nested, fp4 and
llm-int8 (tools/models/levels.py), and gptq, gptq-3, gptq-8, gptq-act-order and
awq (tools/models/packed_words.py). fp8 is DeepSeek's layout, blocks of 128 x 128 with a float32 scale; mxfp4 and nvfp4
are compressed-tensors', with the smallest scales that no weight of a group passes. Powers of two may be rounded
otherwise, which changes how many bits codes take. int4 has a scale for every 64 weights, int8 one for each row. gptq
has symmetric codes of 4 bits in groups of 64, gptq-3 and gptq-8 those of 3 and 8, gptq-act-order asymmetric ones of
columns by their size, awq asymmetric ones of columns in their order. Rows that do not divide into groups, or fill no
whole words, are left as they are, and so is the rest of the model, unless the matrices are wanted alone, say to count
their bits.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import grids
import levels
import packed_words
import tensor_classes
import torch
from safetensors.torch import save_file

from spqfmt.importers import open_source

Arrays = dict[str, torch.Tensor]
BLOCK = 128
_LARGEST_E4M3, _LARGEST_E2M1 = 448.0, 6.0
_HALFWAY = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
"""Between the magnitudes of f4_e2m1: 0, 0.5, 1, 1.5, 2, 3, 4, 6."""


def fp8(name: str, weight: torch.Tensor, block: int = BLOCK) -> Arrays:
    """Make codes of F8_E4M3 with a scale for each block, which are cut short at the edges."""
    rows, columns = weight.shape
    lines, groups = -(-rows // block), -(-columns // block)
    padded = torch.zeros(lines * block, groups * block)
    padded[:rows, :columns] = weight
    tiles = padded.reshape(lines, block, groups, block)
    scales = tiles.abs().amax((1, 3)).clamp_min(torch.finfo(torch.float32).tiny) / _LARGEST_E4M3
    codes = (tiles / scales[:, None, :, None]).reshape(padded.shape)[:rows, :columns]
    return {f"{name}.weight": codes.to(torch.float8_e4m3fn), f"{name}.weight_scale_inv": scales}


def mxfp4(name: str, weight: torch.Tensor) -> Arrays:
    """Make codes of four bits with a power of two for every 32."""
    groups = weight.float().reshape(len(weight), -1, 32)
    exponents = (groups.abs().amax(2).clamp_min(2.0**-120) / _LARGEST_E2M1).log2().ceil()
    codes = packed(groups / exponents.exp2()[..., None])
    return {f"{name}.weight_packed": codes, f"{name}.weight_scale": (exponents + 127).to(torch.uint8)}


def nvfp4(name: str, weight: torch.Tensor) -> Arrays:
    """Make codes of four bits with a scale of F8_E4M3 for every 16, which is divided by a number for the tensor."""
    groups = weight.float().reshape(len(weight), -1, 16)
    largest = groups.abs().amax(2)
    whole = (_LARGEST_E4M3 * _LARGEST_E2M1 / largest.max()).reshape(1)
    scales = (largest / _LARGEST_E2M1 * whole).clamp_min(2.0**-9).to(torch.float8_e4m3fn)
    return {
        f"{name}.weight_packed": packed(groups / (scales.float() / whole)[..., None]),
        f"{name}.weight_scale": scales,
        f"{name}.weight_global_scale": whole,
    }


def integers(name: str, weight: torch.Tensor, bits: int = 4) -> Arrays:
    """Make symmetric codes: of four bits in words, with a scale for every 64, or of eight with one for each row."""
    rows, columns = weight.shape
    most = (1 << (bits - 1)) - 1
    groups = weight.float().reshape(rows, -1, packed_words.GROUP if bits < 8 else columns)
    scales = (groups.abs().amax(2) / most).clamp_min(2.0**-24).to(torch.bfloat16)
    codes = (groups / scales.float()[..., None]).round().clamp(-most - 1, most).to(torch.int8).flatten(1)
    if bits == 8:
        return {f"{name}.weight": codes, f"{name}.weight_scale": scales}
    words = packed_words.in_words((codes.T + (1 << (bits - 1))).contiguous(), bits).T.contiguous()
    shape = torch.tensor([rows, columns])
    return {f"{name}.weight_packed": words, f"{name}.weight_scale": scales, f"{name}.weight_shape": shape}


def packed(groups: torch.Tensor) -> torch.Tensor:
    """Round [rows, groups, n] to f4_e2m1, two codes a byte, the first one in its low half; zeros keep their sign."""
    codes = torch.bucketize(groups.abs(), _HALFWAY).to(torch.uint8) | (torch.signbit(groups) << 3)
    flat = codes.flatten(1).to(torch.uint8)
    return flat[:, 0::2] | flat[:, 1::2] << 4


def _of_compressed_tensors(
    form: str, size: int, strategy: str, *, bits: int = 4, kind: str = "float"
) -> dict[str, object]:
    weights = {"num_bits": bits, "type": kind, "symmetric": True, "strategy": strategy, "group_size": size}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights, "format": form}}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "config_groups": groups,
    }


def _bitsandbytes(**settings: object) -> dict[str, object]:
    return {"quant_method": "bitsandbytes", **settings}


def _of_levels(kind: str, *, is_nested: bool = False) -> _Layout:
    def quantize(name: str, weight: torch.Tensor) -> Arrays:
        return levels.four_bits(f"{name}.weight", weight, kind, is_nested=is_nested)

    said = {"bnb_4bit_quant_type": kind, "bnb_4bit_use_double_quant": is_nested}
    return quantize, 2, _bitsandbytes(load_in_4bit=True, **said)


def _int8(name: str, weight: torch.Tensor) -> Arrays:
    return levels.int8(f"{name}.weight", weight)


def _hqq(name: str, weight: torch.Tensor) -> Arrays:
    return grids.hqq(f"{name}.", weight, 4)


def _quanto(name: str, weight: torch.Tensor) -> Arrays:
    return grids.quanto_bytes(f"{name}.weight", weight)


def _of_gptq(bits: int = 4, **said: object) -> dict[str, object]:
    form = {"checkpoint_format": "gptq", "desc_act": False, "sym": True}
    return {"quant_method": "gptq", "bits": bits, "group_size": packed_words.GROUP, **form, **said}


def _of_torchao(quantize: Callable[..., tuple[Arrays, dict[str, str]]], *more: object) -> _Layout:
    def named(name: str, weight: torch.Tensor) -> tuple[Arrays, dict[str, str]]:
        return quantize(f"{name}.weight", weight, *more)

    return named, packed_words.GROUP, {"quant_method": "torchao", "quant_type": {}}


_Made = Arrays | tuple[Arrays, dict[str, str]]
_Layout = tuple[Callable[[str, torch.Tensor], _Made], int, Mapping[str, object]]
LAYOUTS: Mapping[str, _Layout] = {
    "fp8": (fp8, 1, {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [BLOCK, BLOCK]}),
    "mxfp4": (mxfp4, 32, _of_compressed_tensors("mxfp4-pack-quantized", 32, "group")),
    "nvfp4": (nvfp4, 16, _of_compressed_tensors("nvfp4-pack-quantized", 16, "tensor_group")),
    "int4": (
        integers,
        packed_words.GROUP,
        _of_compressed_tensors("pack-quantized", packed_words.GROUP, "group", kind="int"),
    ),
    "int8": (
        partial(integers, bits=8),
        1,
        _of_compressed_tensors("int-quantized", packed_words.GROUP, "channel", bits=8, kind="int"),
    ),
    "hqq": (
        _hqq,
        64,
        {
            "quant_method": "hqq",
            "quant_config": {"weight_quant_params": {"nbits": 4, "group_size": 64, "axis": 1}},
        },
    ),
    "quanto-int8": (_quanto, 1, {"quant_method": "quanto", "weights": "int8", "activations": None}),
    "torchao-int8": _of_torchao(tensor_classes.int8),
    "torchao-int4": _of_torchao(tensor_classes.int4, packed_words.GROUP),
    "torchao-float8": _of_torchao(tensor_classes.float8),
    "nf4": _of_levels("nf4"),
    "nf4-nested": _of_levels("nf4", is_nested=True),
    "fp4": _of_levels("fp4"),
    "llm-int8": (_int8, 1, _bitsandbytes(load_in_8bit=True)),
    "gptq": (packed_words.gptq, packed_words.GROUP, _of_gptq()),
    "gptq-3": (partial(packed_words.gptq, bits=3), packed_words.GROUP, _of_gptq(3)),
    "gptq-8": (partial(packed_words.gptq, bits=8), packed_words.GROUP, _of_gptq(8)),
    "gptq-act-order": (
        packed_words.gptq_act_order,
        packed_words.GROUP,
        _of_gptq(checkpoint_format="gptq_v2", desc_act=True, sym=False),
    ),
    "awq": (
        packed_words.awq,
        packed_words.GROUP,
        {
            "quant_method": "awq",
            "bits": 4,
            "group_size": packed_words.GROUP,
            "zero_point": True,
            "version": "gemm",
        },
    ),
}
"""What quantizes a weight, with what the file's metadata say of it, if anything, what its columns must divide into, and
what config.json then says."""


def write(source: Path, out: Path, layout: str, *, matrices_only: bool = False) -> None:
    """Write the folder of a model in a layout of LAYOUTS."""
    quantize, group, quantizer = LAYOUTS[layout]
    model = open_source(source)
    arrays: Arrays = {}
    said: dict[str, str] = {}
    for tensor in model.tensors:
        if tensor.role == "linear" and not tensor.transposed and tensor.shape[1] % group == 0:
            made = quantize(tensor.name.removesuffix(".weight"), tensor.load())
            arrays |= made[0] if isinstance(made, tuple) else made
            said |= made[1] if isinstance(made, tuple) else {}
        elif not matrices_only and tensor.tied_to is None:
            arrays[tensor.name] = tensor.load()
    out.mkdir()
    for name in () if matrices_only else model.asset_data:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, out / name)
    whole = {name: value.contiguous() for name, value in arrays.items()}
    save_file(whole, out / "model.safetensors", said or None)
    config = {**json.loads(model.asset_data["config.json"]), "quantization_config": quantizer}
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def main() -> None:
    """Write the folder that the arguments name."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("layout", choices=sorted(LAYOUTS))
    parser.add_argument("--matrices-only", action="store_true")
    given = parser.parse_args()
    write(given.source, given.out, given.layout, matrices_only=given.matrices_only)


if __name__ == "__main__":
    main()
