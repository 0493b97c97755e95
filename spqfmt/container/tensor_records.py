"""Tensor records (FORMAT.md 3.1), each read and checked when it is asked for: a file may have a million of them."""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from math import prod
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from spqfmt import wire
from spqfmt.codecs.chunks import EncodedChunk
from spqfmt.codecs.threads import lock_held_over_forks
from spqfmt.container.features import required_mask, tensor_features
from spqfmt.container.stream_records import (
    STREAM,
    Put,
    check_shared,
    parse_streams,
    store_stream,
    stream_json,
)
from spqfmt.container.strict_json import Json, hex_digest, integers, member, objects, optional
from spqfmt.errors import CorruptError, FormatError, LimitError
from spqfmt.kernels.json_text import Wanted, project_json
from spqfmt.records import Origin, Stream, TensorRecord
from spqfmt.schemes.base import check_int, float_from_bits
from spqfmt.schemes.named import is_scheme_name
from spqfmt.schemes.outliers import ROLES as OUTLIER_ROLES
from spqfmt.schemes.registry import SCHEMES, scheme_of

QUANTIZED_DTYPES = ("f64", "f32", "f16", "bf16")

_PARAMETERS: Mapping[str, Wanted] = {
    key: wanted for scheme in SCHEMES.values() for key, wanted in scheme.parameters.items()
}
_TENSOR: Mapping[str, Wanted] = {
    "name": "scalar",
    "shape": "integers",
    "dtype": "scalar",
    "scheme": "scalar",
    "tied_to": "scalar",
    "method": "scalar",
    "parameters": _PARAMETERS,
    "streams": (max(len(scheme.roles) for scheme in SCHEMES.values()), STREAM),
    "view": "integers",
    "transposed": "scalar",
    "activation_clamp": {
        "kind": "scalar",
        "low": "scalar",
        "high": "scalar",
        "ratio": "scalar",
        "scope": "scalar",
    },
    "activation_quantization": {"bits": "scalar", "scope": "scalar"},
    "content": "scalar",
    "origin": {"layout": "scalar", "version": "scalar"},
}
_LAYOUT = re.compile(r"[a-z0-9_-]{1,64}")
_MOST_NAMED_STREAMS = 65536
"""The most that a tensor in another maker's scheme has: what claims more would take much memory."""
_NAMED: Wanted = {**_TENSOR, "parameters": {}, "streams": (_MOST_NAMED_STREAMS, STREAM)}
_KEPT = 1024
"""Records that are kept for whoever asks again."""
_AHEAD = 32
"""Records that are made at once where they are asked for in order: each alone, between two tensors that are decoded,
would take twice the time, since the processor has forgotten this code by then."""


class RecordReader:
    """Makes tensor records from an index's text. What leaves here obeys the format."""

    def __init__(
        self,
        text: bytes,
        spans: NDArray[np.int64],
        begins: NDArray[np.int64],
        names: Sequence[str],
        alignment: int,
        declared: int,
        context: Callable[[], AbstractContextManager[None]],
        *,
        all_have_content: bool = False,
    ) -> None:
        """`spans` of the records in `text`; the tensors' `names`, no two alike, and where their chunks begin.

        `alignment` is that of planes of chunks. `declared` are the file's required features; `context` adds to errors
        which file it is.
        """
        self._text, self._spans, self._begins = text, spans, begins
        self.numbers = {name: number for number, name in enumerate(names)}
        self._alignment, self._declared = alignment, declared
        self._context = context
        self._all_have_content = all_have_content
        self._kept: dict[int, TensorRecord] = {}
        self._last = -2
        self._lock = lock_held_over_forks()

    def record(self, number: int) -> TensorRecord:
        """The record of this number."""
        found = self._kept.get(number)
        if found is None:
            with self._context():
                found = self._record(number)
            self._keep(number, found)
            if number == self._last + 1:
                self._make_ahead(number + 1)
        self._last = number
        return found

    def _make_ahead(self, first: int) -> None:
        """Some records from `first` on, up to one that breaks the format: whoever asks for that one is told."""
        with suppress(FormatError):
            for number in range(first, min(first + _AHEAD, len(self._spans))):
                if number not in self._kept:
                    self._keep(number, self._record(number))

    def _keep(self, number: int, record: TensorRecord) -> None:
        with self._lock:
            if len(self._kept) >= _KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[number] = record

    def json_of(self, number: int) -> Json:
        """The record of this number with all that stands in it."""
        begin, end = self._spans[number].tolist()
        found: Json = json.loads(self._text[begin:end])
        return found

    def _json(self, number: int) -> Json:
        begin, end = self._spans[number].tolist()
        try:
            found = project_json(self._text, begin, end, _TENSOR)
        except CorruptError:
            # More streams than any scheme that is known has.
            scheme = project_json(self._text, begin, end, {"scheme": "scalar"})
            if not isinstance(scheme, dict) or not is_scheme_name(str(scheme.get("scheme"))):
                raise
            found = project_json(self._text, begin, end, _NAMED)
        if not isinstance(found, dict):
            raise CorruptError("index: a tensor record is not an object")
        return found

    def _record(self, number: int) -> TensorRecord:
        tensor = self._parsed(self._json(number), int(self._begins[number]))
        where = f"tensor {tensor.name!r}"
        if tensor.scheme == "tied":
            self._check_tied(tensor, number, where)
        for stream in tensor.streams:
            if stream.same_as is not None:
                earlier = stream.same_as < number
                check_shared(stream, self._json(stream.same_as) if earlier else {}, where)
        if tensor.content is None and tensor.tied_to is None and self._all_have_content:
            raise CorruptError(f"{where}: the index has a content digest, and the tensor has none")
        undeclared = required_mask(tensor_features(tensor)) & ~self._declared
        if undeclared:
            raise CorruptError(f"{where}: feature bit {undeclared.bit_length() - 1} is used but not declared")
        return tensor

    def _check_tied(self, tensor: TensorRecord, number: int, where: str) -> None:
        target = self.numbers.get(tensor.tied_to or "", number)
        if (
            target >= number
            or self._json(target).get("scheme") == "tied"
            or tensor.streams
            or tensor.transposed
        ):
            raise CorruptError(f"{where}: tied to no earlier tensor")
        other = self._json(target)
        if _shape(other, where) != tensor.shape or other.get("dtype") != tensor.dtype:
            raise CorruptError(f"{where}: tied to a tensor of another shape or dtype")

    def _parsed(self, record: Json, begin: int) -> TensorRecord:
        where = f"tensor {check_name(record, 'index: tensor', 1)!r}"
        scheme = member(record, "scheme", str, where)
        # A tied tensor may leave both out.
        get = optional if scheme == "tied" else member
        parameters = get(record, "parameters", dict, where) or {}
        streams = get(record, "streams", list, where) or []
        for stream in streams:
            if not isinstance(stream, dict):
                raise CorruptError(f"{where}: a stream is not an object")
        is_named = is_scheme_name(scheme)
        empty = () if is_named else OUTLIER_ROLES
        parsed = parse_streams(streams, begin, self._alignment, where=where, may_be_empty=empty)
        tensor = TensorRecord(
            name=member(record, "name", str, where),
            shape=_shape(record, where),
            dtype=member(record, "dtype", str, where),
            scheme=scheme,
            method=member(record, "method", str, where),
            parameters={} if is_named else _with_lists(parameters, parsed, where),
            streams=parsed,
            tied_to=optional(record, "tied_to", str, where),
            transposed=optional(record, "transposed", bool, where) or False,
            view=_view(record, where),
            activation_clamp=optional(record, "activation_clamp", dict, where),
            activation_quantization=optional(record, "activation_quantization", dict, where),
            content=hex_digest(record, "content", where),
            origin=_origin(record, where),
        )
        if tensor.dtype not in wire.DTYPES:
            raise CorruptError(f"{where}: unknown dtype {tensor.dtype!r}")
        _check_scheme(tensor, where)
        _check_activations(tensor, where)
        return tensor


def tensor_json(record: TensorRecord, like: Mapping[str, object] = MappingProxyType({})) -> Json:
    """The record as it stands in an index.

    `like` is that of the same tensor in another file, from which all is taken but how the tensor is stored.
    """
    found: Json = {
        "name": record.name,
        "shape": list(record.shape),
        "dtype": record.dtype,
        "scheme": record.scheme,
        "method": record.method,
    }
    if record.tied_to is not None:
        return found | {"tied_to": record.tied_to} | dict(like)
    found["parameters"] = dict(record.parameters)
    found |= {"transposed": True} if record.transposed else {}
    found |= {} if record.view is None else {"view": list(record.view)}
    for key in ("activation_clamp", "activation_quantization"):
        value = getattr(record, key)
        found |= {} if value is None else {key: dict(value)}
    found |= {} if record.content is None else {"content": record.content}
    found |= {} if record.origin is None else {"origin": record.origin._asdict()}
    others = like.get("streams")
    alike = objects(others, record.name) if isinstance(others, list) else [{}] * len(record.streams)
    streams = [stream_json(stream, other) for stream, other in zip(record.streams, alike, strict=True)]
    return found | dict(like) | {"streams": streams}


def store_tensor(
    record: TensorRecord, chunks: Iterable[Iterable[EncodedChunk]], shared: Iterable[Stream], put: Put
) -> TensorRecord:
    """The record as the file has it, whose streams are those that it holds itself: `chunks` are of each of them.

    `put` stores their planes, one after the other. `shared` are the streams that another tensor holds.
    """
    own = [store_stream(stream, of, put) for stream, of in zip(record.streams, chunks, strict=True)]
    if record.tied_to is not None:
        return record
    if record.is_named:
        return replace(record, streams=tuple(own))
    order = SCHEMES[record.scheme].roles
    streams = sorted([*own, *shared], key=lambda stream: order.index(stream.role))
    return replace(record, streams=tuple(streams))


def check_name(record: Json, where: str, least_bytes: int) -> str:
    """The name of a record, of an allowed length."""
    name = member(record, "name", str, where)
    size = len(name.encode())
    if size > wire.MAX_NAME_BYTES:
        raise LimitError(f"{where}: a name has {size} bytes, {wire.MAX_NAME_BYTES} are allowed")
    if size < least_bytes:
        raise CorruptError(f"{where}: a name is empty")
    if "\0" in name:
        raise CorruptError(f"{where}: a name holds U+0000")
    return name


def _with_lists(parameters: Json, streams: Sequence[Stream], where: str) -> Json:
    """Lists of integers as such, which come as bytes: the two of a log8, or classes, which end where a chunk does."""
    most = max([2, *(len(stream.chunks) for stream in streams if stream.role == "codes")])
    found = {}
    for key, value in parameters.items():
        if isinstance(value, bytes):
            if len(value) > 8 * most:
                raise CorruptError(f"{where}: {key} has more members than there are chunks")
            found[key] = integers(value)
    return parameters | found


def _shape(record: Json, where: str) -> tuple[int, ...]:
    values = record.get("shape")
    if not isinstance(values, bytes):
        raise CorruptError(f"{where}: shape is missing or not a list of integers")
    if len(values) > 8 * wire.MAX_DIMENSIONS:
        raise LimitError(f"{where}: {len(values) // 8} dimensions, {wire.MAX_DIMENSIONS} are allowed")
    shape = tuple(check_int(n, f"{where}: a dimension") for n in integers(values))
    if prod(n for n in shape if n) > 2**53 - 1:
        raise LimitError(f"{where}: its shape passes 2^53 - 1 elements")
    return shape


def _view(record: Json, where: str) -> tuple[int, ...] | None:
    values = optional(record, "view", bytes, where)
    if values is None:
        return None
    if len(values) > 8 * wire.MAX_DIMENSIONS:
        raise LimitError(f"{where}: a view has more than {wire.MAX_DIMENSIONS} dimensions")
    if not values:
        raise CorruptError(f"{where}: a view has no dimensions")
    view = tuple(check_int(n, f"{where}: a dimension of the view", 1) for n in integers(values))
    scheme = SCHEMES.get(str(record["scheme"]))
    can_have_one = scheme is not None and scheme.is_quantized
    if not can_have_one or prod(view) != prod(_shape(record, where)):
        raise CorruptError(f"{where}: a view of another size, or of a tensor that can have none")
    return view


def _origin(record: Json, where: str) -> Origin | None:
    found = optional(record, "origin", dict, where)
    if found is None:
        return None
    layout = member(found, "layout", str, f"{where}: origin")
    if not _LAYOUT.fullmatch(layout):
        raise CorruptError(f"{where}: origin: {layout[:80]!r} is no name of a layout")
    return Origin(layout, check_int(found.get("version"), f"{where}: origin: version", 1))


def _check_scheme(tensor: TensorRecord, where: str) -> None:
    if tensor.scheme == "tied":
        if tensor.content is not None or tensor.origin is not None:
            raise CorruptError(f"{where}: a tied tensor has no content and no origin of its own")
        return
    if tensor.tied_to is not None or (tensor.scheme not in SCHEMES and not is_scheme_name(tensor.scheme)):
        raise CorruptError(f"{where}: unknown scheme {tensor.scheme!r}")
    if tensor.transposed and len(tensor.view or tensor.shape) < 2:
        raise CorruptError(f"{where}: only a tensor of two dimensions or more can be transposed")
    scheme = scheme_of(tensor.scheme)
    if scheme.is_quantized:
        if not tensor.shape or 0 in tensor.shape:
            raise CorruptError(f"{where}: a scalar or empty tensor must be dense")
        if tensor.dtype not in QUANTIZED_DTYPES:
            raise CorruptError(f"{where}: {tensor.scheme} cannot restore {tensor.dtype}")
    scheme.check(tensor)


def _check_activations(tensor: TensorRecord, where: str) -> None:
    clamp, quantization = tensor.activation_clamp, tensor.activation_quantization
    if clamp is not None:
        kind = clamp.get("kind")
        if kind == "range":
            low, high = (_float(clamp, key, where) for key in ("low", "high"))
            if low > high:
                raise CorruptError(f"{where}: clamp range is empty")
        elif kind == "ratio" and clamp.get("scope") in ("tensor", "token"):
            if not 0 <= _float(clamp, "ratio", where) <= 0.5:
                raise CorruptError(f"{where}: clamp ratio is not from 0 to 0.5")
        else:
            raise CorruptError(f"{where}: unknown activation_clamp")
    if quantization is not None and (quantization.get("bits") != 8 or quantization.get("scope") != "token"):
        raise CorruptError(f"{where}: unknown activation_quantization")


def _float(record: Mapping[str, object], key: str, where: str) -> float:
    return float(float_from_bits(record.get(key), f"{where}: {key}"))
