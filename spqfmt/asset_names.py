"""Names of assets (FORMAT.md 7), and which of them may be files in a folder: those that no other program runs."""

import re
import unicodedata
from collections.abc import Callable, Iterable
from typing import Literal

from spqfmt import wire

Kind = Literal["data", "code"]
_NAME = re.compile(r"(?!\.{1,2}(/|$))[A-Za-z0-9._-]+(/(?!\.{1,2}(/|$))[A-Za-z0-9._-]+)*")
_MAX_NAME_BYTES = 255
_MAX_PART_BYTES = 255
# What some systems take for more than a letter, or do not show (FORMAT.md 7.2); and what is no text.
_NO_LETTERS = re.compile(
    "[\\\\:\x00-\x1f\x7f-\x9f\xad\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]"
)
# Weights and what says which belong together: other programs read them and run nothing.
_WEIGHT_ENDINGS = (".safetensors", ".gguf", *wire.ASSET_NEVER_ENDINGS)
_DATA_NAMES = re.compile(
    "|".join(
        re.escape(name).replace(r"\*", ".*")
        for names in (wire.ASSET_DATA_NAMES, wire.ASSET_JSON_NAMES, wire.ASSET_MD_NAMES, wire.ASSET_TXT_NAMES)
        for name in names
    )
)
# In every repository of a hub.
_ATTRIBUTES = ".gitattributes"


def is_asset_name(name: str) -> bool:
    """Whether a file can hold an asset of this name (FORMAT.md 7)."""
    return len(name) <= _MAX_NAME_BYTES and _NAME.fullmatch(name) is not None


def is_source_name(name: str) -> bool:
    """Whether a file can hold the pieces of a source file of this name (FORMAT.md 7.2)."""
    if _NO_LETTERS.search(name) or len(name.encode()) > wire.MAX_NAME_BYTES:
        return False
    return all(
        1 <= len(part.encode()) <= _MAX_PART_BYTES and part not in {".", ".."} and part == part.strip(" ")
        for part in name.split("/")
    )


def as_files(names: Iterable[str]) -> dict[str, Kind]:
    """Kind of each of `names`, assets in the order of the file, that may be a file (7.1); the others are left out.

    Code is written only where the user asks for it.
    """
    return _chosen(names, _kind, is_asset_name)


def source_kinds(names: Iterable[str]) -> dict[str, Kind]:
    """Sort the files of a source as `as_files` does; they hold weights and what goes with them too (7.2).

    What is neither data nor weights that nothing unpickles counts as code.
    """
    return _chosen(names, _kind_of_source, is_source_name)


def _chosen(
    names: Iterable[str], kind_of: Callable[[list[str]], Kind | None], is_name: Callable[[str], bool]
) -> dict[str, Kind]:
    kinds: dict[str, Kind] = {}
    taken: set[str] = set()
    folders: set[str] = set()
    for name in names:
        lower = unicodedata.normalize("NFC", name.casefold())
        parts = lower.split("/")
        above = {"/".join(parts[:depth]) for depth in range(1, len(parts))}
        kind = kind_of(parts)
        clashes = lower in taken or lower in folders or not above.isdisjoint(taken)
        if kind is not None and not clashes and is_name(name):
            kinds[name] = kind
        taken.add(lower)
        folders |= above
    return kinds


def _kind(parts: list[str]) -> Kind | None:
    """Kind by the name alone, in small letters and without its slashes."""
    last = parts[-1]
    if last.endswith(wire.ASSET_NEVER_ENDINGS) or any(map(_is_odd, parts)):
        return None
    in_folder = len(parts) > 1 and last.endswith(wire.ASSET_FOLDER_ENDINGS)
    if in_folder or last.endswith(wire.ASSET_DATA_ENDINGS) or _DATA_NAMES.fullmatch(last):
        return "data"
    return "code" if last.endswith(wire.ASSET_CODE_ENDINGS) else None


def _kind_of_source(parts: list[str]) -> Kind | None:
    *folders, last = parts
    if any(map(_is_odd, folders)) or (_is_odd(last) and last != _ATTRIBUTES):
        return None
    if last.endswith(_WEIGHT_ENDINGS) or last == _ATTRIBUTES:
        return "data"
    return _kind(parts) or "code"


def _is_odd(part: str) -> bool:
    """Hidden, of a device, an option to whoever says `*`, or a name that some systems cut short."""
    return (
        part.startswith((".", "-")) or part.endswith(".") or part.partition(".")[0] in wire.ASSET_DEVICE_NAMES
    )
