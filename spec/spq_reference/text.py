"""FORMAT.md 3: the JSON text of the index, and typed access to what it holds."""

import json
import re

from spq_reference.errors import Corrupt, Limit, require

LARGEST = 2**53 - 1
Object = dict[str, object]


def parse(text: bytes) -> Object:
    """Return the object that a JSON text holds, with every rule of section 3 for JSON text checked."""
    # > The JSON text is one object, in UTF-8 (RFC 8259) without byte order mark.
    try:
        decoded = text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Corrupt(f"index: {error}") from error
    # > Nesting MUST NOT pass 16 levels, the outermost object being level 1.
    depth = 0
    for bracket in re.findall(r"[\[\]{}]", re.sub(r'"(?:[^"\\]|\\.)*"', "", decoded, flags=re.DOTALL)):
        depth += 1 if bracket in "[{" else -1
        if depth > 16:
            raise Limit("index: nested more than 16 levels")
    try:
        value = json.loads(
            decoded,
            object_pairs_hook=unique,
            parse_int=number,
            parse_float=no_number,
            parse_constant=no_number,
        )
        # > An escape for half of a surrogate pair MUST NOT stand alone.
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except ValueError as error:
        raise Corrupt(f"index: {error}") from error
    return mapping(value)


def unique(pairs: list[tuple[str, object]]) -> Object:
    """Return the object of these pairs."""
    # > Keys MUST NOT repeat within an object.
    require(len({key for key, _ in pairs}) == len(pairs), "index: a key occurs twice in an object")
    return dict(pairs)


def number(digits: str) -> int:
    """Return the integer of these digits."""
    # > Numbers MUST be integers without fraction or exponent, from -(2^53 - 1) to 2^53 - 1. `-0` is the number 0.
    require(len(digits) <= 17 and abs(int(digits)) <= LARGEST, "index: an integer past 2^53 - 1")
    return int(digits)


def no_number(digits: str) -> object:
    """Refuse a number with fraction or exponent, and NaN and Infinity, which Python would take."""
    raise Corrupt(f"index: {digits} is not an integer")


def integer(value: object, low: int = 0, high: int = LARGEST) -> int:
    """Return the value, an integer from low to high."""
    # > An integer is never a boolean. Integers without a stated range are at least 0.
    if type(value) is not int or not low <= value <= high:
        raise Corrupt(f"index: {value!r:.40} where an integer from {low} to {high} is due")
    return value


def string(value: object) -> str:
    """Return the value, a string."""
    if type(value) is not str:
        raise Corrupt(f"index: {value!r:.40} where a string is due")
    return value


def array(value: object) -> list[object]:
    """Return the value, a list."""
    if type(value) is not list:
        raise Corrupt(f"index: {value!r:.40} where a list is due")
    return value


def mapping(value: object) -> Object:
    """Return the value, an object; what is read from it and is not there fails as None of the type that is due."""
    # > All keys in the tables below MUST be there unless they are called optional or the text says otherwise; a key
    # > that is not there is left out, never `null`.
    if type(value) is not dict:
        raise Corrupt(f"index: {value!r:.40} where an object is due")
    return value


def hex_digest(value: object) -> str:
    """Return the value, a SHA-256 in hex."""
    # > A *hex digest* is a string of 64 digits `0-9 a-f`, a SHA-256.
    digest = string(value)
    require(re.fullmatch(r"[0-9a-f]{64}", digest) is not None, f"index: {digest!r:.80} is no hex digest")
    return digest


def word(value: object, words: tuple[str, ...]) -> str:
    """Return the value, one of some strings."""
    require(string(value) in words, f"index: {value!r:.40} is none of {', '.join(words)}")
    return string(value)
