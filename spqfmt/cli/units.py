"""Numbers and names for people."""

import fnmatch
from collections.abc import Callable, Sequence

from spqfmt.pages.text import size

__all__ = ["count", "matcher", "percent", "printable", "size"]


def count(n: float) -> str:
    """A number of weights: 134.5 M."""
    for unit in ("", " k", " M", " G"):
        if n < 1000:
            return f"{n:.0f}" if not unit else f"{n:.1f}{unit}"
        n /= 1000
    return f"{n:.2f} T"


def percent(share: float) -> str:
    """A share as a percentage with one digit, two where it is small; nothing for 0."""
    if not share:
        return ""
    return f"{share:.1%}" if share >= 0.01 else f"{share:.2%}" if share >= 0.0001 else "<0.01%"


def printable(text: str) -> str:
    """Text from a file for a terminal: control characters, which could move its cursor, are shown as \\x1b is."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in text)


def matcher(patterns: Sequence[str]) -> Callable[[str], bool]:
    """Whether a tensor's name is one of the patterns, or matches one as a file name does: * ? [abc]."""
    return lambda name: name in patterns or any(fnmatch.fnmatchcase(name, p) for p in patterns)
