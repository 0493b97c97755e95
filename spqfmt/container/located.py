"""Errors learn where they happened."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from spqfmt.errors import FormatError
from spqfmt.records import Chunk, PlaneChunk


@contextmanager
def located(path: Path, what: str = "", chunk: Chunk | None = None) -> Iterator[None]:
    """Errors from inside get the file's name, and tensor and chunk where they are known, once."""
    try:
        yield
    except FormatError as error:
        place = f"{what}, elements from {chunk.first}: " if chunk is not None else ""
        if not str(error).startswith(f"{path}: "):
            error.args = (f"{path}: {place}{error}",)
        if error.offset is None and chunk is not None:
            error.offset = chunk.planes[0].offset
        raise


@contextmanager
def at_plane(plane: PlaneChunk) -> Iterator[None]:
    """Errors from inside are about this plane."""
    try:
        yield
    except FormatError as error:
        error.offset = plane.offset if error.offset is None else error.offset
        raise
