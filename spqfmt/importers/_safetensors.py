"""One safetensors file: a header with names, dtypes, shapes and places, then the values, little-endian."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from spqfmt.codecs.elements import from_planes
from spqfmt.errors import ImporterError
from spqfmt.importers._source_file import SourceFile, same_bytes
from spqfmt.records import dense_bytes
from spqfmt.safetensors_names import from_safetensors
from spqfmt.schemes import dense
from spqfmt.wire import DTYPES

if TYPE_CHECKING:
    import torch

METADATA = "__metadata__"
_KEYS = ("dtype", "shape", "data_offsets")
# The library's own limit: what claims more is not a header.
_MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies: `offset` counts from the file's start.

    It is None where the elements do not lie there as they are; `read` then gives the tensor.
    """

    file: SourceFile
    shape: tuple[int, ...]
    dtype: str
    offset: int | None
    n_bytes: int
    read: Callable[[], torch.Tensor] | None = None


@dataclass(frozen=True)
class Header:
    """What one file says of itself: its tensors by name, and facts about the model, such as its licence."""

    file: SourceFile
    tensors: Mapping[str, Stored]
    metadata: Mapping[str, str]


def read_header(file: SourceFile) -> Header:
    """Names, shapes and dtypes of one file, and its metadata.

    Raises ImporterError for a file that breaks the layout or is cut short.
    """
    try:
        return _parse(file)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ImporterError(f"{file.path}: broken safetensors file ({error}); download it again") from None


def _parse(file: SourceFile) -> Header:
    length = file.read(0, 8)
    if len(length) < 8:
        raise ValueError("it ends within its first eight bytes")
    [header_bytes] = struct.unpack("<Q", length)
    start = 8 + header_bytes
    if header_bytes > _MAX_HEADER_BYTES or start > file.n_bytes:
        raise ValueError(f"a header of {header_bytes} bytes does not fit in it")
    header = json.loads(file.read(8, header_bytes), object_pairs_hook=_Object)
    if not isinstance(header, _Object):
        raise ValueError("its header is not a JSON object")
    header.refuse_repeated((METADATA,))
    metadata = header.pop(METADATA, None) or {}
    if not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError(f"its {METADATA} holds something else than text")
    entries = {name: _entry(file, start, name, fields) for name, fields in header.items()}
    end = start
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].offset or 0, item[1].n_bytes)):
        if entry.offset != end:
            raise ValueError(f"tensor {name} does not begin where the one before it ends")
        end += entry.n_bytes
    if end != file.n_bytes:
        raise ValueError(f"its tensors end at byte {end}, the file at {file.n_bytes}")
    return Header(file, entries, metadata)


class _Object(dict[str, Any]):
    """An object of a header. Of a key that is there several times the last counts, as for the library."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self._keys = None if len(self) == len(pairs) else [key for key, _ in pairs]

    def refuse_repeated(self, keys: Sequence[str]) -> None:
        """Raise ValueError where one of these keys is there several times, as the library does."""
        repeated = next((key for key in keys if self._keys and self._keys.count(key) > 1), None)
        if repeated is not None:
            raise ValueError(f"{repeated} stands in its header twice")


def _entry(file: SourceFile, start: int, name: str, fields: object) -> Stored:
    """One tensor; further keys mean nothing, as for the library."""
    if not isinstance(fields, _Object) or not fields.keys() >= set(_KEYS):
        raise ValueError(f"tensor {name} has no {', '.join(_KEYS)}")
    fields.refuse_repeated(_KEYS)
    dtype, shape, (first, last) = (fields[key] for key in _KEYS)
    if not all(type(number) is int and number >= 0 for number in (*shape, first, last)):
        raise ValueError(f"tensor {name} has a shape or a place that is none")
    ours = from_safetensors(dtype)
    if ours not in dense.DTYPES:
        raise ImporterError(f"{file.path}: tensor {name} has dtype {dtype}, which .spq cannot hold")
    if prod(shape) * DTYPES[ours].bits % 8:
        raise ValueError(f"tensor {name} does not end at a whole byte")
    n_bytes = dense_bytes(ours, prod(shape))
    if last - first != n_bytes:
        raise ValueError(f"tensor {name} takes {last - first} bytes where its shape takes {n_bytes}")
    return Stored(file=file, shape=tuple(shape), dtype=ours, offset=start + first, n_bytes=n_bytes)


def loader(name: str, entry: Stored) -> Callable[[], torch.Tensor]:
    """What reads the tensor, into memory of its own. Raises ImporterError when the file is not what it was."""

    offset = entry.offset
    if offset is None:
        assert entry.read is not None
        return entry.read

    def load() -> torch.Tensor:
        # torch takes seconds to import: not where only names are asked for.
        import torch

        from spqfmt.kernels.torch_arrays import TORCH_DTYPES

        tensor = torch.empty(entry.shape, dtype=TORCH_DTYPES[entry.dtype])
        if DTYPES[entry.dtype].bits < 8:
            packed = np.empty(entry.n_bytes, np.uint8)
            entry.file.read_into(offset, packed.data, f"tensor {name}")
            from_planes(packed, entry.dtype, tensor.numel(), tensor.reshape(-1).numpy())
            return tensor
        buffer = tensor.reshape(-1).view(torch.uint8).numpy().data
        entry.file.read_into(offset, buffer, f"tensor {name}")
        return tensor

    return load


def same_bits(first: Stored, second: Stored) -> bool:
    """Whether two tensors are alike in shape, dtype and every bit. Reads up to the first difference."""
    alike = (first.shape, first.dtype) == (second.shape, second.dtype)
    if not alike or first.offset is None or second.offset is None:
        return False
    return same_bytes((first.file, first.offset), (second.file, second.offset), first.n_bytes)
