"""What GPTQ and AWQ have in common: a layer is `qweight`, `qzeros` and `scales`, all of them matrices."""

from __future__ import annotations

from dataclasses import dataclass

from spqfmt.errors import ImporterError
from spqfmt.importers.quantizers.base import Checkpoint, misfit, missing
from spqfmt.importers.quantizers.words import WORDS
from spqfmt.schemes.group_numbers import FLOAT_DTYPES

_KEYS = ("qweight", "qzeros", "scales")


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
        if not cls.is_codes(name):
            return None
        stem = name.rpartition(".")[0]
        found = [checkpoint.arrays.get(f"{stem}.{key}") for key in _KEYS]
        arrays = [array for array in found if array and len(array.shape) == 2 and 0 not in array.shape]
        if len(arrays) != len(found):
            return None
        codes, zeros, scales = arrays
        is_packed = codes.dtype in WORDS and codes.dtype == zeros.dtype and scales.dtype in FLOAT_DTYPES
        return cls(checkpoint, stem) if is_packed else None

    @staticmethod
    def is_codes(name: str) -> bool:
        """Whether an array of this name is the codes of a layer."""
        stem, _, last = name.rpartition(".")
        # Of an embedding rows are packed where of a layer inputs are.
        return last == "qweight" and "embed" not in stem.rpartition(".")[2]

    @staticmethod
    def broken(checkpoint: Checkpoint, name: str, form: str) -> ImporterError:
        """The error of a layer whose codes have this name, by the config of this form, and by its arrays of none."""
        names = [f"{name.removesuffix('qweight')}{key}" for key in _KEYS]
        for one in names:
            array = checkpoint.arrays.get(one)
            if array is None:
                return missing(one, name)
            if len(array.shape) != 2 or 0 in array.shape:
                return ImporterError(
                    f"tensor {one!r} of shape {list(array.shape)} is no matrix, but config.json says {form}; "
                    "download both again"
                )
        dtypes = ", ".join(checkpoint.arrays[one].dtype for one in names)
        return ImporterError(
            f"tensor {name!r} with its zero points and scales is of {dtypes}, which is not {form}, but config.json "
            "says so; download both again"
        )

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
