"""What GPTQ and AWQ have in common: a layer is `qweight`, `qzeros` and `scales`, all of them matrices."""

from __future__ import annotations

from dataclasses import dataclass

from spqfmt.errors import ImporterError
from spqfmt.importers.quantizers.base import Checkpoint, misfit
from spqfmt.importers.quantizers.words import WORDS
from spqfmt.schemes.group_numbers import FLOAT_DTYPES


class StaysError(Exception):
    """Its text is because of what a layer's arrays could not be made again of a weight."""


@dataclass(frozen=True)
class PackedLayer:
    """The arrays of one layer, by the ends of their names."""

    checkpoint: Checkpoint
    stem: str

    @classmethod
    def of(cls, checkpoint: Checkpoint, name: str) -> PackedLayer | None:
        """The layer whose codes have this name; None where they are something else."""
        stem, _, last = name.rpartition(".")
        # Of an embedding rows are packed where of a layer inputs are.
        if last != "qweight" or "embed" in stem.rpartition(".")[2]:
            return None
        found = [checkpoint.arrays.get(f"{stem}.{key}") for key in ("qweight", "qzeros", "scales")]
        arrays = [array for array in found if array and len(array.shape) == 2 and 0 not in array.shape]
        if len(arrays) != len(found):
            return None
        codes, zeros, scales = arrays
        is_packed = codes.dtype in WORDS and codes.dtype == zeros.dtype and scales.dtype in FLOAT_DTYPES
        return cls(checkpoint, stem) if is_packed else None

    def name(self, key: str) -> str:
        """The name of one of its arrays."""
        return f"{self.stem}.{key}"

    def shape(self, key: str) -> tuple[int, ...]:
        """The shape of one of its arrays."""
        return self.checkpoint.arrays[self.name(key)].shape

    def dtype(self, key: str) -> str:
        """The dtype of one of its arrays."""
        return self.checkpoint.arrays[self.name(key)].dtype

    @property
    def word_bits(self) -> int:
        """Bits of the words that codes lie in."""
        return WORDS[self.dtype("qweight")]

    @property
    def weight_dtype(self) -> str:
        """That of the scales, which weights are computed in; of F32 the model's."""
        dtype = self.dtype("scales")
        return self.checkpoint.dtype if dtype == "f32" else dtype

    def misfit(self, key: str, codes: str, why: str = "") -> ImporterError:
        """The error of an array whose shape does not fit that of another."""
        return misfit(self.checkpoint.arrays, self.name(key), self.name(codes), why)
