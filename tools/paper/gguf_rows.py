"""GGUF's own values for the table of methods: every linear layer through ggml's quantizer, and back to float32.

    pip install --no-deps --target DIR xllamacpp
    python tools/paper/evaluate_methods.py OUT_DIR --text FILE --rows gguf --ggml DIR/xllamacpp/xllamacpp.abi3.so

Any shared library of ggml does that exports `ggml_quantize_chunk`; the one above is in a wheel on PyPI. Needs the
package gguf, which gives the values of the blocks.

Types of 256 weights a block (Q4_K and its kind) want rows of a multiple of 256, which most layers of our models have
not. A row is filled up with zeros for the quantizer, and they are not counted: the values are GGUF's, and the bits
those of a model whose rows fit. `fallback` is what llama.cpp does with such rows: another type, with its own bits.

`importance` weighs the error of each column with the mean square of its input, as llama.cpp's importance matrix does.
"""

from __future__ import annotations

import ctypes
import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, quants
from gguf import GGMLQuantizationType as Kind
from method_results import figures_of_no_file
from method_rows import Options
from numpy.typing import NDArray

from spqfmt.calibration.engine import BATCH_TOKENS
from spqfmt.calibration.text import CalibrationOptions, choose_samples
from spqfmt.exporters import export_huggingface
from spqfmt.importers import SourceTensor, open_source
from spqfmt.loaders import load_model

Floats: TypeAlias = NDArray[np.float32]
Quantizer: TypeAlias = Callable[[Kind, Floats, Floats | None], NDArray[np.uint8]]
"""(type, matrix [rows, columns], importance [columns] or None) -> blocks, uint8 [rows, bytes a row]."""

_FALLBACK = {Kind.Q3_K: Kind.Q4_0, Kind.Q4_K: Kind.Q5_0}
"""What llama.cpp takes where a row does not fit (its `tensor_type_fallback`); where that does not fit either, F16."""


def open_quantizer(library: Path) -> Quantizer:
    """ggml's quantizer from a shared library; SystemExit where it has none."""
    try:
        function = ctypes.CDLL(str(library)).ggml_quantize_chunk
    except (OSError, AttributeError) as error:
        raise SystemExit(f"{library}: no library with ggml_quantize_chunk: {error}") from None
    function.restype = ctypes.c_size_t
    integers = [ctypes.c_int64] * 3  # first weight, rows, columns
    function.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *integers, ctypes.c_void_p]

    def quantize(kind: Kind, matrix: Floats, importance: Floats | None) -> NDArray[np.uint8]:
        rows, columns = matrix.shape
        n_weights, n_bytes = GGML_QUANT_SIZES[kind]
        blocks = np.empty((rows, columns // n_weights * n_bytes), np.uint8)
        weights = None if importance is None else importance.ctypes.data
        written = function(kind, matrix.ctypes.data, blocks.ctypes.data, 0, rows, columns, weights)
        if written != blocks.nbytes:
            raise SystemExit(f"{library}: {kind.name} took {written} bytes, not {blocks.nbytes}")
        return blocks

    return quantize


def bits_of(kind: Kind) -> float:
    """Bits a weight of a type, its scales included."""
    n_weights, n_bytes = GGML_QUANT_SIZES[kind]
    return float(8 * n_bytes / n_weights)


def fallback(kind: Kind, columns: int) -> Kind:
    """The type that llama.cpp gives to rows of `columns` when `kind` is asked for."""
    for fitting in (kind, _FALLBACK[kind]):
        if columns % GGML_QUANT_SIZES[fitting][0] == 0:
            return fitting
    return Kind.F16


def through(quantize: Quantizer, kind: Kind, matrix: torch.Tensor, importance: Floats | None) -> torch.Tensor:
    """Float32 [rows, columns]: what `matrix` of that shape becomes in blocks of `kind`."""
    if kind is Kind.F16:
        return matrix.half().float()
    columns = matrix.shape[1]
    missing = -columns % GGML_QUANT_SIZES[kind][0]
    filled = np.pad(matrix.float().numpy(), ((0, 0), (0, missing)))
    weights = None if importance is None else np.pad(importance, (0, missing))
    values = quants.dequantize(quantize(kind, filled, weights), kind)
    return torch.from_numpy(values[:, :columns].copy())


@cache
def mean_squares(source: Path, samples: int, seq_len: int) -> Mapping[str, Floats]:
    """The mean square of every input column [columns], by weight, on the samples that methods calibrate with."""
    model, tokenizer = load_model(source, dtype="float32")
    options = CalibrationOptions(samples=samples, seq_len=seq_len)
    ids = choose_samples(tokenizer, options, model.config.max_position_embeddings)
    sums: dict[str, torch.Tensor] = {}

    def add(name: str, _: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        squares = inputs[0].flatten(0, -2).double().square().sum(0)
        sums[name] = sums.get(name, torch.zeros_like(squares)) + squares

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(partial(add, f"{name}.weight"))
    with torch.no_grad():
        for batch in torch.split(ids, max(1, BATCH_TOKENS // ids.shape[1])):
            model(input_ids=batch, use_cache=False, logits_to_keep=1)
    return {name: (total / ids.numel()).float().numpy() for name, total in sums.items()}


def pack(source: Path, out: Path, quantize: Quantizer, options: Options) -> dict[str, float | None]:
    """Write the model as GGUF has it as a Hugging Face folder, and return the costs of the row.

    `file_bytes` are those of all tensors in a GGUF file, without its metadata.
    """
    started = time.monotonic()
    asked = Kind[str(options["type"])]
    importance: Mapping[str, Floats] = {}
    if "importance" in options:
        importance = mean_squares(source, int(options["samples"]), int(options["seq-len"]))
    model = open_source(source)
    tensors: list[SourceTensor] = []
    n_weights, n_bits, kept_bytes, raw_bytes = 0, 0.0, 0, 0
    for tensor in model.tensors:
        n_bytes = 0 if tensor.tied_to else tensor.load().nbytes
        raw_bytes += n_bytes
        if tensor.role != "linear":
            kept_bytes += n_bytes
            tensors.append(tensor)
            continue
        kind = fallback(asked, tensor.shape[1]) if "fallback" in options else asked
        n_weights += math.prod(tensor.shape)
        n_bits += math.prod(tensor.shape) * bits_of(kind)
        load = partial(_load, tensor, quantize, kind, importance.get(tensor.name))
        tensors.append(dataclasses.replace(tensor, dtype="f32", load=load))
    export_huggingface(out, tensors, {asset.name: asset.data for asset in model.assets})
    return figures_of_no_file(
        raw_bytes, kept_bytes, n_weights, n_bits=n_bits, seconds=time.monotonic() - started
    )


def _load(tensor: SourceTensor, quantize: Quantizer, kind: Kind, importance: Floats | None) -> torch.Tensor:
    return through(quantize, kind, tensor.load(), importance)
