"""Errors learn where they happened."""

from pathlib import Path
from types import TracebackType

from spqfmt.errors import FormatError
from spqfmt.records import Chunk, PlaneChunk

# Classes and not generators: reading a small tensor enters some of these, which would be a good part of its time.


class located:  # noqa: N801  # named for what stands behind `with`
    """Errors from inside get the file's name, and tensor and chunk where they are known, once."""

    __slots__ = ("_chunk", "_path", "_what")

    def __init__(self, path: Path, what: str = "", chunk: Chunk | None = None) -> None:
        self._path, self._what, self._chunk = path, what, chunk

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not isinstance(error, FormatError):
            return
        chunk = self._chunk
        place = f"{self._what}, elements from {chunk.first}: " if chunk is not None else ""
        if not str(error).startswith(f"{self._path}: "):
            error.args = (f"{self._path}: {place}{error}",)
        if error.offset is None and chunk is not None:
            error.offset = chunk.planes[0].offset


class at_plane:  # noqa: N801
    """Errors from inside are about this plane."""

    __slots__ = ("_plane",)

    def __init__(self, plane: PlaneChunk) -> None:
        self._plane = plane

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, FormatError) and error.offset is None:
            error.offset = self._plane.offset
