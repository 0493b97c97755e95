"""What quantizers leave in a folder: names of arrays, arrays that only go together, files beside the weights."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

_OF_LAST = {
    "qweight": "gptq or awq",
    "weight_packed": "compressed-tensors",
    "bitmask": "compressed-tensors",
    "weight_scale_2": "nvfp4",
    "weight_sf": "nvfp4",
    "SCB": "bitsandbytes",
    "absmax": "bitsandbytes",
    "quant_map": "bitsandbytes",
    "W_q": "hqq or sinq",
    "_data": "quanto",
    "_weight_qdata": "torchao",
    "qdata": "torchao",
    "weight_scales": "eetq",
    "tables2": "higgs",
    "dense_weights": "spqr",
    "quant_weights": "spqr",
    "Qidxs": "quip#",
    "q_weight": "exl2",
    "dqweight": "fp_quant",
    "qbiases": "metal",
    "embedding_quantized": "gemma",
    "quantized_weight_values": "fouroversix",
    "weight_scale_inv": "fp8",
    "weight_scale": "compressed-tensors or fp8",
}
"""Quantizers by the last part of an array's name; what several have comes last."""
_TOGETHER = (
    (("codes", "codebooks"), "aqlm"),
    (("indices", "centroids.weight"), "vptq"),
    (("trellis", "suh"), "exl3"),
    (("trellis", "SU"), "qtip"),
    (("B", "s"), "marlin"),
    (("scales", "biases"), "mlx"),
)
"""Names that mean something else where they stand alone."""
_OF_PART = re.compile(r"\.(?:weight|input|output)_quantizer[._]")
_PARTS = frozenset(part for parts, _ in _TOGETHER for part in parts)
_LONG_PARTS = tuple(f".{part}" for part in _PARTS if "." in part)
_BY_FILE = {
    "quantize_config.json": "gptq",
    "quant_config.json": "awq",
    "hf_quant_config.json": "modelopt",
    "quanto_qmap.json": "quanto",
}
SPQR_REST = "not_quantized_weights.pt"
"""The file, in a folder that SpQR's own code has written, of what is not in the files of its layers."""


def by_files(names: Iterable[str]) -> str:
    """What has quantized a folder with files of these names; empty where none tells."""
    return next((_BY_FILE[name] for name in names if name in _BY_FILE), "")


def by_names(names: Iterable[str]) -> str:
    """What has quantized arrays of these names; empty where none tells."""
    lasts: set[str] = set()
    places: set[tuple[str, str]] = set()
    by_part = ""
    for name in names:
        where, _, last = name.replace(":", ".").rpartition(".")
        lasts.add(last)
        if last in _PARTS:
            places.add((where, last))
        elif name.endswith(_LONG_PARTS):
            places.add((where.rpartition(".")[0], ".".join(name.split(".")[-2:])))
        if "_quantizer" in name and _OF_PART.search(name):
            by_part = "quark or modelopt"
    by_last = (quantizer for last, quantizer in _OF_LAST.items() if last in lasts)
    return next(by_last, "") or by_part or next(_together(places), "")


def _together(places: set[tuple[str, str]]) -> Iterator[str]:
    for parts, quantizer in _TOGETHER:
        if any(
            part == parts[0] and all((where, other) in places for other in parts[1:])
            for where, part in places
        ):
            yield quantizer
