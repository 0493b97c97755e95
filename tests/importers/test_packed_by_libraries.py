"""Layers that AutoGPTQ 0.7.1, GPTQModel 7.7.0 and AutoAWQ 0.2.9 have packed, with the weights that they make of them.

tools/models/packed_by_libraries.py made the file; tests need none of these libraries.
"""

from pathlib import Path
from typing import Any

import packed_by_libraries as tool
import packed_words
import pytest
from coded import keep, same, write_arrays
from safetensors.torch import load_file

import spqfmt

FILE = Path(__file__).parent / "data" / "packed_by_libraries.safetensors"
GPTQ = {"quant_method": "gptq", "group_size": 32, "sym": False, "checkpoint_format": "gptq"}
LAYERS: dict[str, dict[str, Any]] = {
    **{f"gptq-{bits}": {**GPTQ, "bits": bits, "desc_act": True} for bits in (2, 3, 4, 8)},
    "gptqmodel-4": {**GPTQ, "bits": 4, "meta": {"quantizer": ["gptqmodel:7.7.0"]}},
    "awq-4": {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"},
}


@pytest.mark.parametrize("layer", LAYERS)
def test_weights_are_those_of_the_library(tmp_path: Path, layer: str) -> None:
    found = {name: value for name, value in load_file(FILE).items() if name.startswith(f"{layer}.")}
    weight = found.pop(f"{layer}.weight")
    source = write_arrays(tmp_path / "source", {"quantization_config": LAYERS[layer]}, found)
    with spqfmt.open(keep(source)) as file:
        assert set(file) == {f"{layer}.weight"}
        assert same(file.read(f"{layer}.weight"), weight)


@pytest.mark.parametrize("layer", ["gptq-2", "gptq-3", "gptq-4", "gptq-8", "awq-4"])
def test_other_tests_pack_as_the_library_does(layer: str) -> None:
    found = {name: value for name, value in load_file(FILE).items() if name.startswith(f"{layer}.")}
    del found[f"{layer}.weight"]
    bits = int(layer[-1])
    groups, scales, zeros, codes = tool.packed(bits, is_ordered=layer != "awq-4")
    if layer == "awq-4":
        made = packed_words.awq_arrays(layer, codes, scales, zeros)
    else:
        made = packed_words.gptq_arrays(layer, codes, scales, zeros, bits=bits, of_column=groups)
    assert made.keys() == found.keys()
    assert all(same(made[name], value) for name, value in found.items())
