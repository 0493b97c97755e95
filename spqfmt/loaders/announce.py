"""What loading a model, and its first pass, will read of files that are not on this machine: told before it begins.

So these fetch ahead what is needed, once, and nothing that stays in memory a second time.
"""

from collections.abc import Iterable, Iterator, Sequence

from spqfmt.container.model import OpenModel
from spqfmt.container.reader import Reader
from spqfmt.container.stacks import stack_of
from spqfmt.records import Stream, TensorRecord
from spqfmt.residency.plan import Plan
from spqfmt.schemes.registry import SCHEMES

Ranges = list[tuple[int, int]]


def announce_assets(model: OpenModel) -> None:
    """Tell the files of `model`: their small files."""
    _tell(
        model,
        [[r for a in reader.index.assets for r in _planes(reader, [a.stream])] for reader in model.readers],
    )


def announce(model: OpenModel, decoded: Iterable[str], plan: Plan | None = None) -> None:
    """Tell the files of `model`: tensors that are decoded, by name, then what a plan for the CPU holds and streams."""
    if all(reader.remote is None for reader in model.readers):
        return
    ranges: list[Ranges] = [[] for _ in model.readers]
    numbers = {reader: number for number, reader in enumerate(model.readers)}
    for name in decoded:
        reader, record = model.held(name)
        if record.tied_to is None:
            ranges[numbers[reader]] += _planes(reader, record.streams)
    if plan is not None:
        for parts in plan.by_tensor.values():
            number = parts[0].reader_number
            ranges[number] += _planes(model.readers[number], _sides(stack_of(parts[0].record)))
        # Last what the first pass reads; on later ones these parts are fetched as they are asked for.
        for on_disk in (False, True):
            for planned in plan.parts:
                part, item = planned.item.part, planned.item
                is_of_pass = item.products and item.share is None
                if (planned.residency == "disk") == on_disk and (is_of_pass or not on_disk):
                    ranges[part.reader_number].append((part.offset, part.offset + part.stored_bytes))
    _tell(model, ranges)


def _tell(model: OpenModel, ranges: Sequence[Ranges]) -> None:
    for reader, of_reader in zip(model.readers, ranges, strict=True):
        if reader.remote is not None:
            reader.remote.expect(of_reader)


def _sides(record: TensorRecord) -> Iterator[Stream]:
    weights = SCHEMES[record.scheme].weights
    return (stream for stream in record.streams if stream.role != weights)


def _planes(reader: Reader, streams: Iterable[Stream]) -> Iterator[tuple[int, int]]:
    """Where the chunks of streams lie: first byte, and the one behind the last."""
    for stream in streams:
        for chunk in reader.owner(stream).chunks:
            for plane in chunk.planes:
                yield plane.offset, plane.offset + plane.stored_bytes
