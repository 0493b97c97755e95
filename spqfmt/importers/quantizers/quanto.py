"""Codes of optimum-quanto: integers of eight, four and two bits, and floats of eight.

    NAME._data        I8 or a float of eight bits [out, in]
    NAME._scale       F32, BF16 or F16: [out, 1], or a single number

    NAME._data._data  U8 [lines * bits / 8, columns]: codes of four or two bits, in a byte those of lines that lie
                      a half or a quarter of all apart, the first in its lowest bits
    NAME._scale       [lines, 1]; a line is a row, or 128, 96, 64 or 32 columns of one
    NAME._shift       of the same shape: floats, or I8 where zero points were rounded

What is restored has the dtype of the scales. It is code * scale, code * scale - shift, or (code - shift) * scale. The
library rounds each operation to that dtype; here it is rounded once, which is the same where there is but one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

import numpy as np

from spqfmt.codecs.elements import Elements, from_planes
from spqfmt.errors import ImporterError
from spqfmt.importers.quantizers.base import Checkpoint, CodedWeight, LeftAsArrays, misfit, missing
from spqfmt.importers.quantizers.packed_layers import StaysError
from spqfmt.importers.quantizers.skeleton import shape_in_model
from spqfmt.schemes.group_numbers import FLOAT_DTYPES, GroupValues
from spqfmt.schemes.grouped import Grouped

_BYTES = frozenset({"i8", "f8_e4m3", "f8_e5m2", "f8_e4m3fnuz", "f8_e5m2fnuz"})
_METHODS: Mapping[str, frozenset[str]] = {"quanto": frozenset()}
_GROUPS = (128, 96, 64, 32)
"""Columns of a group, where a row has more than 128."""
_SCALARS = ("input_scale", "output_scale")


class Quanto:
    """Codes with a scale for each row or group."""

    def find(self, checkpoint: Checkpoint) -> Iterator[CodedWeight | LeftAsArrays]:
        """The weights that are stored as data and scales, as `Family.find` says."""
        arrays = checkpoint.arrays
        for name, codes in arrays.items():
            stem = name.removesuffix("._data").removesuffix("._data")
            is_packed = name == f"{stem}._data._data"
            if name not in (f"{stem}._data", f"{stem}._data._data"):
                continue
            if f"{stem}._scale" not in arrays:
                if checkpoint.quantizer.method in _METHODS:
                    raise missing(f"{stem}._scale", name)
                continue
            fits = len(codes.shape) == 2 and codes.dtype == "u8" if is_packed else len(codes.shape) > 1
            if not fits or 0 in codes.shape or (not is_packed and codes.dtype not in _BYTES):
                if checkpoint.quantizer.method in _METHODS:
                    raise misfit(arrays, f"{stem}._scale", name, f": codes of {codes.dtype}")
                continue
            if not checkpoint.quantizer.writes("codes of quanto", _METHODS, name):
                continue
            scales = arrays[f"{stem}._scale"]
            if scales.dtype not in FLOAT_DTYPES or 0 in scales.shape:
                raise misfit(arrays, f"{stem}._scale", name, f": scales of {scales.dtype}")
            try:
                yield _packed(checkpoint, stem) if is_packed else _of_bytes(checkpoint, stem)
            except StaysError as why:
                yield LeftAsArrays(name, str(why))


def _of_bytes(checkpoint: Checkpoint, name: str) -> CodedWeight:
    of_codes, of_scales = f"{name}._data", f"{name}._scale"
    codes, scales = checkpoint.arrays[of_codes], checkpoint.arrays[of_scales]
    rows, *rest = codes.shape
    columns = prod(rest)
    if prod(scales.shape) != 1 and (prod(scales.shape), *scales.shape[:1]) != (rows, rows):
        raise misfit(checkpoint.arrays, of_scales, of_codes)
    lines = prod(scales.shape)

    def stored() -> Grouped:
        return Grouped(
            codes=checkpoint.read(of_codes).reshape(rows, columns),
            code_dtype=codes.dtype,
            group_size=columns,
            bits=8,
            scale=GroupValues(checkpoint.scales(of_scales, scales.dtype).reshape(lines, 1), scales.dtype),
            group_rows=rows // lines,
        )

    return CodedWeight(
        name=name,
        shape=codes.shape,
        dtype=scales.dtype,
        form=f"quanto {codes.dtype}",
        arrays={of_codes: {"stream": "codes"}, of_scales: {"stream": "scales"}, **_beside(checkpoint, name)},
        stored=stored,
        view=(rows, columns) if len(rest) > 1 else None,
    )


@dataclass(frozen=True)
class _Lines:
    """Codes of less than a byte: `lines` with a scale each, of so many columns of a weight of this shape."""

    bits: int
    lines: int
    columns: int
    shape: tuple[int, ...]


def _lines(checkpoint: Checkpoint, name: str) -> _Lines:
    """How the codes lie. Raises ImporterError, StaysError."""
    arrays, of_codes, of_scales = checkpoint.arrays, f"{name}._data._data", f"{name}._scale"
    packed, columns = arrays[of_codes].shape
    lines = arrays[of_scales].shape[0] if arrays[of_scales].shape else 0
    per_byte = -(-lines // packed)
    if arrays[of_scales].shape != (lines, 1) or per_byte not in (2, 4):
        raise misfit(arrays, of_scales, of_codes)
    if lines % packed:
        raise StaysError("lines that fill no whole bytes")
    bits = 8 // per_byte
    if columns not in _GROUPS:
        return _Lines(bits, lines, columns, (lines, columns))
    shape = shape_in_model(checkpoint.config, name)
    if shape is None:
        raise StaysError("groups, where no model can be built of config.json that says the shapes of weights")
    if prod(shape) != lines * columns or (shape[0] != lines and prod(shape[1:]) % columns):
        raise ImporterError(
            f"tensor {of_codes!r} holds {lines} x {columns} codes, but by config.json {name!r} is "
            f"{' x '.join(map(str, shape))}; download both again"
        )
    return _Lines(bits, lines, columns, shape)


def _packed(checkpoint: Checkpoint, name: str) -> CodedWeight:
    of_codes, of_scales, of_shift = (f"{name}.{end}" for end in ("_data._data", "_scale", "_shift"))
    arrays = checkpoint.arrays
    found = _lines(checkpoint, name)
    shift, dtype = arrays.get(of_shift), arrays[of_scales].dtype
    if shift is None:
        raise missing(of_shift, of_codes)
    if shift.shape != arrays[of_scales].shape or shift.dtype not in ("i8", dtype):
        raise misfit(arrays, of_shift, of_scales)
    # Zero points have no sign here.
    if shift.dtype == "i8" and (checkpoint.read(of_shift) < 0).any():
        raise StaysError("zero points below zero")
    rows = found.shape[0]
    per_byte, of_packed = 8 // found.bits, found.lines * found.bits // 8
    groups = found.lines // rows

    def stored() -> Grouped:
        scales = checkpoint.scales(of_scales, dtype).reshape(rows, groups)
        shifts = checkpoint.read(of_shift).reshape(rows, groups)
        zeros = minimums = None
        if shift.dtype == "i8":
            zeros = GroupValues(shifts.view(np.uint8), "u8")
        else:
            minimums = GroupValues(checkpoint.scales(of_shift, dtype).reshape(rows, groups), dtype)
        return Grouped(
            codes=_unpacked(checkpoint.read(of_codes), found.bits).reshape(rows, -1),
            code_dtype=f"u{found.bits}",
            group_size=found.columns,
            bits=found.bits,
            scale=GroupValues(scales, dtype),
            zero_point=zeros,
            minimum=minimums,
        )

    return CodedWeight(
        name=name,
        shape=found.shape,
        dtype=dtype,
        form=f"quanto int{found.bits}",
        arrays={
            of_codes: {
                "stream": "codes",
                "dims": [per_byte, of_packed, found.columns],
                "axes": [1, 2, 0],
            },
            of_scales: {"stream": "scales"},
            of_shift: {"stream": "zero_points" if shift.dtype == "i8" else "minimums"},
            **_beside(checkpoint, name),
        },
        stored=stored,
        view=(rows, groups * found.columns) if len(found.shape) > 2 else None,
    )


def _unpacked(packed: Elements, bits: int) -> Elements:
    """The codes of bytes [n, columns], line after line."""
    flat = np.ascontiguousarray(packed).reshape(-1)
    codes = np.empty(8 // bits * flat.size, np.uint8)
    from_planes(flat, f"u{bits}", codes.size, codes)
    return codes.reshape(*packed.shape, -1).transpose(2, 0, 1)


def _beside(checkpoint: Checkpoint, name: str) -> dict[str, None]:
    """Scales of inputs and outputs: single numbers, which nothing uses but the library's own products."""
    stem = name.rpartition(".")[0]
    names = (f"{stem}.{scalar}" for scalar in _SCALARS)
    arrays = checkpoint.arrays
    return {name: None for name in names if name in arrays and prod(arrays[name].shape) == 1}


FAMILY = Quanto()
