"""Codes of torchao, whose tensors are taken apart in safetensors: what each of them is stands in the file's metadata.

    STEM._weight_qdata       of Int8Tensor and IntxUnpackedToInt8Tensor I8 [.., out, in], of Float8Tensor a float of
                             8 bits, of Int4Tensor I8 [.., out, in / 2]: two codes with a sign in a byte, the first low
    STEM._weight_scale       F32, BF16 or F16, one for each block, which is of rows and columns; of Int4Tensor
                             [.., in / columns of a block, out]
    STEM._weight_zero_point  I8, as the scales; of Int4Tensor of their dtype, and what is added to the product
    __metadata__             STEM.weight: JSON, with the name of the tensor's class, the size of a block and the dtype

What is restored is (code - zero point) * scale, or code * scale + zero point, rounded once to the dtype.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from spqfmt.codecs.elements import Elements, from_planes
from spqfmt.errors import ImporterError
from spqfmt.importers._safetensors import read_header
from spqfmt.importers.quantizers.base import DTYPES, Checkpoint, CodedWeight, LeftAsArrays, misfit, missing
from spqfmt.schemes.floats import widen
from spqfmt.schemes.group_numbers import FLOAT_DTYPES, GroupValues
from spqfmt.schemes.grouped import Grouped
from spqfmt.wire import DTYPES as WIRE_DTYPES

_METHODS: Mapping[str, frozenset[str]] = {"torchao": frozenset()}
_FLOATS = frozenset({"f8_e4m3", "f8_e5m2"})
_BITS = {"Int8Tensor": 8, "Float8Tensor": 8, "Int4Tensor": 4}
_INTX = "IntxUnpackedToInt8Tensor"
_SCALARS = ("act_quant_scale", "act_quant_zero_point")
_MOST = 16
"""Elements of these, at most."""


class TorchAo:
    """Codes of whole numbers and floats with a scale for each block."""

    def find(self, checkpoint: Checkpoint) -> Iterator[CodedWeight | LeftAsArrays]:
        """The weights that the files' metadata describes, as `Family.find` says."""
        said = _metadata(checkpoint)
        if checkpoint.quantizer.method in _METHODS:
            _check_said(checkpoint, said)
        for name, text in said.items():
            module, _, last = name.rpartition(".")
            prefix = f"{module}._{last}_"
            of_codes = f"{prefix}qdata"
            if of_codes not in checkpoint.arrays:
                continue
            if not checkpoint.quantizer.writes("codes of torchao", _METHODS, of_codes):
                continue
            found = _Tensor.of(checkpoint, name, prefix, text)
            yield found if isinstance(found, LeftAsArrays) else found.weight(checkpoint)


def _metadata(checkpoint: Checkpoint) -> dict[str, str]:
    """What the headers of the files say, by the names of tensors."""
    files = {array.file.path: array.file for array in checkpoint.arrays.values()}
    said: dict[str, str] = {}
    for path, file in files.items():
        if path.suffix.lower() == ".safetensors":
            said |= read_header(file).metadata
    return said


def _check_said(checkpoint: Checkpoint, said: Mapping[str, str]) -> None:
    """Raise ImporterError for codes of which the metadata says nothing."""
    for name in checkpoint.arrays:
        stem = name.removesuffix("._weight_qdata")
        if stem != name and f"{stem}.weight" not in said:
            raise ImporterError(
                f"tensor {name!r}: the file's metadata does not say which class of torchao it is of; "
                "download the model again"
            )


@dataclass(frozen=True)
class _Tensor:
    """A tensor of one of torchao's classes, the shapes of its arrays compared. A block is of `rows` by `columns`."""

    name: str
    prefix: str
    kind: str
    shape: tuple[int, ...]
    dtype: str
    bits: int
    rows: int
    columns: int
    has_zeros: bool

    @classmethod
    def of(cls, checkpoint: Checkpoint, name: str, prefix: str, text: str) -> _Tensor | LeftAsArrays:
        """Read what the metadata says. Raises ImporterError where it contradicts the arrays."""
        arrays, of_codes, of_scales = checkpoint.arrays, f"{prefix}qdata", f"{prefix}scale"
        kind, said = _said(name, text)
        codes = arrays[of_codes]
        bits = _BITS.get(kind) or _bits_of(_dtype(said.get("target_dtype"))) if kind in {*_BITS, _INTX} else 0
        due = _FLOATS if kind == "Float8Tensor" else {"i8"}
        if not bits:
            return LeftAsArrays(of_codes, f"{kind} of torchao")
        if codes.dtype not in due or len(codes.shape) < 2 or 0 in codes.shape:
            raise ImporterError(
                f"tensor {of_codes!r} of {codes.dtype} and shape {list(codes.shape)} is no matrix of {kind}; "
                "download the model again"
            )
        if f"{prefix}act_pre_scale" in arrays:
            return LeftAsArrays(of_codes, "torchao's scales of inputs")
        scales = arrays.get(of_scales)
        if scales is None:
            raise missing(of_scales, of_codes)
        if scales.dtype not in FLOAT_DTYPES:
            raise misfit(arrays, of_scales, of_codes, f": scales of {scales.dtype}")
        shape = (*codes.shape[:-1], codes.shape[-1] * (8 // bits)) if kind == "Int4Tensor" else codes.shape
        if kind == "Int4Tensor" and tuple(_list(said.get("shape"))) != shape:
            raise misfit(arrays, of_scales, of_codes, f", whose weight is said to be {said.get('shape')}")
        rows, columns = _block(name, said, shape)
        if kind == "Int4Tensor" and rows > 1:
            raise ImporterError(
                f"tensor {name!r}: blocks of {said.get('block_size')} are none of Int4Tensor; download the model again"
            )
        if _dtype(said.get("dtype")) == "float64":
            return LeftAsArrays(of_codes, "weights of float64")
        # A class that says no dtype has that of its scales.
        dtype = scales.dtype if said.get("dtype") is None else DTYPES.get(_dtype(said["dtype"]))
        if dtype is None:
            raise ImporterError(
                f"tensor {name!r} is said to have dtype {json.dumps(said['dtype'])[:80]}; download the model again"
            )
        tensor = cls(name, prefix, kind, shape, dtype=dtype, bits=bits, rows=rows, columns=columns,
                     has_zeros=f"{prefix}zero_point" in arrays)  # fmt: skip
        tensor._check_shapes(checkpoint)
        if tensor.has_zeros and arrays[f"{prefix}zero_point"].dtype != (
            scales.dtype if kind == "Int4Tensor" else "i8"
        ):
            return LeftAsArrays(of_codes, f"zero points of {arrays[f'{prefix}zero_point'].dtype}")
        return tensor

    def _check_shapes(self, checkpoint: Checkpoint) -> None:
        """Raise ImporterError unless scales and zero points have the shape that the blocks need."""
        arrays, of_codes, of_zeros = checkpoint.arrays, f"{self.prefix}qdata", f"{self.prefix}zero_point"
        *stack, rows, columns = self.shape
        due = (*stack, rows // self.rows, columns // self.columns)
        if self.kind == "Int4Tensor":
            if not self.has_zeros:
                raise missing(of_zeros, of_codes)
            due = (*stack, due[-1], rows)
        # Some versions leave out the dimensions of one.
        allowed = {due} if self.kind == "Int4Tensor" else {due, tuple(n for n in due if n > 1)}
        for array in (f"{self.prefix}scale", of_zeros):
            found = arrays[array].shape if array in arrays else due
            if found not in allowed and not prod(found) == prod(due) == 1:
                raise misfit(
                    arrays,
                    array,
                    of_codes,
                    f" in blocks of {self.rows} x {self.columns}: {list(due)} are due",
                )

    @property
    def grid(self) -> tuple[int, int]:
        """Lines and groups of scales."""
        return prod(self.shape[:-1]) // self.rows, self.shape[-1] // self.columns

    def weight(self, checkpoint: Checkpoint) -> CodedWeight:
        """The weight that these codes stand for."""
        arrays, prefix = checkpoint.arrays, self.prefix
        of_codes, of_scales, of_zeros = f"{prefix}qdata", f"{prefix}scale", f"{prefix}zero_point"
        codes: dict[str, object] = {"stream": "codes"}
        scales: dict[str, object] = {"stream": "scales"}
        zeros: dict[str, object] = {"stream": "zero_points"}
        stored = self._floats
        if self.kind == "Int4Tensor":
            stored = self._added
            *stack, rows, columns = self.shape
            turned = {"dims": [prod(stack), rows, columns // self.columns], "axes": [0, 2, 1]}
            scales |= turned
            # Another sign: minimums are taken away.
            sign = 1 << (WIRE_DTYPES[arrays[of_scales].dtype].bits - 1)
            zeros = {"stream": "minimums", "add": sign, **turned}
        elif self.has_zeros:
            stored = self._shifted
            offset = {"bits": 8, "add": -self._offset}
            codes, zeros = codes | offset, zeros | offset
        elif self.kind != "Float8Tensor":
            codes |= {"bits": 8}
        beside = {f"{prefix}{end}": None for end in _SCALARS if f"{prefix}{end}" in arrays}
        return CodedWeight(
            name=self.name,
            shape=self.shape,
            dtype=self.dtype,
            form=f"torchao {self.kind}" + (f" of {self.bits} bits" if self.kind == _INTX else ""),
            arrays={
                of_codes: codes,
                of_scales: scales,
                **({of_zeros: zeros} if self.has_zeros else {}),
                **{name: None for name in beside if prod(arrays[name].shape) <= _MOST},
            },
            stored=lambda: stored(checkpoint),
        )

    @property
    def _dtype(self) -> str:
        """The narrowest dtype without a sign that holds the codes."""
        return f"u{next(width for width in (2, 4, 8) if width >= self.bits)}"

    @property
    def _offset(self) -> int:
        """What makes codes and zero points numbers without a sign."""
        return int(1 << (WIRE_DTYPES[self._dtype].bits - 1))

    def _scales(self, checkpoint: Checkpoint) -> GroupValues:
        name = f"{self.prefix}scale"
        dtype = checkpoint.arrays[name].dtype
        return GroupValues(checkpoint.scales(name, dtype).reshape(self.grid), dtype)

    def _grouped(
        self,
        checkpoint: Checkpoint,
        codes: Elements,
        code_dtype: str,
        *,
        scale: GroupValues | None = None,
        zero_point: GroupValues | None = None,
        minimum: GroupValues | None = None,
    ) -> Grouped:
        return Grouped(
            codes=codes.reshape(-1, self.shape[-1]),
            code_dtype=code_dtype,
            group_size=self.columns,
            bits=self.bits,
            scale=self._scales(checkpoint) if scale is None else scale,
            zero_point=zero_point,
            minimum=minimum,
            group_rows=self.rows,
        )

    def _floats(self, checkpoint: Checkpoint) -> Grouped:
        name = f"{self.prefix}qdata"
        return self._grouped(checkpoint, checkpoint.read(name), checkpoint.arrays[name].dtype)

    def _shifted(self, checkpoint: Checkpoint) -> Grouped:
        """Codes and zero points, both from nought."""

        def from_nought(name: str) -> Elements:
            found = checkpoint.read(name).astype(np.int16) + self._offset
            if found.min() < 0 or found.max() >= 2 * self._offset:
                worst = int(found.min() if found.min() < 0 else found.max()) - self._offset
                raise ImporterError(
                    f"tensor {name!r} holds {worst}, more than codes of {self.bits} bits can be; "
                    "--method lossless keeps it"
                )
            return found.astype(np.uint8)

        zeros = GroupValues(from_nought(f"{self.prefix}zero_point").reshape(self.grid), self._dtype)
        return self._grouped(checkpoint, from_nought(f"{self.prefix}qdata"), self._dtype, zero_point=zeros)

    def _added(self, checkpoint: Checkpoint) -> Grouped:
        """Codes of four bits whose zero points are added to the product."""
        lines, groups = self.grid

        def turned(name: str) -> tuple[Elements, str]:
            dtype = checkpoint.arrays[name].dtype
            found = checkpoint.scales(name, dtype).reshape(-1, groups, self.shape[-2]).swapaxes(1, 2)
            return np.ascontiguousarray(found).reshape(lines, groups), dtype

        packed = np.ascontiguousarray(checkpoint.read(f"{self.prefix}qdata")).reshape(-1).view(np.uint8)
        codes = np.empty(2 * packed.size, np.int8)
        from_planes(packed, "i4", codes.size, codes)
        added, dtype = turned(f"{self.prefix}zero_point")
        bits = added.view(f"u{added.dtype.itemsize}")
        flipped = (bits ^ bits.dtype.type(1 << (8 * bits.dtype.itemsize - 1))).view(added.dtype)
        assert (widen(flipped, dtype) == -widen(added, dtype)).all()
        return self._grouped(
            checkpoint,
            codes,
            "i4",
            scale=GroupValues(*turned(f"{self.prefix}scale")),
            minimum=GroupValues(flipped, dtype),
        )


def _said(name: str, text: str) -> tuple[str, dict[str, Any]]:
    """The class of a tensor, and its attributes."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    attributes = found.get("_data") if isinstance(found, dict) else None
    if not isinstance(found, dict) or not isinstance(attributes, dict):
        raise ImporterError(
            f"tensor {name!r}: the metadata of its file is no JSON of torchao; download it again"
        )
    return str(found.get("_type")), attributes


def _dtype(found: object) -> str:
    """The name of a dtype of torch; no text where something else is said."""
    if not isinstance(found, dict) or found.get("_type") != "torch.dtype":
        return ""
    return str(found.get("_data"))


def _bits_of(dtype: str) -> int:
    """Bits of torch's int1 to int8; 0 for another."""
    bits = dtype.removeprefix("int")
    return int(bits) if bits != dtype and bits in set("12345678") else 0


def _list(found: object) -> list[int]:
    return found if isinstance(found, list) and all(type(n) is int and n > 0 for n in found) else []


def _block(name: str, said: Mapping[str, Any], shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns that share a scale. Raises ImporterError for blocks that do not divide the weight."""
    size = said.get("block_size")
    if said.get("block_size", []) in (None, []):
        size = list(shape)  # A scale for the whole tensor.
    *stack, rows, columns = _list(size) if len(_list(size)) == len(shape) else (0, 0)
    is_whole = all(n == 1 for n in shape[:-2]) or stack == [1] * len(stack)
    if not is_whole or not rows or shape[-2] % rows or shape[-1] % columns:
        raise ImporterError(
            f"tensor {name!r}: blocks of {size} do not divide its shape {list(shape)}; download the model again"
        )
    return rows, columns


FAMILY = TorchAo()
