"""The bytes of a source's arrays, put together again of the streams that are written."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spqfmt.importers.base import SourcePart, SourceTensor
from spqfmt.reading import origin_arrays, origin_gguf
from spqfmt.reading.origin_arrays import COLUMN_GROUPS, column_groups, unsigned
from spqfmt.schemes.base import Encoded
from spqfmt.schemes.grouped import unpermute
from spqfmt.schemes.named import is_scheme_name
from spqfmt.wire import DTYPES


class InTurn:
    """Bytes that are made run by run, and taken in other pieces."""

    def __init__(self, runs: Iterable[NDArray[np.uint8]]) -> None:
        self._runs = iter(runs)
        self._rest = np.empty(0, np.uint8)

    def take(self, n_bytes: int) -> Iterator[NDArray[np.uint8]]:
        """Yield the next bytes, so many or all that are left."""
        while n_bytes and not self.is_over():
            piece, self._rest = self._rest[:n_bytes], self._rest[n_bytes:]
            n_bytes -= piece.size
            yield piece

    def is_over(self) -> bool:
        """Whether none is left."""
        while not self._rest.size:
            found = next(self._runs, None)
            if found is None:
                return True
            self._rest = found
        return False


_ElementsOf = Callable[[str], tuple[NDArray[Any], str]]
"""Elements of a stream, and their dtype."""


def _array(
    elements_of: _ElementsOf, made: Mapping[str, Any], source: SourceTensor
) -> Iterator[NDArray[np.uint8]]:
    def as_bits(role: str) -> tuple[NDArray[Any], int]:
        elements, dtype = elements_of(role)
        return unsigned(elements, dtype), DTYPES[dtype].bits

    yield origin_arrays.made(as_bits, made, source.name)


def _blocks(
    elements_of: _ElementsOf, made: Mapping[str, Any], source: SourceTensor
) -> Iterator[NDArray[np.uint8]]:
    def as_integers(role: str) -> NDArray[Any]:
        elements, _ = elements_of(role)
        return elements.view(f"<u{elements.itemsize}")

    columns = source.shape[-2 if source.transposed else -1]
    return origin_gguf.made_blocks(as_integers, made, (prod(source.shape) // columns, columns), source.name)


_LAYOUTS = {origin_arrays.LAYOUT[0]: _array, origin_gguf.LAYOUT[0]: _blocks}


def as_written(part: SourcePart, encoded: Encoded) -> SourcePart:
    """A part of codes, or of the bytes themselves where these are what is written."""
    if part.as_bytes is None or not is_scheme_name(encoded.scheme):
        return part
    return part._replace(made=part.as_bytes, layout=origin_arrays.LAYOUT[0])


def made_at_once(parts: Iterable[SourcePart]) -> list[list[SourcePart]]:
    """Parts that are runs of what is made at once, together."""
    runs: list[list[SourcePart]] = []
    for part in parts:
        if part.first and runs:
            runs[-1].append(part)
        else:
            runs.append([part])
    return runs


def bytes_again(run: Sequence[SourcePart], source: SourceTensor, encoded: Encoded) -> InTurn:
    """What the streams of a tensor give of a run of parts."""
    shared = (stream for stream, _ in encoded.same_as.values())
    streams = {stream.role: stream for stream in (*encoded.streams, *shared)}
    permutation = streams["permutation"].elements if "permutation" in streams else None

    def elements_of(role: str) -> tuple[NDArray[Any], str]:
        if role == COLUMN_GROUPS:
            columns = source.shape[-2 if source.transposed else -1]
            return column_groups(encoded.parameters, columns, permutation, source.name)[0], "u32"
        stream = streams[role]
        elements = stream.elements
        if role == "codes" and "channel_order" in streams:
            order = streams["channel_order"].elements
            elements, stored = np.empty_like(elements), elements.reshape(len(order), -1)
            elements.reshape(len(order), -1)[order] = stored
        if role == "codes" and permutation is not None:
            elements = unpermute(elements.reshape(-1, permutation.size), permutation)
        return elements.reshape(-1), stream.dtype

    return InTurn(_LAYOUTS[run[0].layout](elements_of, run[0].made, source))
