"""A model to compare with, of any kind that can be read: one tensor at a time."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from spqfmt.container.model import OpenModel, is_packed, open_model
from spqfmt.container.reader import Reader
from spqfmt.errors import ImporterError
from spqfmt.importers.base import SourceModel, SourceTensor
from spqfmt.importers.registry import find_importer, open_source
from spqfmt.reading.distance import distance
from spqfmt.reading.report.records import Distance
from spqfmt.reading.rows import holder
from spqfmt.reading.side_by_side import beside, both
from spqfmt.records import TensorRecord


class Reference(Protocol):
    """The tensors of a reference model, by name."""

    def shape(self, name: str) -> tuple[int, ...] | None:
        """The tensor's shape; None where there is no such tensor."""

    def beside(self, name: str, reader: Reader, record: TensorRecord) -> Distance:
        """How far a stored tensor of the same shape is from the tensor `name`."""


class _Spq:
    def __init__(self, model: OpenModel) -> None:
        self._model = model

    def shape(self, name: str) -> tuple[int, ...] | None:
        if name not in self._model.tensors or holder(*self._model.held(name)).is_named:
            return None
        return self._model.tensors[name].shape

    def beside(self, name: str, reader: Reader, record: TensorRecord) -> Distance:
        other = self._model.held(name)
        return distance(both((reader, record), other), record.dtype, other[1].dtype)


class _Source:
    """A source's tensors, and the weights that arrays of a quantizer stand for: a packed file has either."""

    def __init__(self, model: SourceModel) -> None:
        tensors = [*model.tensors]
        with suppress(ImporterError):  # of arrays that contradict each other there are only the arrays
            tensors += model.as_weights().tensors
        self._tensors: dict[str, list[SourceTensor]] = {}
        for tensor in tensors:
            self._tensors.setdefault(tensor.name, []).append(tensor)

    def shape(self, name: str) -> tuple[int, ...] | None:
        return self._tensors[name][0].shape if name in self._tensors else None

    def beside(self, name: str, reader: Reader, record: TensorRecord) -> Distance:
        # torch takes seconds to import: only where a foreign model is read.
        from spqfmt.kernels.torch_arrays import to_numpy

        found = self._tensors[name]
        tensor = next((tensor for tensor in found if tensor.dtype == record.dtype), found[0])
        return distance(beside((reader, record), to_numpy(tensor.load())), record.dtype, tensor.dtype)


@contextmanager
def open_reference(path: Path) -> Iterator[Reference]:
    """An .spq file (or an index of shards), a Hugging Face folder or a GGUF file.

    Raises FormatError, ImporterError, the latter also for a source that has changed when the context ends.
    """
    if not is_packed(path) and find_importer(path) is not None:
        source = open_source(path)
        with source.unchanged():
            yield _Source(source)
        return
    with open_model(path) as model:
        yield _Spq(model)
