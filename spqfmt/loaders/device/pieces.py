"""What one launch computes with: channels of a tensor whose decoded weights lie side by side on the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from spqfmt.loaders.device.group_shipping import GroupShipment
from spqfmt.loaders.device.seam import Memory
from spqfmt.records import TensorRecord
from spqfmt.residency.parts import channels


@dataclass(frozen=True, eq=False)
class WeightPiece:
    """Channels `first` to `stop`, at `offset` of a group's decoded bytes; `home`: where they stay, if they do.

    `dtype` is that of the stored stream.
    """

    record: TensorRecord
    dtype: str
    first: int
    stop: int
    group: int
    offset: int
    decoded_bytes: int
    home: Memory | None

    @property
    def name(self) -> str:
        """The tensor's name, with the channels where they are not all."""
        is_whole = (self.first, self.stop) == (0, channels(self.record)[0])
        return self.record.name if is_whole else f"{self.record.name}[{self.first}:{self.stop}]"

    def inside(self, group: Memory) -> Memory:
        """The piece in the decoded bytes of its group."""
        return group.part(self.offset, self.decoded_bytes)


def pieces_of(
    shipments: Sequence[GroupShipment], homes: Mapping[int, Memory], region: Memory
) -> dict[str, tuple[WeightPiece, ...]]:
    """The pieces of each tensor, in order. `homes`: where groups are decoded for good, in one `region` of memory."""
    found: dict[str, list[WeightPiece]] = {}
    for number, shipment in enumerate(shipments):
        home = homes.get(number)
        for part, place in zip(shipment.parts, shipment.places, strict=True):
            piece = WeightPiece(
                record=part.record,
                dtype=part.dtype,
                first=part.first,
                stop=part.stop,
                group=number,
                offset=place.decoded,
                decoded_bytes=part.decoded_bytes,
                home=None if home is None else home.part(place.decoded, part.decoded_bytes),
            )
            own = found.setdefault(part.record.name, [])
            joined = _joined(own[-1], piece, region) if own else None
            if joined is None:
                own.append(piece)
            else:
                own[-1] = joined
    return {name: tuple(own) for name, own in found.items()}


def _joined(one: WeightPiece, other: WeightPiece, region: Memory) -> WeightPiece | None:
    """Both as one; None where they do not lie side by side."""
    n_bytes = one.decoded_bytes + other.decoded_bytes
    home: Memory | None = None
    if one.home is not None and other.home is not None:
        if one.home.address + one.decoded_bytes != other.home.address:
            return None
        home = region.part(one.home.address - region.address, n_bytes)
    elif one.group != other.group or one.offset + one.decoded_bytes != other.offset:
        return None
    return WeightPiece(
        record=one.record,
        dtype=one.dtype,
        first=one.first,
        stop=other.stop,
        group=one.group,
        offset=one.offset,
        decoded_bytes=n_bytes,
        home=home,
    )
