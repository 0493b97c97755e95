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

from spqfmt.importers.quantizers.base import (
    COMPRESSED_TENSORS,
    Checkpoint,
    CodedWeight,
    LeftAsArrays,
    misfit,
    missing,
)
from spqfmt.importers.quantizers.fp4 import CODES, check_said, unpacked
from spqfmt.schemes.group_numbers import GroupValues
from spqfmt.schemes.grouped import Grouped

_COLUMNS = 32
_BLOCK_BYTES = 16
_FORM = "MXFP4"
_GPT_OSS = "mxfp4"
_PACKED = "mxfp4-pack-quantized"
_METHODS: Mapping[str, frozenset[str]] = {
    _GPT_OSS: frozenset(),
    COMPRESSED_TENSORS: frozenset({_PACKED, "mixed-precision"}),
}


class Mxfp4:
    """Codes of four bits with exponents as scales."""

    def find(self, checkpoint: Checkpoint) -> Iterator[CodedWeight | LeftAsArrays]:
        """The weights whose codes have exponents beside them, as `Family.find` says."""
        arrays, quantizer = checkpoint.arrays, checkpoint.quantizer
        for name, codes in arrays.items():
            stem, _, last = name.rpartition("_")
            scales = {"blocks": f"{stem}_scales", "packed": f"{stem}_scale"}.get(last, "")
            is_blocks = last == "blocks"
            if not is_blocks and not name.endswith("weight_packed"):
                continue
            is_due = quantizer.method == _GPT_OSS if is_blocks else quantizer.formats == {_PACKED}
            if scales not in arrays:
                if is_due:
                    raise missing(scales, name)
                continue
            fits = codes.dtype == arrays[scales].dtype == "u8" and 0 not in codes.shape
            fits = fits and (len(codes.shape), len(arrays[scales].shape)) == ((4, 3) if is_blocks else (2, 2))
            if not fits:
                if is_due and f"{stem}_global_scale" not in arrays:  # which NVFP4 has
                    raise misfit(arrays, scales, name, f": {codes.dtype} and {arrays[scales].dtype}")
                continue
            if not quantizer.writes(_FORM, _METHODS, name):
                continue
            if is_blocks:
                yield _of_experts(checkpoint, stem, name, scales)
            elif f"{stem}_zero_point" in arrays:
                yield LeftAsArrays(name, "zero points of MXFP4")
            else:
                columns = 2 * codes.shape[1]
                if arrays[scales].shape != (codes.shape[0], -(-columns // _COLUMNS)):
                    raise misfit(arrays, scales, name)
                check_said(checkpoint, name, form=_FORM, packed=_PACKED, columns=_COLUMNS)
                yield _weight(checkpoint, stem, (name, scales), (codes.shape[0], columns))


def _of_experts(checkpoint: Checkpoint, stem: str, name: str, scales: str) -> CodedWeight:
    codes, exponents = checkpoint.arrays[name].shape, checkpoint.arrays[scales].shape
    if codes != (*exponents, _BLOCK_BYTES):
        raise misfit(checkpoint.arrays, scales, name)
    experts, rows, groups, _ = codes
    return _weight(checkpoint, stem, (name, scales), (experts, groups * _COLUMNS, rows), transposed=True)


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
