"""A stored tensor as exporters take it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from spqfmt.container.reader import Reader
from spqfmt.models.latent import joined, joined_dtype, joined_shape, pairs
from spqfmt.progress import Progress
from spqfmt.reading.restore import restore
from spqfmt.records import TensorRecord

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class RestoredTensor:
    """A tensor of a file (`ExportTensor`)."""

    reader: Reader
    record: TensorRecord
    progress: Progress

    @property
    def name(self) -> str:
        """Name of the restored tensor."""
        return self.record.name

    @property
    def shape(self) -> tuple[int, ...]:
        """Dimensions of the restored tensor."""
        return self.record.shape

    @property
    def dtype(self) -> str:
        """Dtype that the tensor is restored to."""
        return self.record.dtype

    @property
    def tied_to(self) -> str | None:
        """What the tensor is tied to."""
        return self.record.tied_to

    def load(self) -> torch.Tensor:
        """Dequantized, as the loader would give it."""
        value = restore(self.reader, self.record)
        self.progress.advance(value.nbytes, self.name)
        return value


@dataclass(frozen=True)
class JoinedTensor:
    """The matrix of two tensors of a file (`ExportTensor`): keys and values of latent attention, as GGUF has them."""

    name: str
    keys: RestoredTensor
    values: RestoredTensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Dimensions of the matrix."""
        return joined_shape(self.keys.shape, self.values.shape)

    @property
    def dtype(self) -> str:
        """Dtype that holds the numbers of both."""
        return joined_dtype(self.keys.dtype, self.values.dtype)

    @property
    def tied_to(self) -> str | None:
        """Nothing: the halves are tied to no other."""
        return None

    def load(self) -> torch.Tensor:
        """Dequantized and put together."""
        return joined(self.keys.load(), self.values.load())


def whole(tensors: Sequence[RestoredTensor]) -> list[RestoredTensor | JoinedTensor]:
    """The tensors as transformers has them: each pair of halves as the matrix that it is."""
    found = pairs((tensor.name, tensor.shape) for tensor in tensors if tensor.tied_to is None)
    of_keys = {keys: name for name, (keys, _) in found.items()}
    names = {half for both in found.values() for half in both}
    halves = {tensor.name: tensor for tensor in tensors if tensor.name in names}
    made: list[RestoredTensor | JoinedTensor] = []
    for tensor in tensors:
        if tensor.name in of_keys:
            name = of_keys[tensor.name]
            made.append(JoinedTensor(name, *(halves[half] for half in found[name])))
        elif tensor.name not in halves:
            made.append(tensor)
    return made
