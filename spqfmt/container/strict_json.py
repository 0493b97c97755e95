"""JSON as FORMAT.md section 3 allows it: no repeated keys, no floats, no huge integers, no deep nesting."""

import json
from typing import TypeAlias, TypeVar

from spqfmt.errors import CorruptError
from spqfmt.kernels.json_text import check_json

_T = TypeVar("_T")
Json: TypeAlias = dict[str, object]


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
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise CorruptError(f"{where}: {key} is missing or not of type {kind.__name__}")
    if isinstance(value, int) and not isinstance(value, bool) and value < 0:
        raise CorruptError(f"{where}: {key} is negative")
    return value


def optional(record: Json, key: str, kind: type[_T], where: str) -> _T | None:
    """Like `member`, None where the key is left out."""
    return member(record, key, kind, where) if key in record else None


def integers(found: bytes) -> list[int]:
    """Those of a list that `project_json` gives as bytes."""
    return memoryview(found).cast("q").tolist()


def objects(values: list[object], where: str) -> list[Json]:
    """A list whose members must be objects."""
    for value in values:
        if not isinstance(value, dict):
            raise CorruptError(f"{where}: a member is not an object")
    return values  # type: ignore[return-value]  # just checked
