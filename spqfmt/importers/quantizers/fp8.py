"""FP8 codes with scales of tensors, rows or blocks: DeepSeek's layout, compressed-tensors' float-quantized, MXFP8.

    NAME            F8_E4M3 or another float of 8 bits, [..., out, in]
    NAME_scale_inv  or NAME_scale: F32, BF16, F16, F8_E8M0, or U8 that means F8_E8M0

What is restored is code * scale, in the dtype that the library gives it: the model's, but for compressed-tensors that
of scales of 16 bits. With scales of F32 its product is one of binary32, which the model's dtype then rounds.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from spqfmt.errors import ImporterError
from spqfmt.importers.quantizers.base import (
    COMPRESSED_TENSORS,
    Checkpoint,
    CodedWeight,
    LeftAsArrays,
    misfit,
    missing,
)
from spqfmt.schemes.group_numbers import FLOAT_DTYPES, GroupValues
from spqfmt.schemes.grouped import Grouped

_CODES = frozenset({"f8_e4m3", "f8_e5m2", "f8_e4m3fnuz", "f8_e5m2fnuz"})
_SCALES = {**dict(zip(FLOAT_DTYPES, FLOAT_DTYPES, strict=True)), "f8_e8m0": "f8_e8m0", "u8": "f8_e8m0"}
_METHODS = {
    "fp8": frozenset[str](),
    "fbgemm_fp8": frozenset[str](),
    "modelopt": frozenset[str](),
    COMPRESSED_TENSORS: frozenset(
        {"float-quantized", "naive-quantized", "mxfp8-quantized", "mixed-precision"}
    ),
}
_FMTS = {"e4m3": "f8_e4m3", "e5m2": "f8_e5m2", "float8_e4m3fn": "f8_e4m3", "float8_e5m2": "f8_e5m2"}
"""What configs call the floats."""
_ENDS = ("_scale_inv", "_scale")
_ALL_SCALED = frozenset({"fp8", "fbgemm_fp8"})
"""Methods whose floats of 8 bits all have scales."""
_HALVES = frozenset({"f16", "bf16"})
_MX_COLUMNS = 32
_BLOCK = (128, 128)
"""Where no config says another."""


class Fp8:
    """Codes that are floats of 8 bits."""

    def find(self, checkpoint: Checkpoint) -> Iterator[CodedWeight | LeftAsArrays]:
        """The weights that have scales beside them, as `Family.find` says."""
        arrays, quantizer = checkpoint.arrays, checkpoint.quantizer
        has_scales = quantizer.method in _ALL_SCALED or quantizer.formats == {"float-quantized"}
        for name, codes in arrays.items():
            names = [f"{name}{end}" for end in _ENDS if f"{name}{end}" in arrays]
            if has_scales and name.endswith("weight_scale_inv") and name.removesuffix(_ENDS[0]) not in arrays:
                raise missing(name.removesuffix(_ENDS[0]), name)
            if codes.dtype not in _CODES or len(codes.shape) < 2 or 0 in codes.shape:
                continue
            # Where nothing says that they have scales, they are numbers as they are.
            if not names and has_scales and name.endswith("weight"):
                raise missing(f"{name}{_ENDS[quantizer.method != 'fp8']}", name)
            if not names or not quantizer.writes(codes.dtype.upper(), _METHODS, name):
                continue
            said = str(quantizer.said.get("fmt") or "")
            if said in _FMTS and not codes.dtype.startswith(_FMTS[said]):
                raise ImporterError(
                    f"tensor {name!r} holds {codes.dtype.upper()}, but config.json says fmt {said!r}; "
                    "download both again"
                )
            if f"{name}_zero_point" in arrays:
                yield LeftAsArrays(name, "zero points of floats")
            else:
                yield _weight(checkpoint, name, names[0])


def _weight(checkpoint: Checkpoint, name: str, of_scales: str) -> CodedWeight:
    codes, scales = checkpoint.arrays[name], checkpoint.arrays[of_scales]
    if scales.dtype not in _SCALES:
        raise misfit(checkpoint.arrays, of_scales, name, f": scales of {scales.dtype}")
    rows, columns = _tile(checkpoint, name, of_scales)
    dtype = _SCALES[scales.dtype]
    by_scales = checkpoint.quantizer.method == COMPRESSED_TENSORS and dtype in _HALVES

    def stored() -> Grouped:
        numbers = checkpoint.scales(of_scales, dtype)
        return Grouped(
            codes=checkpoint.read(name).reshape(-1, codes.shape[-1]),
            code_dtype=codes.dtype,
            group_size=columns,
            bits=8,
            scale=GroupValues(numbers.reshape(-1, -(-codes.shape[-1] // columns)), dtype),
            group_rows=rows,
            stacked_rows=codes.shape[-2],
        )

    return CodedWeight(
        name=name,
        shape=codes.shape,
        dtype=dtype if by_scales else checkpoint.dtype,
        form=f"{codes.dtype.upper()} with scales of {rows} x {columns}",
        arrays={name: {"stream": "codes"}, of_scales: {"stream": "scales"}},
        stored=stored,
    )


def _tile(checkpoint: Checkpoint, name: str, of_scales: str) -> tuple[int, int]:
    """Rows and columns that share a scale."""
    shape, found = checkpoint.arrays[name].shape, checkpoint.arrays[of_scales].shape
    *stack, rows, columns = shape

    def fits(tile: tuple[int, int]) -> bool:
        return found == (*stack, -(-rows // tile[0]), -(-columns // tile[1]))

    quantizer = checkpoint.quantizer
    tile = next(filter(fits, quantizer.blocks), None)
    if tile is not None:
        return tile
    if quantizer.only_blocks:
        said = " or ".join(f"{block[0]} x {block[1]}" for block in quantizer.blocks)
        raise misfit(checkpoint.arrays, of_scales, name, f" in blocks of {said}, which config.json says")
    if prod(found) == prod(stack) and found[: len(stack)] in {tuple(stack), ()}:
        return rows, columns
    if found in {(*stack, rows), (*stack, rows, 1)}:
        return 1, columns
    if _SCALES[checkpoint.arrays[of_scales].dtype] == "f8_e8m0" and fits((1, _MX_COLUMNS)):
        return 1, _MX_COLUMNS
    if fits(_BLOCK):
        return _BLOCK
    is_grid = len(found) == len(shape) and found[: len(stack)] == tuple(stack)
    if is_grid and 0 not in found and not rows % found[-2] and not columns % found[-1]:
        return rows // found[-2], columns // found[-1]
    raise misfit(checkpoint.arrays, of_scales, name)


FAMILY = Fp8()
