"""One tensor of a model in a GGUF file: its values, its codes, and where its bytes lie."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.util import find_spec
from math import prod
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from spqfmt.cached import cached_property
from spqfmt.errors import ImporterError
from spqfmt.importers._gguf_changes import Change
from spqfmt.importers._gguf_codes import (
    NO_NUMBERS,
    BlocksAsBytes,
    block_type,
    grouped_codes,
    has_numbers,
    is_whole,
    stays_below,
)
from spqfmt.importers._gguf_reader import FORMS, GgufTensor
from spqfmt.importers.base import SourcePart, SourcePlace
from spqfmt.schemes.base import Quantized
from spqfmt.schemes.floats import narrow, widen
from spqfmt.schemes.grouped import Grouped

if TYPE_CHECKING:
    import torch

PLAIN = {0: "f32", 1: "f16", 24: "i8", 25: "i16", 26: "i32", 27: "i64", 28: "f64", 30: "bf16"}
"""Types of ggml that are no blocks, and the dtypes that they are."""
_MXFP4 = 39
_LARGEST = 65504.0
"""What float16 holds, and bfloat16 too."""


def dtype_of(tensor: GgufTensor) -> str:
    """The dtype a stored tensor is imported as, as gguf.py says."""
    return PLAIN.get(tensor.ggml_type, "bf16" if tensor.ggml_type == _MXFP4 else "f16")


def part_of(tensor: GgufTensor, number: int) -> GgufTensor:
    """One of the matrices that a tensor of the file is, such as the weight of one expert."""
    n_bytes = tensor.n_bytes // tensor.shape[0]
    return replace(
        tensor,
        name=f"{tensor.name} {number}",
        shape=tensor.shape[1:],
        offset=tensor.offset + number * n_bytes,
        n_bytes=n_bytes,
    )


def rows_of(tensor: GgufTensor, first: int, n: int) -> GgufTensor:
    """Some rows of a tensor of the file."""
    n_bytes = tensor.n_bytes // tensor.shape[0]
    return replace(
        tensor,
        name=f"{tensor.name} {first}",
        shape=(n, *tensor.shape[1:]),
        offset=tensor.offset + first * n_bytes,
        n_bytes=n * n_bytes,
    )


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of the model, by its name and shape there, and those of the file that it is made of, with the change.

    Several tensors of the file, all of one type, are its rows one after the other.
    """

    name: str
    shape: tuple[int, ...]
    tensors: tuple[GgufTensor, ...]
    change: Change

    @cached_property
    def tensor(self) -> GgufTensor:
        """Return that of the file; of several the one that they would be, except for its place."""
        first = self.tensors[0]
        if len(self.tensors) == 1:
            return first
        n_rows = sum(prod(tensor.shape[:-1]) for tensor in self.tensors)
        n_bytes = sum(tensor.n_bytes for tensor in self.tensors)
        return replace(first, shape=(n_rows, first.shape[-1]), n_bytes=n_bytes)

    @property
    def form(self) -> str:
        """Return what ggml calls its blocks; nothing where it has none, or other values than the model's."""
        return "" if not self._has_blocks or self._has_other_values else self.tensor.form

    @property
    def place(self) -> SourcePlace | None:
        """Where it lies as it is restored; None for blocks, for other values, and for several tensors."""
        if self._has_blocks or self._has_other_values or len(self.tensors) > 1:
            return None
        return _place(self.tensor)

    @property
    def parts(self) -> tuple[SourcePart, ...]:
        """How its bytes are made of what `stored` gives, or those of several tensors of the values."""
        if not self._has_blocks and len(self.tensors) > 1 and not self._has_other_values:
            dims, axes = self.turned or (self.shape, tuple(range(len(self.shape))))
            return self._in_parts(
                {"stream": "values", "dims": list(dims), "axes": list(axes)}, "arrays", None
            )
        if not self.form:
            return ()
        as_bytes = BlocksAsBytes.made(self.tensor)
        if block_type(self.tensor) is None:
            return self._in_parts(as_bytes, "arrays", None)
        made: dict[str, object] = {"type": self.form}
        if self._order is not None:
            assert self.change.rows is not None
            dims, axes = self.change.rows
            made |= {"row_dims": list(dims), "row_axes": list(axes)}
        if self.change.columns is not None:
            dims, axes = self.change.columns
            made |= {"column_dims": list(dims), "column_axes": list(axes)}
        return self._in_parts(made, "gguf", as_bytes)

    @property
    def turned(self) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        """Return how elements of the model's shape become those of the file, as `SourceTensor.turned`."""
        return self.change.turned(self.shape)

    def load(self) -> torch.Tensor:
        """Read the values; those of blocks rounded to the dtype. Raises ImporterError for one that it cannot hold."""
        import torch

        dtypes = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16, "f64": torch.float64}
        dtypes |= {"i8": torch.int8, "i16": torch.int16, "i32": torch.int32, "i64": torch.int64}
        tensor, dtype = self.tensor, dtypes[dtype_of(self.tensor)]
        if not self._has_blocks:
            # torch does not view no bytes as elements.
            elements = (
                torch.from_numpy(self._bytes()).view(dtype) if tensor.n_bytes else torch.zeros(0, dtype=dtype)
            )
            return self.change.restore(elements, self.shape)
        exact = torch.from_numpy(self._values())
        rounded = self.change.restore(exact, self.shape).to(dtype)
        if not torch.isfinite(rounded).all():
            hint = "; --method keep stores its bytes" if self.form else ""
            why = self._too_large if torch.isfinite(exact).all() else NO_NUMBERS
            raise ImporterError(f"{tensor.file.path}: tensor {tensor.name} has {why}{hint}")
        return rounded

    def stored(self) -> Quantized:
        """Read the codes, or the bytes of the blocks: no scheme may hold them, or the dtype not their values."""
        blocks = self._bytes()
        kind = block_type(self.tensor)
        if kind is None:
            why = "" if self.tensor.ggml_type in FORMS else "a type of blocks that is not known here"
            return BlocksAsBytes(self.tensor, blocks, why)
        # Blocks of a row are fewer bytes than what is taken of them.
        order, rows = self._order, blocks.reshape(prod(self.tensor.shape[:-1]), -1)
        in_order = blocks if order is None else rows[order].reshape(-1)
        codes = grouped_codes(self.tensor, in_order)
        if not kind.takes_all_bytes and not is_whole(self.tensor, codes, in_order):
            return BlocksAsBytes(self.tensor, blocks, f"bytes that are no codes of {self.form}")
        if not (stays_below(codes, _LARGEST) or _is_finite(codes, dtype_of(self.tensor))):
            return BlocksAsBytes(self.tensor, blocks, self._too_large if has_numbers(codes) else NO_NUMBERS)
        columns = self.change.column_order()
        return codes if columns is None else replace(codes, permutation=columns)

    def _in_parts(
        self, made: dict[str, object], layout: str, as_bytes: dict[str, object] | None
    ) -> tuple[SourcePart, ...]:
        """Give what is made as parts of the file, a run of it for each tensor there."""
        parts, first = [], 0
        for tensor in self.tensors:
            part = SourcePart(
                place=_place(tensor),
                n_bytes=tensor.n_bytes,
                made=made,
                layout=layout,
                as_bytes=as_bytes,
                first=first,
            )
            parts.append(part)
            first += tensor.n_bytes
        return tuple(parts)

    @cached_property
    def _order(self) -> NDArray[np.int64] | None:
        """Which row of the file is each row of the scheme's matrix; None where they are in order."""
        order = self.change.order()
        return None if order is None or np.array_equal(order, np.arange(len(order))) else order

    @property
    def _has_blocks(self) -> bool:
        return self.tensor.ggml_type not in PLAIN and self.tensor.n_bytes > 0

    @property
    def _has_other_values(self) -> bool:
        return self.change.values is not None

    def _bytes(self) -> NDArray[np.uint8]:
        stored, at = np.empty(self.tensor.n_bytes, np.uint8), 0
        for tensor in self.tensors:
            tensor.file.read_into(
                tensor.offset, stored.data[at : at + tensor.n_bytes], f"tensor {tensor.name}"
            )
            at += tensor.n_bytes
        return stored

    def _values(self) -> NDArray[np.float32]:
        """The exact values; of blocks without codes by the package gguf."""
        tensor, blocks = self.tensor, self._bytes()
        if block_type(tensor) is not None:
            return grouped_codes(tensor, blocks).dequantize()
        if find_spec("gguf") is None:
            raise ImporterError(
                f"{self.tensor.file.path}: values of {tensor.form} need the gguf package; pip install "
                "'spqfmt[gguf]', or keep its bytes with --method keep"
            )
        from gguf import GGMLQuantizationType, quants

        try:
            rows = blocks.reshape(prod(tensor.shape[:-1]), -1)
            values: NDArray[np.float32] = quants.dequantize(rows, GGMLQuantizationType(tensor.ggml_type))
            return values.reshape(tensor.shape)
        # Of a type that is not known here, the bytes may be more than those of the shape.
        except (ValueError, NotImplementedError):
            raise ImporterError(
                f"{self.tensor.file.path}: tensor {tensor.name} is stored as {tensor.form}, whose values are not "
                "known; --method keep stores its bytes"
            ) from None

    @property
    def _too_large(self) -> str:
        return f"values that {dtype_of(self.tensor)} cannot hold"


def _place(tensor: GgufTensor) -> SourcePlace:
    return SourcePlace(tensor.file.path.name, tensor.offset)


def _is_finite(codes: Grouped, dtype: str) -> bool:
    return bool(np.isfinite(widen(narrow(codes.dequantize(), dtype), dtype)).all())
