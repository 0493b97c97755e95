"""A stored tensor as exporters take it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from spqfmt.container.reader import Reader
from spqfmt.models.stacked_heads import find_wholes, put_together, whole_dtype, whole_shape
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


_Tensor = TypeVar("_Tensor", bound=RestoredTensor)


@dataclass(frozen=True)
class JoinedTensor:
    """A matrix of several tensors of a file (`ExportTensor`), which has its rows in stacks of heads."""

    name: str
    stacks: tuple[RestoredTensor, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Dimensions of the matrix."""
        return whole_shape({stack.name: stack.shape for stack in self.stacks})

    @property
    def dtype(self) -> str:
        """Dtype that holds the numbers of all."""
        return whole_dtype([stack.dtype for stack in self.stacks])

    @property
    def tied_to(self) -> str | None:
        """Nothing: stacks are tied to no other."""
        return None

    def load(self) -> torch.Tensor:
        """Dequantized and put together."""
        return put_together({stack.name: stack.load() for stack in self.stacks})


def whole(tensors: Sequence[_Tensor]) -> list[_Tensor | JoinedTensor]:
    """The tensors as transformers has them: stacks of heads that belong together as the matrix that they are."""
    found = find_wholes((tensor.name, tensor.shape) for tensor in tensors if tensor.tied_to is None)
    whole_by_part = {part: name for name, parts in found.items() for part in parts}
    stacks = {tensor.name: tensor for tensor in tensors if tensor.name in whole_by_part}
    made: list[_Tensor | JoinedTensor] = []
    for tensor in tensors:
        name = whole_by_part.get(tensor.name)
        if name is None:
            made.append(tensor)
        elif tensor.name == found[name][0]:
            made.append(JoinedTensor(name, tuple(stacks[part] for part in found[name])))
    return made
