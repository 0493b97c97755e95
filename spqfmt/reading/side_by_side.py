"""Two tensors of one shape, part by part, so that neither is held whole where their orders agree."""

from collections.abc import Iterator

from spqfmt.codecs.elements import Elements
from spqfmt.container.model import Held
from spqfmt.reading.rows import blocks, holder, is_by_rows, read_part, read_tensor, rows_and_columns


def both(a: Held, b: Held) -> Iterator[tuple[Elements, Elements]]:
    """The same elements of both, in the order of one of them: if only one is stored by columns, one is held whole."""
    (one, record), (two, other) = ((reader, holder(reader, record)) for reader, record in (a, b))
    if is_by_rows(record) != is_by_rows(other):
        yield from beside((one, record), read_tensor(two, other))
        return
    for rows, columns in blocks(record):
        yield read_part(one, record, rows, columns), read_part(two, other, rows, columns)


def beside(a: Held, whole: Elements) -> Iterator[tuple[Elements, Elements]]:
    """The elements of a stored tensor, and the same ones of one that is in memory."""
    reader, record = a[0], holder(*a)
    all_rows, all_columns = rows_and_columns(record)
    matrix = whole.reshape(len(all_rows), len(all_columns))
    for rows, columns in blocks(record):
        here = matrix[rows.start : rows.stop, columns.start : columns.stop]
        yield read_part(reader, record, rows, columns), here
