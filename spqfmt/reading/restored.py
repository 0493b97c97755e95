"""A stored tensor as exporters take it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from spqfmt.container.reader import Reader
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
