"""Digests of what tensors hold, whatever codec, chunks, shards or partial plan were chosen (FORMAT.md 3.5)."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from spqfmt.codecs.base import Bytes
from spqfmt.codecs.elements import Elements, packed
from spqfmt.container.fetch import StreamFetch
from spqfmt.container.reader import Reader
from spqfmt.container.strict_json import Json
from spqfmt.container.tensor_records import tensor_json
from spqfmt.records import TensorRecord
from spqfmt.schemes.base import Encoded, StreamData
from spqfmt.schemes.outliers import ROLES as BANDED_ROLES
from spqfmt.schemes.registry import SCHEMES, scheme_of

_AT_ONCE = 1 << 20
_IN_HEAD = ("shape", "dtype", "scheme")
_IN_HEAD_WHERE_SET = ("view", "transposed", "activation_clamp", "activation_quantization")


class _Held(NamedTuple):
    """A stream: some elements in order and how often these follow each other, and the elements of each chunk."""

    role: str
    dtype: str
    n: int
    runs: Iterable[tuple[Elements, int]]
    chunks: Sequence[int]


def content_of_encoded(record: TensorRecord, encoded: Encoded) -> str:
    """The content digest, in hex, of a tensor on its way into a file; `record` is its own, without chunks."""
    streams = {s.role: s for s in (*encoded.streams, *(s for s, _ in encoded.same_as.values()))}
    # Streams of another maker's scheme have the order in which they were made.
    order = scheme_of(encoded.scheme).roles or tuple(streams)
    return _digest(tensor_json(record), [_encoded(streams[role]) for role in order if role in streams])


def content_of_stored(reader: Reader, tensor: TensorRecord) -> str:
    """The content digest, in hex, of a tensor that is not tied, decoded and checked. Raises FormatError."""
    fetch, held = StreamFetch(reader, tensor), []
    for stream in tensor.streams:
        chunks = reader.owner(stream).chunks.n_elements.tolist()
        held.append(
            _Held(
                role=stream.role, dtype=stream.dtype, n=stream.n, runs=fetch.runs(stream.role), chunks=chunks
            )
        )
    return _digest(_json_of(reader, tensor), held)


def content_head(reader: Reader, tensor: TensorRecord) -> bytes:
    """What the digest of a tensor that is not tied covers beside the elements of its streams, as canonical JSON."""
    outlines = [(s.role, s.dtype, s.n, reader.owner(s).chunks.n_elements.tolist()) for s in tensor.streams]
    return _head(_json_of(reader, tensor), outlines)


def _json_of(reader: Reader, tensor: TensorRecord) -> Json:
    return reader.index.json_of(reader.index.by_name.numbers[tensor.name])


def content_of_model(digests: Mapping[str, str], tied: Mapping[str, str]) -> str:
    """The content digest of all tensors by name; `tied` says which have that of another one."""
    whole = hashlib.sha256()
    for name in sorted([*digests, *tied], key=str.encode):
        whole.update(bytes.fromhex(digests[tied.get(name, name)]) + name.encode() + b"\0")
    return whole.hexdigest()


def _encoded(stream: StreamData) -> _Held:
    chunks = [part.size for part in stream.chunks()] if stream.role in BANDED_ROLES else []
    runs: Iterator[tuple[Elements, int]] = ((part, 1) for part in stream.chunks())
    return _Held(role=stream.role, dtype=stream.dtype, n=stream.elements.size, runs=runs, chunks=chunks)


def _digest(record: Json, streams: Sequence[_Held]) -> str:
    digest = hashlib.sha256(_head(record, [(s.role, s.dtype, s.n, s.chunks) for s in streams]))
    for stream in streams:
        for elements, times in stream.runs:
            _update(digest, packed(elements, stream.dtype), times)
    return digest.hexdigest()


def _head(record: Json, streams: Iterable[tuple[str, str, int, Sequence[int]]]) -> bytes:
    """The head of a tensor with streams of these roles, dtypes, numbers of elements and elements of each chunk."""
    head: Json = {key: record[key] for key in _IN_HEAD}
    head |= {key: record[key] for key in _IN_HEAD_WHERE_SET if record.get(key)}
    parameters = record["parameters"]
    assert isinstance(parameters, dict)
    # Classes say how elements are stored, but for where tiles of a trellis begin.
    has_trellis = record["scheme"] == "uniform" and "trellis" in parameters
    head["parameters"] = {k: value for k, value in parameters.items() if k != "class_sizes" or has_trellis}
    is_banded = record["scheme"] in SCHEMES
    head["streams"] = [
        [role, dtype, n, *([list(chunks)] if is_banded and role in BANDED_ROLES else [])]
        for role, dtype, n, chunks in streams
    ]
    return _canonical(head)


def _update(digest: "hashlib._Hash", data: Bytes, times: int) -> None:
    at_once = min(times, max(1, _AT_ONCE // max(1, data.size)))
    several = data if at_once == 1 else np.tile(data, at_once)
    for _ in range(times // at_once):
        digest.update(several.data)
    digest.update(several[: times % at_once * data.size].data)


def _canonical(value: object) -> bytes:
    """A JSON text in the form of RFC 8785: integers and strings are all there is."""
    if isinstance(value, Mapping):
        # That form sorts by UTF-16 code units.
        keys = sorted(value, key=lambda key: key.encode("utf-16-be"))
        return b"{" + b",".join(_canonical(key) + b":" + _canonical(value[key]) for key in keys) + b"}"
    if isinstance(value, list | tuple):
        return b"[" + b",".join(map(_canonical, value)) + b"]"
    return json.dumps(value, ensure_ascii=False).encode()
