"""MXFP4: codes of four bits, 32 to a power of two, as gpt-oss and compressed-tensors store them.

    NAME_blocks         U8 [experts, out, in / 32, 16], the weight NAME being [experts, in, out]
    NAME_scales         U8 [experts, out, in / 32], exponents with a bias of 127

    NAME.weight_packed  U8 [out, in / 2]
    NAME.weight_scale   U8 [out, in / 32]

What is restored is code * 2^exponent: exact in binary32, and in bfloat16 unless it is below its normal numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from spqfmt.importers.quantizers.base import COMPRESSED_TENSORS, Checkpoint, CodedWeight, misfit
from spqfmt.importers.quantizers.fp4 import CODES, unpacked
from spqfmt.schemes.group_numbers import GroupValues
from spqfmt.schemes.grouped import Grouped

_COLUMNS = 32
_BLOCK_BYTES = 16
_FORM = "MXFP4"
_METHODS: Mapping[str, frozenset[str]] = {
    "mxfp4": frozenset(),
    COMPRESSED_TENSORS: frozenset({"mxfp4-pack-quantized", "mixed-precision"}),
}


class Mxfp4:
    """Codes of four bits with exponents as scales."""

    def find(self, checkpoint: Checkpoint) -> Iterator[CodedWeight]:
        """The weights whose codes have exponents beside them, as `Family.find` says."""
        arrays = checkpoint.arrays
        for name, codes in arrays.items():
            is_bytes = codes.dtype == "u8" and 0 not in codes.shape
            stem, _, last = name.rpartition("_")
            scales = {"blocks": f"{stem}_scales", "packed": f"{stem}_scale"}.get(last, "")
            if not is_bytes or scales not in arrays or arrays[scales].dtype != "u8":
                continue
            if last == "blocks" and len(codes.shape) == len(arrays[scales].shape) + 1 == 4:
                if not checkpoint.quantizer.writes(_FORM, _METHODS, name):
                    continue
                if codes.shape != (*arrays[scales].shape, _BLOCK_BYTES):
                    raise misfit(arrays, scales, name)
                experts, rows, groups, _ = codes.shape
                shape = experts, groups * _COLUMNS, rows
                yield _weight(checkpoint, stem, (name, scales), shape, transposed=True)
            elif (
                name.endswith("weight_packed")
                and f"{stem}_zero_point" not in arrays
                and len(codes.shape) == 2
            ):
                if not checkpoint.quantizer.writes(_FORM, _METHODS, name):
                    continue
                columns = 2 * codes.shape[1]
                if arrays[scales].shape != (codes.shape[0], -(-columns // _COLUMNS)):
                    raise misfit(arrays, scales, name)
                yield _weight(checkpoint, stem, (name, scales), (codes.shape[0], columns))


def _weight(
    checkpoint: Checkpoint,
    name: str,
    arrays: tuple[str, str],
    shape: tuple[int, ...],
    *,
    transposed: bool = False,
) -> CodedWeight:
    of_codes, of_scales = arrays
    columns = shape[-2] if transposed else shape[-1]

    def stored() -> Grouped:
        codes = unpacked(checkpoint.read(of_codes)).reshape(-1, columns)
        scales = checkpoint.scales(of_scales, "f8_e8m0").reshape(len(codes), -1)
        return Grouped(
            codes=codes,
            code_dtype=CODES,
            group_size=_COLUMNS,
            bits=4,
            scale=GroupValues(np.ascontiguousarray(scales), "f8_e8m0"),
        )

    return CodedWeight(
        name=name,
        shape=shape,
        # compressed-tensors unpacks to bfloat16, whatever the model computes in.
        dtype=checkpoint.dtype if transposed else "bf16",
        form=_FORM,
        arrays={of_codes: {"stream": "codes"}, of_scales: {"stream": "scales"}},
        stored=stored,
        transposed=transposed,
    )


FAMILY = Mxfp4()
