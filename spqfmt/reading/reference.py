"""A model to compare with, of any kind that can be read: one tensor at a time."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

from spqfmt.codecs.elements import Elements
from spqfmt.container.output import INDEX_SUFFIX
from spqfmt.container.reader import Reader
from spqfmt.container.shards import open_readers
from spqfmt.importers.base import SourceModel
from spqfmt.importers.registry import find_importer, open_source
from spqfmt.reading.rows import read_tensor


class Reference(Protocol):
    """Tensors by name."""

    def shape(self, name: str) -> tuple[int, ...] | None:
        """The tensor's shape; None where there is no such tensor."""

    def read(self, name: str) -> tuple[Elements, str]:
        """All of a tensor as the carrier of its dtype, and that dtype."""


class _Spq:
    def __init__(self, readers: tuple[Reader, ...]) -> None:
        self._tensors = {
            record.name: (reader, record) for reader in readers for record in reader.index.tensors
        }

    def shape(self, name: str) -> tuple[int, ...] | None:
        return self._tensors[name][1].shape if name in self._tensors else None

    def read(self, name: str) -> tuple[Elements, str]:
        reader, record = self._tensors[name]
        return read_tensor(reader, record), record.dtype


class _Source:
    def __init__(self, model: SourceModel) -> None:
        self._tensors = {tensor.name: tensor for tensor in model.tensors}

    def shape(self, name: str) -> tuple[int, ...] | None:
        return self._tensors[name].shape if name in self._tensors else None

    def read(self, name: str) -> tuple[Elements, str]:
        # torch takes seconds to import: only where a foreign model is read.
        from spqfmt.kernels.torch_arrays import to_numpy

        tensor = self._tensors[name]
        return to_numpy(tensor.load()), tensor.dtype


@contextmanager
def open_reference(path: Path) -> Iterator[Reference]:
    """An .spq file (or an index of shards), a Hugging Face folder or a GGUF file.

    Raises FormatError, ImporterError, the latter also for a source that has changed when the context ends.
    """
    is_spq = path.suffix == ".spq" or path.name.endswith(INDEX_SUFFIX)
    if not is_spq and find_importer(path) is not None:
        source = open_source(path)
        with source.unchanged():
            yield _Source(source)
        return
    with ExitStack() as stack:
        readers = open_readers(path)
        for reader in readers:
            stack.callback(reader.close)
        yield _Spq(readers)
