""".spq: whole streams by the reader that the loaders use, into new memory or into memory that is used again."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from spqfmt.bench.file_data import stored_streams
from spqfmt.bench.load.base import Array, Loader, Payload
from spqfmt.codecs.base import Bytes
from spqfmt.codecs.elements import CARRIERS
from spqfmt.codecs.threads import jobs
from spqfmt.container.bulk import WantedStream, read_streams
from spqfmt.container.reader import Reader


def payload_of(path: Path, name: str) -> Payload:
    """The decoded streams of a file, each once; codes narrower than a byte stay packed, as kernels take them."""
    with Reader(path) as reader:
        wanted = _wanted(reader, _allocate)
        read_streams(reader, wanted)
        widths = [CARRIERS[stream.dtype].itemsize for _, stream, _ in wanted]
        arrays = [Array(w.name, w.out, width) for w, width in zip(wanted, widths, strict=True)]
        weights = sum(record.n_weights for record in reader.index.tensors if record.tied_to is None)
        return Payload(name, weights, arrays)


class Spq(Loader):
    """Chunks of all streams side by side. `fresh`: into new memory every time, as safetensors does."""

    def __init__(self, path: Path, payload: Payload, threads: int, *, fresh: bool) -> None:
        super().__init__("spq" if fresh else "spq, memory reused", path, payload, threads)
        self._fresh = fresh

    def load(self) -> None:
        """Open and decode."""
        again = iter(self.out)
        with jobs(self.threads), Reader(self.path) as reader:
            wanted = _wanted(reader, _allocate if self._fresh else lambda n_bytes: next(again))
            read_streams(reader, wanted)
        self.out = [w.out for w in wanted]


def _allocate(n_bytes: int) -> Bytes:
    return np.empty(n_bytes, np.uint8)


def _wanted(reader: Reader, memory: Callable[[int], Bytes]) -> list[WantedStream]:
    return [
        WantedStream(f"{record.name}/{stream.role}", stream, memory(stream.raw_bytes))
        for record, stream in stored_streams(reader.index.tensors)
    ]
