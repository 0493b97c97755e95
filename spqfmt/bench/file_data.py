"""The streams of a file as data sets: what its own codes, scales and outliers cost in each coder."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from spqfmt import wire
from spqfmt.bench.data import ByteLayout, Dataset
from spqfmt.codecs.elements import order0_bits, to_planes
from spqfmt.container.reader import Reader
from spqfmt.records import Stream, TensorRecord

MIN_SYMBOLS = 1 << 16  # a smaller stream measures call overhead, not coding


def stored_streams(tensors: Sequence[TensorRecord]) -> Iterator[tuple[TensorRecord, Stream]]:
    """The streams that these tensors store themselves, each with its tensor."""
    for record in tensors:
        for stream in record.streams:
            if stream.same_as is None:
                yield record, stream


def file_datasets(path: Path, n_symbols: int) -> Iterator[Dataset]:
    """One data set for each kind of stream, `role (dtype)`: the first `n_symbols` or so, tensor after tensor."""
    with Reader(path) as reader:
        kinds: dict[tuple[str, str], list[TensorRecord]] = defaultdict(list)
        for record, stream in stored_streams(reader.index.tensors):
            kinds[stream.role, stream.dtype].append(record)
        for (role, dtype), records in kinds.items():
            data = _dataset(reader, role, dtype, records=records, n_symbols=n_symbols)
            if data.n_symbols >= MIN_SYMBOLS:
                yield data


def _dataset(reader: Reader, role: str, dtype: str, records: list[TensorRecord], n_symbols: int) -> Dataset:
    parts = []
    n = 0
    for record in records:
        if n >= n_symbols:
            break
        parts.append(reader.read_elements(record, role, 0, min(record.by_role[role].n, n_symbols - n)))
        n += parts[-1].size
    elements = np.concatenate(parts)
    raw = elements.view(np.uint8)
    bits = wire.DTYPES[dtype].bits
    symbols = to_planes(elements, dtype) if bits > 8 else [raw]
    entropy = sum(map(order0_bits, symbols)) / max(1, elements.size)
    layouts: tuple[ByteLayout, ...]
    if bits > 8:
        width = bits // 8
        layouts = (ByteLayout("planes", raw, width, planes=True), ByteLayout("elements", raw, width))
    elif bits < 8:
        layouts = (ByteLayout("packed", to_planes(elements, dtype)[0]), ByteLayout("bytes", raw))
    else:
        layouts = (ByteLayout("bytes", raw),)
    return Dataset(f"{role} ({dtype})", elements.size, entropy, layouts)
