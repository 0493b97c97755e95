"""One tensor of a GGUF file: its values, its codes, and where its bytes lie."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from spqfmt.errors import ImporterError
from spqfmt.importers._gguf_codes import (
    BlocksAsBytes,
    block_type,
    grouped_codes,
    in_rows,
    is_whole,
    stays_below,
)
from spqfmt.importers._gguf_models import Config, GgufModel
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


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a file; `name` is the one that it has in the model."""

    tensor: GgufTensor
    name: str
    model: GgufModel
    config: Config

    @property
    def form(self) -> str:
        """Return what ggml calls its blocks; nothing where it has none, or other values than the model's."""
        return "" if not self._has_blocks or self._has_other_values else self.tensor.form

    @property
    def place(self) -> SourcePlace | None:
        """Where it lies as it is restored; None for blocks, and for other values."""
        if self._has_blocks or self._has_other_values:
            return None
        return self._place

    @property
    def parts(self) -> tuple[SourcePart, ...]:
        """How its blocks are made of what `stored` gives."""
        if not self.form:
            return ()
        as_bytes = BlocksAsBytes.made(self.tensor)
        if block_type(self.tensor) is None:
            return (SourcePart(self._place, self.tensor.n_bytes, as_bytes),)
        made: dict[str, object] = {"type": self.form}
        order = self._order
        if order is not None and self.model.turned is not None:
            dims, axes = self.model.turned((order.size,), self.name, self.config)
            made |= {"row_dims": list(dims), "row_axes": list(axes)}
        return (
            SourcePart(
                place=self._place, n_bytes=self.tensor.n_bytes, made=made, layout="gguf", as_bytes=as_bytes
            ),
        )

    def turned(self, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        """Return how elements of the model's shape become those of the file, as `SourceTensor.turned`."""
        if self.model.turned is None or not self._is_changed:
            return None
        return self.model.turned(shape, self.name, self.config)

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
            value = elements.reshape(tensor.shape)
            return self.model.restore(self.name, value, self.config)
        exact = torch.from_numpy(self._values()).reshape(tensor.shape)
        rounded = self.model.restore(self.name, exact, self.config).to(dtype)
        if not torch.isfinite(rounded).all():
            hint = "; --method keep stores its bytes" if self.form else ""
            raise ImporterError(f"{tensor.file.path}: tensor {tensor.name} has {self._too_large}{hint}")
        return rounded

    def stored(self) -> Quantized:
        """Read the codes, or the bytes of the blocks: no scheme may hold them, or the dtype not their values."""
        blocks = self._bytes()
        kind = block_type(self.tensor)
        if kind is None:
            why = "" if self.tensor.ggml_type in FORMS else "a type of blocks that is not known here"
            return BlocksAsBytes(self.tensor, blocks, why)
        codes = grouped_codes(self.tensor, blocks)
        if not kind.takes_all_bytes and not is_whole(self.tensor, codes, blocks):
            return BlocksAsBytes(self.tensor, blocks, f"bytes that are no codes of {self.form}")
        if not (stays_below(codes, _LARGEST) or _is_finite(codes, dtype_of(self.tensor))):
            return BlocksAsBytes(self.tensor, blocks, self._too_large)
        order = self._order
        return codes if order is None else in_rows(codes, order)

    @property
    def _order(self) -> NDArray[np.int64] | None:
        """Which row of the file is each row of the scheme's matrix; None where they are in order.

        Transposed weights are stored as that matrix has them: rows are outputs.
        """
        if not self._is_changed:
            return None
        import torch

        n_rows = int(np.prod(self.tensor.shape[:-1]))
        order: NDArray[np.int64] = self.model.restore(self.name, torch.arange(n_rows), self.config).numpy()
        return None if np.array_equal(order, np.arange(n_rows)) else order

    @property
    def _place(self) -> SourcePlace:
        return SourcePlace(self.tensor.file.path.name, self.tensor.offset)

    @property
    def _has_blocks(self) -> bool:
        return self.tensor.ggml_type not in PLAIN and self.tensor.n_bytes > 0

    @property
    def _has_other_values(self) -> bool:
        return self.model.turned is None and self._is_changed

    @property
    def _is_changed(self) -> bool:
        """Whether llama.cpp has it in another order, or with other values."""
        return re.search(self.model.changed, self.name) is not None

    def _bytes(self) -> NDArray[np.uint8]:
        stored = np.empty(self.tensor.n_bytes, np.uint8)
        self.tensor.file.read_into(self.tensor.offset, stored.data, f"tensor {self.tensor.name}")
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
            rows = blocks.reshape(int(np.prod(tensor.shape[:-1])), -1)
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


def _is_finite(codes: Grouped, dtype: str) -> bool:
    return bool(np.isfinite(widen(narrow(codes.dequantize(), dtype), dtype)).all())
