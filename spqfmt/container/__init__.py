"""The file's layout: header, segments, assets, index, trailer (FORMAT.md sections 2, 3, 7 and 8). Needs numpy alone."""

from spqfmt.container.reader import Reader
from spqfmt.container.writer import Writer

__all__ = ["Reader", "Writer"]
