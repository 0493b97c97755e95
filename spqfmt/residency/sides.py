"""The sides of packed tensors, as their schemes have them: what they take, and what they are."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from spqfmt.container.fetch import StreamFetch
from spqfmt.container.reader import Reader
from spqfmt.container.slices import SliceRecord, slice_sides
from spqfmt.container.stacks import MatrixRecord, share_sides
from spqfmt.records import TensorRecord
from spqfmt.residency.parts import Part
from spqfmt.schemes.registry import packed_scheme
from spqfmt.schemes.sides import Sides


def side_bytes(parts: Sequence[Part]) -> int:
    """What the sides of whole tensors, given by their parts, will hold; from the index alone."""
    counts = Counter(part.record.name for part in parts)
    records = {part.record.name: part.record for part in parts}
    return sum(packed_scheme(record).side_bytes(record, counts[name]) for name, record in records.items())


def read_sides(reader: Reader, record: TensorRecord) -> Sides:
    """Read and decode those of one tensor. Raises FormatError where they break the format."""
    return packed_scheme(record).read_sides(record, StreamFetch(reader, record))


def read_all_sides(
    records: Mapping[str, TensorRecord], readers: Mapping[str, Reader]
) -> Iterator[tuple[str, Sides]]:
    """Those of many tensors, by the same names; of a stack, which its matrices share, they are read once.

    Matrices of a stack follow each other.
    """
    stack: TensorRecord | None = None
    of_stack: Sides | None = None
    for name, record in records.items():
        if isinstance(record, SliceRecord):
            yield name, slice_sides(read_sides(readers[name], record.whole), record)
            continue
        if not isinstance(record, MatrixRecord):
            yield name, read_sides(readers[name], record)
            continue
        if of_stack is None or record.stack is not stack:
            stack, of_stack = record.stack, read_sides(readers[name], record.stack)
        yield name, share_sides(of_stack, record)
