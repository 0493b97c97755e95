"""A quantized checkpoint through a .spq file beside the library that made it: files, values, logits, size.

    python tools/models/beside_library.py FOLDER [--out FILE.spq]

FOLDER is one of bitsandbytes, torchao (saved by transformers), optimum-quanto or HQQ (safetensors); the library must
be installed. It is packed with `--method keep`, and unpacked again. Then are compared: the SHA-256 of each file; each
weight with what the library's own dequantizer gives, bit by bit; the logits of the loaded model with those of one that
has these weights; and the bytes of the file, and of the coded tensors in it, with those of the source and with the
order-0 entropy of codes and scales. What the library computes from its codes is no part of it: that rounds inputs, too.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

import spqfmt

Weights = dict[str, torch.Tensor]


def bitsandbytes(folder: Path) -> Weights:
    """Take each weight by the plain kernel: that of CPUs reads other scales where rows end within blocks."""
    import transformers
    from bitsandbytes.backends.default.ops import _dequantize_4bit_compute
    from bitsandbytes.functional import dequantize_blockwise, int8_vectorwise_dequant

    weights = {}
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    for name, module in model.named_modules():
        weight: Any = getattr(module, "weight", None)
        if type(weight).__name__ == "Params4bit":
            state = weight.quant_state
            scales = state.absmax
            if state.nested:
                scales = (dequantize_blockwise(scales, state.state2) + state.offset).float()
            packed = weight.data.view(torch.uint8).reshape(-1)
            value = _dequantize_4bit_compute(
                packed, scales, state.code, state.blocksize, state.shape, state.dtype
            )
        elif type(weight).__name__ == "Int8Params":
            rows = module.state.SCB if weight.SCB is None else weight.SCB
            value = int8_vectorwise_dequant(weight.data, rows).to(model.dtype)
        else:
            continue
        is_turned = getattr(module, "source_cls", torch.nn.Linear) is not torch.nn.Linear
        weights[f"{name}.weight"] = value.t() if is_turned else value
    return weights


def torchao(folder: Path) -> Weights:
    """Take each weight by the `dequantize` of its class."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    classes = {
        name: value for name, value in model.named_parameters() if type(value) is not torch.nn.Parameter
    }
    return {name: value.dequantize() for name, value in classes.items()}


def quanto(folder: Path) -> Weights:
    """Take each weight by the `dequantize` of its class."""
    from optimum.quanto import QTensor, QuantizedModelForCausalLM

    model = QuantizedModelForCausalLM.from_pretrained(folder)._wrapped
    return {
        name: value.dequantize() for name, value in model.named_parameters() if isinstance(value, QTensor)
    }


def hqq(folder: Path) -> Weights:
    """Take each weight by its layer's `dequantize`."""
    from hqq.core.quantize import HQQLinear

    weights = {}
    arrays = {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}
    for stem in [name.removesuffix("W_q") for name in arrays if name.endswith("W_q")]:
        dtype = arrays[f"{stem}scale"].dtype
        layer = HQQLinear(None, None, compute_dtype=dtype, device="cpu", initialize=False)
        layer.load_state_dict(
            {name.removeprefix(stem): x for name, x in arrays.items() if name.startswith(stem)}
        )
        weights[f"{stem}weight"] = layer.dequantize()
    return weights


LIBRARIES = {"bitsandbytes": bitsandbytes, "torchao": torchao, "quanto": quanto, "hqq": hqq}


def library_of(folder: Path) -> str:
    """Name what has quantized a folder."""
    if (folder / "quanto_qmap.json").exists():
        return "quanto"
    return str(json.loads((folder / "config.json").read_text())["quantization_config"]["quant_method"])


def report(folder: Path, path: Path) -> Iterator[str]:
    """One line for each comparison."""
    spqfmt.pack(folder, path, method="keep", force=True)
    with tempfile.TemporaryDirectory() as out:
        spqfmt.unpack(path, Path(out) / "again")
        digests = [
            {
                file.name: hashlib.sha256(file.read_bytes()).hexdigest()
                for file in where.iterdir()
                if file.is_file()
            }
            for where in (folder, Path(out) / "again")
        ]
    alike = [name for name, digest in digests[0].items() if digests[1].get(name) == digest]
    yield f"files: {len(alike)} of {len(digests[0])} come back with the same SHA-256"
    model, _ = spqfmt.load_model(path, packed=False)
    state = model.state_dict()
    expected = LIBRARIES[library_of(folder)](folder)
    yield f"weights: {_compared(state, expected)}"
    inputs = torch.arange(5, 45)[None] % model.config.vocab_size
    with torch.no_grad():
        logits = model(inputs).logits.float()
        model.load_state_dict(state | expected)
        beside = model(inputs).logits.float()
    given, found = beside.log_softmax(-1), logits.log_softmax(-1)
    apart = float((given.exp() * (given - found)).sum(-1).mean())
    said = "equal" if torch.equal(logits, beside) else "not equal"
    yield f"logits: {said}, KL {apart:.1e} from the library's weights"
    yield _sizes(folder, path)


def _compared(state: Weights, expected: Weights) -> str:
    n_apart, n_all, largest = 0, 0, 0.0
    for name, value in expected.items():
        apart = state[name] != value.to(state[name].dtype)
        n_apart, n_all = n_apart + int(apart.sum()), n_all + value.numel()
        if apart.any():
            largest = max(
                largest, float((state[name].float() - value.float()).abs().max() / value.float().abs().max())
            )
    said = (
        "all equal"
        if not n_apart
        else f"{n_apart} of {n_all} differ, by {largest:.1e} of the largest at most"
    )
    return f"{len(expected)} tensors, {said}"


def _sizes(folder: Path, path: Path) -> str:
    command = [sys.executable, "-m", "spqfmt", "inspect", str(path), "--json"]
    shown = subprocess.run(command, check=True, capture_output=True).stdout
    source = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    tensors: list[Any] = [t for t in json.loads(shown)["tensors"] if t["form"]]
    stored, arrays = (sum(tensor[key] for tensor in tensors) for key in ("stored_bytes", "form_bytes"))
    entropy = sum(tensor["entropy_bits_per_weight"] * tensor["n_weights"] for tensor in tensors) / 8
    return (
        f"size: {path.stat().st_size / source:.4f} of the source's files; of {len(tensors)} coded tensors "
        f"{stored / arrays:.4f}, {stored / entropy - 1:.2%} above order-0 entropy"
    )


def main() -> None:
    """Print the comparisons of the folder that is given."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    for line in report(given.folder, given.out or given.folder.with_suffix(".spq")):
        print(line, flush=True)


if __name__ == "__main__":
    main()
