"""LLM.int8 of bitsandbytes: codes of eight bits with a scale for each row.

    STEM.weight         I8 [out, in]
    STEM.SCB            F32 [out], the largest magnitude of a row
    STEM.weight_format  U8 []: 0 stands for rows as they are

What is restored is code * SCB * (1 / 127), each product rounded to binary32, in the model's dtype. The last factor is
a scale of columns that is one number.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import numpy as np

from spqfmt.importers.quantizers.base import Checkpoint, CodedWeight, LeftAsArrays, misfit, missing
from spqfmt.schemes.floats import Scale
from spqfmt.schemes.uniform import Uniform

_RECIPROCAL = np.float32(7.874015718698502e-3)
"""The library writes 1 / 127 so."""


class LlmInt8:
    """Codes of eight bits with a scale for each row."""

    def find(self, checkpoint: Checkpoint) -> Iterator[CodedWeight | LeftAsArrays]:
        """The weights that have scales of rows beside them, as `Family.find` says."""
        arrays, said = checkpoint.arrays, checkpoint.quantizer
        is_due = said.method == "bitsandbytes" and "int8" in said.formats
        for name, array in arrays.items():
            if name.endswith(".SCB"):
                of_codes = f"{name.removesuffix('SCB')}weight"
                if is_due and of_codes not in arrays:
                    raise missing(of_codes, name)
                if is_due and (arrays[of_codes].dtype != "i8" or len(arrays[of_codes].shape) != 2):
                    raise misfit(arrays, name, of_codes, f": codes of {arrays[of_codes].dtype}")
                yield from _weight(checkpoint, name.removesuffix("SCB"))
            elif is_due and array.dtype == "i8" and name.endswith(".weight"):
                of_scales = f"{name.removesuffix('weight')}SCB"
                if of_scales not in arrays:
                    raise missing(of_scales, name)


def _weight(checkpoint: Checkpoint, stem: str) -> Iterator[CodedWeight | LeftAsArrays]:
    """LLM.int8's weight; none where its rows are not as they are."""
    name, of_scales, of_format = f"{stem}weight", f"{stem}SCB", f"{stem}weight_format"
    arrays = checkpoint.arrays
    codes, scales, layout = arrays.get(name), arrays[of_scales], arrays.get(of_format)
    if codes is None or codes.dtype != "i8" or len(codes.shape) != 2 or 0 in codes.shape:
        return
    if not checkpoint.quantizer.writes("LLM.int8", {"bitsandbytes": frozenset({"int8"})}, name):
        return
    if scales.dtype != "f32" or prod(scales.shape) != codes.shape[0]:
        raise misfit(arrays, of_scales, name)
    if layout is not None and (prod(layout.shape) != 1 or checkpoint.read(of_format).any()):
        yield LeftAsArrays(name, "rows in a layout of GPUs")
        return
    turned = checkpoint.turns(name)
    rows, columns = codes.shape

    def stored() -> Uniform:
        return Uniform(
            codes=checkpoint.read(name),
            step=np.float32(1),
            row_scale=Scale(checkpoint.scales(of_scales, "f32").reshape(rows), "f32"),
            column_scale=Scale(np.full(columns, _RECIPROCAL), "f32"),
        )

    yield CodedWeight(
        name=name,
        shape=(columns, rows) if turned else codes.shape,
        dtype=checkpoint.dtype,
        form="LLM.int8",
        arrays={
            name: {"stream": "codes"},
            of_scales: {"stream": "row_scales"},
            **({} if layout is None else {of_format: None}),
        },
        stored=stored,
        transposed=turned,
    )


FAMILY = LlmInt8()
