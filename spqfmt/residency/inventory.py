"""What a model holds of weights, and what that comes to: sums, and buffers for the largest parts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple, Self

from spqfmt.cached import cached_property
from spqfmt.residency.parts import Part

N_READS = 3
"""Buffers for what is read: one being decoded, one ready, one being read into. As many threads load the model."""
N_READERS = 2
"""Threads that read ahead, and check, where weights stay on disk."""
N_EXPERT_READS = 6
"""Buffers for parts of experts that are read when a layer's router has chosen them, all of them at once."""
N_EXPERT_READERS = 4
"""Threads that read these: a disk gives more to several that ask than to one."""
N_BUFFERS = 2
"""Decompression buffers: one in use, and one for the case that an array over it outlives its use."""
N_ROW_SLOTS = 2
"""Parts of an embedding that are kept decoded for lookups, where it is not decoded as a whole."""


class Load(NamedTuple):
    """What a part asks of a device's memory and streams: bytes that are sent (and stay there compressed), bytes of
    decode tables, and the amounts of DeviceRates that reading and decoding it take.

    `fused`: those of a product straight from what is sent; None where there is no such product.
    """

    sent_bytes: int
    table_bytes: int
    read: Mapping[str, int]
    decode: Mapping[str, int]
    fused: Mapping[str, int] | None = None


class Expert(NamedTuple):
    """Number `number` of the experts of a place of the model, which are numbered too."""

    place: int
    number: int


@dataclass(frozen=True)
class Item:
    """A part and what the model does with it: a product on every pass, and `lookups`, rows of it for some tokens.

    `load` is there where the products are a device's. `share`: of an expert, the part of all tokens that it is expected
    to be used for; None for what is no expert's. `expert`: which one that is.
    """

    part: Part
    products: bool
    lookups: bool
    load: Load | None = None
    share: float | None = None
    expert: Expert | None = None

    @property
    def sending(self) -> Load:
        """What sending the part to a device takes."""
        assert self.load is not None, "an item of a device says what sending it takes"
        return self.load


@dataclass(frozen=True)
class Fixed:
    """What is held whatever the ceiling, in bytes. `ring` and `rows` are 0 where everything is decoded.

    `staging`: what is read from disk; `ring`: the decompression buffers; `rows`: parts of embeddings for lookups;
    `values`: what is kept free for weights that the model's own code reads, which are decoded for it.
    """

    floats: int
    sides: int
    workspace: int
    staging: int
    ring: int
    rows: int
    values: int = 0

    @property
    def total(self) -> int:
        """The sum of all of them."""
        return self.floats + self.sides + self.workspace + self.staging + self.ring + self.rows + self.values


@dataclass(frozen=True)
class Totals:
    """What some of a model's weights come to, in bytes: sums, and the largest, that decide the size of buffers.

    `least`: each part stored or decoded, whichever is less. `floats` and `sides`: as Inventory has them.
    `largest_workspace`: the most room that one tensor needs for dequantized rows. `largest_stored`: the largest part as
    it is read; `largest_work`: the most that decoding a part takes beside its result. `largest_looked_up` and
    `largest_rows`: the largest part of lookups, stored and decoded; `largest_product`: that of products, decoded.
    `largest_expert`: the largest of experts, stored.
    `values`: as Fixed has them.
    """

    stored: int = 0
    decoded: int = 0
    least: int = 0
    floats: int = 0
    sides: int = 0
    largest_workspace: int = 0
    largest_stored: int = 0
    largest_work: int = 0
    largest_looked_up: int = 0
    largest_product: int = 0
    largest_rows: int = 0
    largest_expert: int = 0
    values: int = 0

    @classmethod
    def of(cls, items: Sequence[Item], sides: int) -> Self:
        """Sum up whole packed tensors, whose sides take so many bytes."""
        parts = [item.part for item in items]
        lookups = [item.part for item in items if item.lookups]
        return cls(
            stored=sum(part.stored_bytes for part in parts),
            decoded=sum(part.decoded_bytes for part in parts),
            least=sum(min(part.stored_bytes, part.decoded_bytes) for part in parts),
            sides=sides,
            largest_stored=max((part.stored_bytes for part in parts), default=0),
            largest_work=max((part.work_bytes for part in parts), default=0),
            largest_looked_up=max((part.stored_bytes for part in lookups), default=0),
            largest_product=max((item.part.decoded_bytes for item in items if item.products), default=0),
            largest_rows=max((part.decoded_bytes for part in lookups), default=0),
            largest_expert=max((i.part.stored_bytes for i in items if i.share is not None), default=0),
        )

    def __add__(self, other: "Totals") -> "Totals":
        """The totals of both together: sums are added, the larger of two largest is kept."""
        return Totals(
            **{name: getattr(self, name) + getattr(other, name) for name in _SUMS},
            **{name: max(getattr(self, name), getattr(other, name)) for name in _LARGEST},
        )

    def stored_as(self, n_bytes: int) -> "Totals":
        """Were the stored bytes `n_bytes`, each part's in its share, and no part worth decoding."""
        share = n_bytes / self.stored if self.stored else 0.0
        return replace(
            self,
            stored=n_bytes,
            least=n_bytes,
            largest_stored=round(self.largest_stored * share),
            largest_looked_up=round(self.largest_looked_up * share),
        )

    def fixed(self, *, streamed: bool) -> Fixed:
        """What is held whatever the ceiling: parts `streamed` through the buffers, or all of them decoded."""
        return Fixed(
            floats=self.floats,
            sides=self.sides,
            workspace=self.largest_workspace,
            staging=(self.largest_stored + self.largest_work) * N_READS
            + (self.largest_looked_up + self.largest_expert * N_EXPERT_READS if streamed else 0),
            ring=self.largest_product * N_BUFFERS if streamed else 0,
            rows=self.largest_rows * N_ROW_SLOTS if streamed else 0,
            values=self.values,
        )

    @property
    def in_memory_bytes(self) -> int:
        """The smallest ceiling under which all parts have room, compressed or decoded, whichever is less."""
        whole, streamed = self.fixed(streamed=False), self.fixed(streamed=True)
        return min(whole.total + self.decoded, streamed.total + self.least)


_SUMS = ("stored", "decoded", "least", "floats", "sides")
_LARGEST = tuple(field.name for field in fields(Totals) if field.name not in _SUMS)


@dataclass(frozen=True)
class Inventory:
    """All that the model holds of weights, in the order of use.

    `float_bytes`: tensors that stay ordinary torch parameters, in the dtype that the model computes in. `side_bytes`:
    scales, zero points, orders and outliers of packed tensors, which are always decoded. `workspace_bytes`: room for
    dequantized rows. `values_bytes`: the most that the model's own code reads of weights at a time.
    """

    items: tuple[Item, ...]
    float_bytes: int
    side_bytes: int
    workspace_bytes: int
    values_bytes: int = 0

    @cached_property
    def totals(self) -> Totals:
        """What the items and the rest come to."""
        others = Totals(
            floats=self.float_bytes, largest_workspace=self.workspace_bytes, values=self.values_bytes
        )
        return Totals.of(self.items, self.side_bytes) + others
