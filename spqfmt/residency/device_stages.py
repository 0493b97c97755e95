"""What parts that go together cost a device in a pass over one token, by where they are."""

import math
from collections.abc import Mapping, Sequence

from spqfmt.residency.device_rates import DeviceRates
from spqfmt.residency.inventory import Item
from spqfmt.residency.ladder import Residency, Stages

LEAST_FUSED_BLOCK_BYTES = 1 << 13
"""Blocks that products are made straight from are as large at least: there is room for the records of such."""


def stages(items: Sequence[Item], residency: Residency, rates: DeviceRates) -> Stages:
    """What one pass over one token makes each stream do for parts that go together, for an expert on the average.

    That is one operation of each, but for products, which are one for each tensor.
    """
    if is_fused(items, residency, rates):
        return Stages(0.0, 0.0, 0.0, fused_seconds(items, rates))
    return _stages_decoded_first(items, residency, rates)


def is_fused(items: Sequence[Item], residency: Residency, rates: DeviceRates) -> bool:
    """Whether few tokens are multiplied straight from parts that go together: where decoding them first takes longer.

    That is the longest of decoding, products, and the memory, where what is decoded is written and read again.
    """
    if residency != "compressed":
        return False
    first = _stages_decoded_first(items, residency, rates)
    moved = sum(item.sending.sent_bytes + 2 * item.part.decoded_bytes for item in items) * _share(items)
    return fused_seconds(items, rates) < max(first.decode, first.compute, moved / rates.compute)


def fused_seconds(items: Sequence[Item], rates: DeviceRates) -> float:
    """What products straight from all of these parts take, one for each tensor; infinity where one has none.

    None is faster than the memory gives what is stored. Of an expert it is that of a token on the average.
    """
    if rates.block_bytes < LEAST_FUSED_BLOCK_BYTES:
        return math.inf
    amounts: dict[int, list[Mapping[str, int]]] = {}
    stored: dict[int, int] = {}
    for item in items:
        own, number = item.sending.fused, id(item.part.record)
        if own is None or not item.products:
            return math.inf
        amounts.setdefault(number, []).append(own)
        stored[number] = stored.get(number, 0) + item.sending.sent_bytes
    seconds = sum(
        max(rates.seconds(_summed(of_tensor)), rates.seconds({"compute": stored[number]}))
        for number, of_tensor in amounts.items()
    )
    return seconds * _share(items)


def _stages_decoded_first(items: Sequence[Item], residency: Residency, rates: DeviceRates) -> Stages:
    share = _share(items)
    loads = [item.sending for item in items]
    multiplied = [item.part for item in items if item.products]
    read = rates.seconds(_summed([load.read for load in loads])) if residency == "disk" else 0.0
    sent = sum(load.sent_bytes for load in loads)
    copy = rates.seconds({"copy": sent}) if residency in {"disk", "host"} else 0.0
    decode = rates.seconds(_summed([load.decode for load in loads])) if residency != "decoded" else 0.0
    compute = sum(part.decoded_bytes for part in multiplied) / rates.compute
    n_products = len({id(part.record) for part in multiplied})
    compute += n_products * rates.operation_s
    return Stages(read * share, copy * share, decode * share, compute * share)


def _share(items: Sequence[Item]) -> float:
    """The part of all tokens that parts which go together are expected to be used for."""
    return 1.0 if items[0].share is None else items[0].share


def _summed(amounts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    found: dict[str, int] = {}
    for own in amounts:
        for kind, n_bytes in own.items():
            found[kind] = found.get(kind, 0) + n_bytes
    return found
