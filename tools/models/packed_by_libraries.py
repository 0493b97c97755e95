"""Layers packed by AutoGPTQ, GPTQModel and AutoAWQ themselves, with the weights that their own code makes of them.

    python tools/models/packed_by_libraries.py OUT.safetensors AUTO_GPTQ GPTQMODEL AUTOAWQ

The last three are folders of auto_gptq 0.7.1's wheel and of the sources of gptqmodel 7.7.0 and autoawq 0.2.9, unpacked
and not installed: their modules are loaded one by one, as the packages want other versions of torch and transformers.
What comes out is tests/importers/data/packed_by_libraries.safetensors.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from packed_words import Arrays, grid
from safetensors.torch import save_file

ROWS, COLUMNS, GROUP = 32, 64, 32


def main() -> None:
    """Write the file that the arguments name."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("out", "auto_gptq", "gptqmodel", "autoawq"):
        parser.add_argument(name, type=Path)
    given = parser.parse_args()
    auto_gptq = _load(given.auto_gptq / "auto_gptq/nn_modules/qlinear/qlinear_cuda.py")
    convert = _functions(given.gptqmodel / "gptqmodel/utils/model.py", "convert_gptq_v2_to_v1_format_module")
    awq = _awq(given.autoawq / "awq")
    arrays: Arrays = {}
    for bits in (2, 3, 4, 8):
        arrays |= _named(f"gptq-{bits}", _by_auto_gptq(auto_gptq, bits))
    arrays |= _named("gptqmodel-4", _by_gptqmodel(auto_gptq, convert["convert_gptq_v2_to_v1_format_module"]))
    arrays |= _named("awq-4", _by_awq(awq))
    save_file(arrays, given.out)


def packed(bits: int, *, is_ordered: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """What is packed: the group of each column, scales, zero points and codes."""
    groups = torch.arange(COLUMNS) // GROUP
    groups = groups[torch.randperm(COLUMNS, generator=_seeded(bits))] if is_ordered else groups
    weight = torch.randn(ROWS, COLUMNS, generator=_seeded(bits)) / 20
    scales, zeros, codes = grid(weight, groups, bits, symmetric=False)
    # AutoGPTQ makes a zero point 0 less one, which goes over all bits of the word.
    return groups, scales, zeros.clamp(min=1), codes


def _by_auto_gptq(library: Any, bits: int) -> Arrays:
    """Asymmetric codes with act-order; the kernel in torch multiplies ones, one at a time, to show its weight."""
    groups, scales, zeros, codes = packed(bits, is_ordered=True)
    layer = library.QuantLinear(bits, GROUP, COLUMNS, ROWS, bias=False)
    plain = _linear(scales[groups] * (codes - zeros[groups]))
    layer.pack(plain, scales.float().T.clone(), zeros.float().T.clone(), groups.int())
    return _arrays(layer, "qweight", "qzeros", "scales", "g_idx") | {"weight": _weight_of(layer)}


def _by_gptqmodel(library: Any, to_version_1: Any) -> Arrays:
    """Zero points from 0 on, which go to version 1 and borrow of each other there; what they stood for before that."""
    groups, scales, _, codes = packed(4, is_ordered=False)
    zeros = torch.randint(0, 16, (COLUMNS // GROUP, ROWS), generator=_seeded(5))
    layer = library.QuantLinear(4, GROUP, COLUMNS, ROWS, bias=False)
    weight = scales[groups] * (codes - zeros[groups])
    # AutoGPTQ packs the codes alike; its zero points are taken out for those of version 2.
    layer.pack(_linear(weight), scales.float().T.clone(), zeros.float().T.clone(), groups.int())
    words = (zeros.reshape(len(zeros), -1, 8) << torch.arange(0, 32, 4)).sum(-1)
    layer.qzeros = torch.nn.Parameter(
        torch.where(words >= 1 << 31, words - (1 << 32), words).int(), requires_grad=False
    )
    layer.qzero_format, layer.pack_dtype = (lambda **_: None), torch.int32
    to_version_1(layer, SimpleNamespace(bits=4, pack_dtype=torch.int32))
    return _arrays(layer, "qweight", "qzeros", "scales", "g_idx") | {"weight": weight.T.contiguous()}


def _by_awq(library: Any) -> Arrays:
    groups, scales, zeros, codes = packed(4, is_ordered=False)
    plain = _linear(scales[groups] * (codes - zeros[groups]))
    layer = library.WQLinear_GEMM.from_linear(plain, 4, GROUP, scales=scales.float(), zeros=zeros.float())
    found = _arrays(layer, "qweight", "qzeros", "scales")
    weight = library.dequantize_gemm(found["qweight"], found["qzeros"], found["scales"], 4, GROUP)
    return found | {"weight": weight.T.contiguous()}


def _weight_of(layer: Any) -> torch.Tensor:
    """What the layer's product in torch makes of ones, one at a time: its weight."""
    made: torch.Tensor = layer(torch.eye(COLUMNS, dtype=torch.float16))
    return made.T.contiguous()


def _linear(weight: torch.Tensor) -> torch.nn.Linear:
    """A layer of this weight [in, out], in float16."""
    layer = torch.nn.Linear(COLUMNS, ROWS, bias=False).half()
    layer.weight.data = weight.T.contiguous()
    return layer


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _arrays(layer: Any, *names: str) -> Arrays:
    return {name: getattr(layer, name).detach().contiguous().clone() for name in names}


def _named(layer: str, arrays: Arrays) -> Arrays:
    return {f"{layer}.{name}": value for name, value in arrays.items()}


def _load(file: Path) -> Any:
    """A module by itself, without its package."""
    spec = importlib.util.spec_from_file_location(f"alone_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _functions(file: Path, name: str) -> dict[str, Any]:
    """A function of a module that cannot be loaded by itself, with what it names of the package left out."""
    body = ast.parse(file.read_text()).body
    found: list[ast.stmt] = [n for n in body if isinstance(n, ast.FunctionDef) and n.name == name]
    quiet = SimpleNamespace(info=SimpleNamespace(once=print))
    scope = {
        "torch": torch,
        "nn": torch.nn,
        "log": quiet,
        "BaseQuantLinear": object,
        "QuantizeConfig": object,
    }
    exec(compile(ast.Module(found, []), str(file), "exec"), scope)  # noqa: S102 (the library's own text)
    return scope


def _awq(package: Path) -> Any:
    """AutoAWQ's module for gemm, with the two functions of its package that it needs on a CPU."""
    packing = _load(package / "utils/packing_utils.py")
    needed: dict[str, dict[str, Any]] = {
        "awq": {},
        "awq.utils": {},
        "awq.utils.module": {"try_import": lambda name: (None, "")},
        "awq.utils.utils": {"get_best_device": lambda: "cpu"},
        "awq.utils.packing_utils": {"dequantize_gemm": packing.dequantize_gemm},
    }
    for name, held in needed.items():
        sys.modules[name] = ModuleType(name)
        vars(sys.modules[name]).update(held)
    return _load(package / "modules/linear/gemm.py")


if __name__ == "__main__":
    main()
