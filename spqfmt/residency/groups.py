"""Parts that go to a device together: sent by one copy, decoded by one launch, and lent until another group is used.

A launch that decodes a part of a few megabytes has a hundred warps for thousands of places, and takes as long as one
of its blocks. So groups are as large as a layer where the ceiling has room for buffers of that size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from spqfmt.residency.inventory import Item

ALIGNMENT = 64
"""What chunks are aligned to, and everything else that is put into one allocation."""
SIZES = (32, 16, 8, 4, 2)
"""Parts, in bytes decoded, that groups are made of: the planner takes what is fastest, or each part alone."""
SIZE_WHILE_LOADING = 4
"""The same where all is decoded once."""


def aligned(n_bytes: int) -> int:
    """The smallest multiple of ALIGNMENT that holds `n_bytes`."""
    return -(-n_bytes // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class Group:
    """Parts `first` to `stop` of a plan: what they take while they are sent, decoded and held.

    `decoded_bytes` has room for each part at a multiple of ALIGNMENT, `sent_bytes` for all that is sent.
    """

    first: int
    stop: int
    sent_bytes: int
    table_bytes: int
    decoded_bytes: int
    scratch_bytes: int
    stored_bytes: int

    @classmethod
    def of(cls, items: Sequence[Item], first: int, stop: int) -> "Group":
        """The group of items `first` to `stop`."""
        own = items[first:stop]
        return cls(
            first=first,
            stop=stop,
            sent_bytes=sum(aligned(item.sending.sent_bytes) for item in own),
            table_bytes=sum(aligned(item.sending.table_bytes) for item in own),
            decoded_bytes=sum(aligned(item.part.decoded_bytes) for item in own),
            scratch_bytes=sum(aligned(item.part.scratch_bytes) for item in own),
            stored_bytes=max(item.part.stored_bytes for item in own),
        )


def group_up(items: Sequence[Item], most_bytes: int) -> tuple[Group, ...]:
    """Neighbours together as long as they decode to `most_bytes`; what is larger stands alone. All are of one file.

    A tensor that has room in a group is in one: its product is one launch. What an expert has goes together with
    nothing else: nobody knows beforehand whether it is used. Nor does what rows are looked up of.
    """
    sizes = [aligned(item.part.decoded_bytes) for item in items]
    wholes: dict[int, int] = {}
    for item, size in zip(items, sizes, strict=True):
        wholes[id(item.part.record)] = wholes.get(id(item.part.record), 0) + size
    groups: list[Group] = []
    first, n_bytes = 0, 0
    for number, item in enumerate(items):
        before = items[number - 1] if number else item
        is_other = item.part.reader_number != before.part.reader_number or item.expert != before.expert
        is_other |= item.lookups != before.lookups
        begins = item.part.record is not before.part.record
        wanted = wholes[id(item.part.record)] if begins else 0
        is_full = n_bytes + sizes[number] > most_bytes or n_bytes + wanted > most_bytes >= wanted
        if number > first and (is_full or is_other):
            groups.append(Group.of(items, first, number))
            first, n_bytes = number, 0
        n_bytes += sizes[number]
    if items:
        groups.append(Group.of(items, first, len(items)))
    return tuple(groups)
