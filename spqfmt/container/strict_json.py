"""JSON as FORMAT.md section 3 allows it: no repeated keys, no floats, no huge integers, no deep nesting."""

import json
import re
from collections.abc import Mapping
from typing import TypeAlias, TypeVar

from spqfmt.errors import CorruptError
from spqfmt.kernels.json_text import check_json

_T = TypeVar("_T")
Json: TypeAlias = dict[str, object]
_HEX_DIGEST = re.compile(r"[0-9a-f]{64}")


def parse(data: bytes) -> Json:
    """The one object that `data` holds. Raises CorruptError or LimitError."""
    check_json(data)
    value: Json = json.loads(data)
    return value


def dump(value: object) -> bytes:
    """The canonical text: sorted keys, no spaces, so that equal contents give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def member(record: Json, key: str, kind: type[_T], where: str) -> _T:
    """`record[key]`, which must be there and of that type; an integer must not be negative."""
    value = record.get(key)
    if type(value) is kind and kind is not int:
        return value
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise CorruptError(f"{where}: {key} is missing or not of type {kind.__name__}")
    if isinstance(value, int) and not isinstance(value, bool) and value < 0:
        raise CorruptError(f"{where}: {key} is negative")
    return value


def optional(record: Json, key: str, kind: type[_T], where: str) -> _T | None:
    """Return what `member` returns, or None where the key is left out."""
    return member(record, key, kind, where) if key in record else None


def hex_digest(record: Json, key: str, where: str) -> str | None:
    """A SHA-256 in small hex digits; None where the key is left out."""
    found = optional(record, key, str, where)
    if found is not None and not _HEX_DIGEST.fullmatch(found):
        raise CorruptError(f"{where}: {key} is no SHA-256 in 64 digits 0-9 a-f")
    return found


def integers(found: bytes) -> list[int]:
    """Those of a list that `project_json` gives as bytes."""
    return memoryview(found).cast("q").tolist()


def objects(values: list[object], where: str) -> list[Json]:
    """A list whose members must be objects."""
    for value in values:
        if not isinstance(value, dict):
            raise CorruptError(f"{where}: a member is not an object")
    return values  # type: ignore[return-value]  # just checked


def without(record: Mapping[str, object], *keys: str) -> Json:
    """Return the fields of a record but for these keys."""
    return {key: value for key, value in record.items() if key not in keys}
