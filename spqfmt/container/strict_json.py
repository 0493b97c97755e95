"""JSON as FORMAT.md section 3 allows it: no repeated keys, no floats, no huge integers, no deep nesting."""

import json
from typing import NoReturn, TypeAlias, TypeVar

from spqfmt import wire
from spqfmt.errors import CorruptError, LimitError

_MAX_INTEGER = 2**53 - 1
_T = TypeVar("_T")
Json: TypeAlias = dict[str, object]


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise CorruptError("index: a key is repeated")
    return found


def _integer(text: str) -> int:
    value = int(text) if len(text) <= 17 else _MAX_INTEGER + 1
    if abs(value) > _MAX_INTEGER:
        raise CorruptError("index: an integer passes 2^53 - 1")
    return value


def _no_float(text: str) -> NoReturn:
    raise CorruptError(f"index: {text[:20]} is not an integer")


def parse(data: bytes) -> Json:
    """The one object that `data` holds. Raises CorruptError or LimitError."""
    try:
        text = data.decode("utf-8")
        value = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_int=_integer,
            parse_float=_no_float,
            parse_constant=_no_float,
        )
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CorruptError(f"index: not JSON in UTF-8: {error}") from error
    except RecursionError as error:
        raise LimitError(f"index: nesting passes {wire.MAX_JSON_DEPTH} levels") from error
    if not isinstance(value, dict):
        raise CorruptError("index: not an object")
    _check_values(value)
    return value


def _check_values(root: object) -> None:
    """Level by level: the depth of nesting, and no half of a surrogate pair in any string."""
    level: list[object] = [root]
    for depth in range(wire.MAX_JSON_DEPTH + 2):
        below: list[object] = []
        for value in level:
            if isinstance(value, dict | list) and depth >= wire.MAX_JSON_DEPTH:
                raise LimitError(f"index: nesting passes {wire.MAX_JSON_DEPTH} levels")
            if isinstance(value, dict):
                below += value.keys()
                below += value.values()
            elif isinstance(value, list):
                below += value
            elif isinstance(value, str) and not _encodable(value):
                raise CorruptError("index: half a surrogate pair in a string")
        level = below


def _encodable(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


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


def objects(values: list[object], where: str) -> list[Json]:
    """A list whose members must be objects."""
    for value in values:
        if not isinstance(value, dict):
            raise CorruptError(f"{where}: a member is not an object")
    return values  # type: ignore[return-value]  # just checked
