"""Codes of HQQ, as its layers say them in safetensors: eight, four, two bits or one, groups along either axis.

    STEM.W_q        U8, or the same bytes in another dtype: codes of eight bits or less, in a byte those of rows that
                    lie a half, a quarter or an eighth of all apart, the first in its highest bits
    STEM.scale      F32, BF16 or F16: [groups, 1], or [1, groups] with axis 0
    STEM.zero       of the same shape and dtype
    STEM.shape      I64 [2]
    STEM.axis, group_size  I32 []; without a group_size a group is a row, or a column with axis 0
    STEM.packing    U8, a text such as "4bit_u8"
    STEM.nbits      I32 [], or F32 [] for 1.58

The rows are those of the weight as [groups, group_size], or as [group_size, groups] with axis 0, of the weight itself
where there are no groups. What is restored is (code - zero) * scale, in the dtype of the scales. The library rounds the
difference to that dtype first, which changes nothing where zeros are integers; here it is rounded once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from spqfmt.codecs.elements import Elements, from_planes
from spqfmt.errors import ImporterError
from spqfmt.importers.quantizers.base import Checkpoint, CodedWeight, LeftAsArrays, misfit, missing
from spqfmt.importers.quantizers.packed_layers import StaysError
from spqfmt.records import dense_bytes
from spqfmt.schemes.group_numbers import FLOAT_DTYPES, GroupValues
from spqfmt.schemes.grouped import Grouped

_METHODS: Mapping[str, frozenset[str]] = {"hqq": frozenset()}
_PACKINGS = {"8bit_u8": 8, "4bit_u8": 4, "2bit_u8": 2, "1bit_u8": 1}
_HELD = {8: (8, 7, 6, 5), 4: (4,), 2: (2, 1.58), 1: (1,)}
"""The numbers of bits that the library puts into codes of so many."""
_SAYS = (
    "axis", "channel_wise", "compute_dtype", "encoded_state_dict", "group_size", "nbits", "offload_meta", "optimize",
    "packing", "quant_scale", "quant_zero", "round_zero", "shape", "stores_quant_config", "unpack_view_dtype",
    "view_as_float",
)  # fmt: skip
"""What a layer says of itself: numbers and short texts."""
_MOST = 64
"""Elements of these, at most."""


class Hqq:
    """Codes with a scale and a zero, which is no integer, for each group."""

    def find(self, checkpoint: Checkpoint) -> Iterator[CodedWeight | LeftAsArrays]:
        """The weights whose layers say how their codes lie, as `Family.find` says."""
        arrays = checkpoint.arrays
        for name in arrays:
            stem = name.removesuffix("W_q")
            needed = [f"{stem}{end}" for end in ("scale", "zero", "shape", "axis", "packing")]
            if stem == name:
                continue
            if lost := [array for array in needed if array not in arrays]:
                if checkpoint.quantizer.method in _METHODS:
                    raise missing(lost[0], name)
                continue
            if checkpoint.quantizer.writes("codes of HQQ", _METHODS, name):
                try:
                    yield _Layer.of(checkpoint, stem).weight(checkpoint)
                except StaysError as why:
                    yield LeftAsArrays(name, str(why))


@dataclass(frozen=True)
class _Layer:
    """How the codes of a layer lie. `size`: the weights of a group."""

    stem: str
    shape: tuple[int, int]
    axis: int
    size: int
    bits: int

    @classmethod
    def of(cls, checkpoint: Checkpoint, stem: str) -> _Layer:
        """Read what a layer says. Raises ImporterError, StaysError."""
        arrays = checkpoint.arrays
        packing = bytes(_said(checkpoint, f"{stem}packing").astype(np.uint8)).decode("latin-1")
        bits = _PACKINGS.get(packing)
        scales, zeros = arrays[f"{stem}scale"], arrays[f"{stem}zero"]
        if bits is None:
            raise StaysError(f"codes that lie as {packing!r} says")
        if scales.dtype not in FLOAT_DTYPES or zeros.dtype != scales.dtype:
            raise StaysError(f"scales of {scales.dtype} with zeros of {zeros.dtype}")
        of_shape, of_axis, of_size = (f"{stem}{end}" for end in ("shape", "axis", "group_size"))
        shape, axis = _said(checkpoint, of_shape).tolist(), _said(checkpoint, of_axis).tolist()
        if len(shape) != 2 or min(shape) < 1:
            raise ImporterError(f"tensor {of_shape!r} says {shape}, no matrix; download the model again")
        if axis not in ([0], [1]):
            raise ImporterError(f"tensor {of_axis!r} says {axis}, neither 0 nor 1; download the model again")
        sizes = _said(checkpoint, of_size).tolist() if of_size in arrays else [shape[axis[0]]]
        if len(sizes) != 1 or sizes[0] < 1 or prod(shape) % sizes[0]:
            raise ImporterError(f"tensor {of_size!r} says {sizes}, which does not divide {shape}")
        layer = cls(stem, (shape[0], shape[1]), axis[0], sizes[0], bits)
        layer._check(checkpoint)
        layer._check_config(checkpoint.quantizer.said)
        return layer

    @property
    def n_groups(self) -> int:
        return prod(self.shape) // self.size

    def _check(self, checkpoint: Checkpoint) -> None:
        """Raise ImporterError unless the arrays have the shapes that the layer says."""
        arrays, of_codes = checkpoint.arrays, f"{self.stem}W_q"
        due = (1, self.n_groups) if self.axis == 0 else (self.n_groups, 1)
        for name in (f"{self.stem}scale", f"{self.stem}zero"):
            if arrays[name].shape != due:
                raise misfit(arrays, name, of_codes, f": {list(due)} are due")
        codes = arrays[of_codes]
        if codes.dtype == "bool":
            raise misfit(arrays, of_codes, f"{self.stem}shape", ": codes of bool")
        if 8 * dense_bytes(codes.dtype, prod(codes.shape)) != prod(self.shape) * self.bits:
            said = f", which says {self.shape[0]} x {self.shape[1]} of {self.bits} bits"
            raise misfit(arrays, f"{self.stem}shape", of_codes, said)
        if self._rows[0] * self.bits % 8:
            raise misfit(arrays, f"{self.stem}shape", of_codes, f": {self._rows[0]} rows fill no whole bytes")
        rows, columns = self._rows
        # Bytes in another dtype lie so in each row.
        due = (rows * self.bits // 8, columns)
        if len(codes.shape) != 2 or (codes.shape[0], dense_bytes(codes.dtype, codes.shape[1])) != due:
            of_bytes = f": {due[0]} rows of {due[1]} bytes are due"
            raise misfit(arrays, of_codes, f"{self.stem}shape", of_bytes)
        self._check_bits(checkpoint)

    def _check_config(self, config: Mapping[str, Any]) -> None:
        """Raise ImporterError where a config that speaks of all layers at once says other numbers."""
        whole = config.get("quant_config")
        said = whole.get("weight_quant_params") if isinstance(whole, dict) else None
        if not isinstance(said, dict):
            return
        held = {"nbits": _HELD[self.bits], "group_size": (self.size,), "axis": (self.axis,)}
        for key, numbers in held.items():
            if said.get(key) is not None and said[key] not in numbers:
                raise ImporterError(
                    f"tensor {self.stem + 'W_q'!r} has {key} {numbers[0]}, but config.json says "
                    f"{str(said[key])[:40]!r}; download both again"
                )

    def _check_bits(self, checkpoint: Checkpoint) -> None:
        """Raise ImporterError unless the number of bits that the layer says is one of those that its codes hold."""
        name = f"{self.stem}nbits"
        if name not in checkpoint.arrays:
            raise missing(name, f"{self.stem}W_q")
        said = _said(checkpoint, name, ("u8", "i32", "i64", "f32")).tolist()
        if len(said) != 1 or not any(abs(said[0] - bits) < 1e-6 for bits in _HELD[self.bits]):
            raise ImporterError(
                f"tensor {name!r} says {said}, but '{self.stem}W_q' holds codes of {self.bits} bits; "
                "download the model again"
            )

    @property
    def _rows(self) -> tuple[int, int]:
        """Rows and columns in which the codes were packed."""
        return (self.size, self.n_groups) if self.axis == 0 else (self.n_groups, self.size)

    def weight(self, checkpoint: Checkpoint) -> CodedWeight:
        """The weight that these codes stand for."""
        stem, dtype = self.stem, checkpoint.arrays[f"{self.stem}scale"].dtype
        of_codes, of_scales, of_zeros = f"{stem}W_q", f"{stem}scale", f"{stem}zero"
        rows, columns = self._rows
        is_turned = self.axis == 0
        # Groups that are parts of rows need no view.
        is_plain = not is_turned and self.shape[1] % self.size == 0
        lines, groups = (self.shape[0], self.shape[1] // self.size) if is_plain else (self.n_groups, 1)

        def numbers(name: str) -> GroupValues:
            return GroupValues(checkpoint.scales(name, dtype).reshape(lines, groups), dtype)

        def stored() -> Grouped:
            codes = _unpacked(checkpoint.read(of_codes), self.bits).reshape(rows, columns)
            return Grouped(
                codes=np.ascontiguousarray(codes.T if is_turned else codes).reshape(lines, -1),
                code_dtype=f"u{max(2, self.bits)}",
                group_size=self.size,
                bits=self.bits,
                scale=numbers(of_scales),
                zero_point=numbers(of_zeros),
            )

        per_byte = 8 // self.bits
        turned = {"dims": [columns, per_byte, rows // per_byte], "axes": [2, 0, 1]}
        plain = {"dims": [per_byte, rows // per_byte, columns], "axes": [1, 2, 0]}
        part = {"stream": "codes", "bits": self.bits, **(turned if is_turned else plain), "flip": True}
        beside = {f"{stem}{end}": None for end in _SAYS if f"{stem}{end}" in checkpoint.arrays}
        return CodedWeight(
            name=f"{stem}weight",
            shape=self.shape,
            dtype=dtype,
            form=f"HQQ int{self.bits}",
            arrays={
                of_codes: part,
                of_scales: {"stream": "scales"},
                of_zeros: {"stream": "zero_points"},
                **beside,
            },
            stored=stored,
            view=None if is_plain else (rows, columns),
            has_turned_view=is_turned,
        )


def _said(checkpoint: Checkpoint, name: str, dtypes: tuple[str, ...] = ("u8", "i32", "i64")) -> Elements:
    """The elements of an array of a few numbers. Raises ImporterError for another."""
    found = checkpoint.arrays[name]
    if prod(found.shape) > _MOST or found.dtype not in dtypes:
        raise ImporterError(
            f"tensor {name!r} of {found.dtype} and shape {list(found.shape)} says nothing of a layer; "
            "download the model again"
        )
    return checkpoint.read(name).reshape(-1)


def _unpacked(packed: Elements, bits: int) -> Elements:
    """The codes of bytes, those in the highest bits of all of them first."""
    flat = np.ascontiguousarray(packed).reshape(-1).view(np.uint8)
    if bits == 1:
        return np.ascontiguousarray(np.unpackbits(flat.reshape(-1, 1), axis=1).T).reshape(-1)
    codes = np.empty(8 // bits * flat.size, np.uint8)
    from_planes(flat, f"u{bits}", codes.size, codes)
    return codes.reshape(flat.size, -1)[:, ::-1].T.reshape(-1)


FAMILY = Hqq()
