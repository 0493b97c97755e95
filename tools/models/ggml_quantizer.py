"""Matrices as ggml's blocks: by the package gguf, or by ggml's own quantizer, which the package xllamacpp brings."""

from __future__ import annotations

import ctypes
import importlib.metadata
from typing import Any

import gguf
import numpy as np


def _ggml() -> Any:
    """ggml's quantizer; None where there is none."""
    try:
        files = importlib.metadata.distribution("xllamacpp").files or []
    except importlib.metadata.PackageNotFoundError:
        return None
    library = next(
        (file for file in files if file.name.startswith("xllamacpp") and file.suffix == ".so"), None
    )
    if library is None:
        return None
    quantize = ctypes.CDLL(str(library.locate())).ggml_quantize_chunk
    quantize.restype = ctypes.c_size_t
    quantize.argtypes = [
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
        *[ctypes.c_int64] * 3,
        ctypes.c_void_p,
    ]
    return quantize


def ggml_blocks(values: Any, kind: gguf.GGMLQuantizationType) -> Any:
    """Rows of blocks; None for a kind that nothing here makes."""
    try:
        return gguf.quants.quantize(values, kind)
    except NotImplementedError:
        quantize = _ggml()
    if quantize is None:
        return None
    n_weights, n_bytes = gguf.GGML_QUANT_SIZES[kind]
    made = np.empty((len(values), values.shape[1] // n_weights * n_bytes), np.uint8)
    addresses = values.ctypes.data, made.ctypes.data
    quantize(int(kind), *addresses, 0, *values.shape, None)
    return made
