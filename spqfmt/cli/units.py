"""Numbers and names for people."""

import fnmatch
import re
from collections.abc import Callable, Sequence

from spqfmt.pages import text
from spqfmt.pages.text import change, relative_error, size

__all__ = [
    "change",
    "count",
    "duration",
    "for_terminal",
    "matcher",
    "percent",
    "printable",
    "ratio",
    "relative_error",
    "size",
]


def count(n: float) -> str:
    """A number of weights: 134.5 M."""
    for unit in ("", " k", " M", " G"):
        if n < 1000:
            return f"{n:.0f}" if not unit else f"{n:.1f}{unit}"
        n /= 1000
    return f"{n:.2f} T"


def duration(seconds: float) -> str:
    """A time to wait for: 40 s, 12 min, 3.5 h."""
    if seconds < 100:
        return f"{max(1.0, seconds):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def ratio(file_bytes: int, raw_bytes: int, bf16_bytes: int) -> str:
    """How many times smaller a file is, and than what: a source of 32-bit floats gains half by BF16 alone."""
    to_source, to_bf16 = text.ratio(raw_bytes / file_bytes), text.ratio(bf16_bytes / file_bytes)
    own = "" if to_source == to_bf16 else f"{to_source} to the source, "
    return f"ratio {own}{to_bf16} to BF16"


def percent(share: float) -> str:
    """Write a share as pages do, but nothing for 0: a table is easier to read without."""
    return text.percent(share) if share else ""


def printable(name: str) -> str:
    """Text from a file for a terminal: control characters, which could move its cursor, are shown as \\x1b is."""
    if name.isprintable():
        return name
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in name)


# All control characters but newline and tab, and those that turn the direction of text around.
_MOVES = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def for_terminal(text: str) -> str:
    """Running text for a terminal: what could move its cursor, set its title or hide text is shown as \\x1b is."""
    return _MOVES.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def matcher(patterns: Sequence[str]) -> Callable[[str], bool]:
    """Whether a tensor's name is one of the patterns, or matches one as a file name does: * ? [abc]."""
    return lambda name: name in patterns or any(fnmatch.fnmatchcase(name, p) for p in patterns)
