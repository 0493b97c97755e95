"""The sides of packed tensors, as their schemes have them: what they take, and what they are."""

from collections import Counter
from collections.abc import Sequence

from spqfmt.container.fetch import StreamFetch
from spqfmt.container.reader import Reader
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
