"""FORMAT.md 7.2 and 7.3: the records of source files and of origins."""

import re
from dataclasses import dataclass

from spq_reference.errors import require, within
from spq_reference.text import Object, array, hex_digest, integer, mapping, string


@dataclass(frozen=True)
class Piece:
    """Some literals, then a part of a tensor: the whole of it, or `n` bytes from byte `first` on."""

    literal_bytes: int
    tensor: int | None = None
    part: int = 0
    first: int = 0
    n: int | None = None


@dataclass(frozen=True)
class SourceFile:
    """A file that the model was packed from. Without pieces it is an asset, or was left out."""

    name: str
    file_bytes: int
    sha256: str
    pieces: list[Piece] | None


@dataclass(frozen=True)
class Sources:
    """The source files, and the asset that holds the literals."""

    literals: str | None
    files: list[SourceFile]


def read_sources(record: Object, assets: set[str]) -> Sources:
    """Return the record `sources`; `assets` are the names of the file's assets."""
    # > | `literals` | optional: the name of an asset |
    literals = None
    if "literals" in record:
        literals = string(record["literals"])
        require(literals in assets, f"sources: no asset {literals!r:.80}")
    files: list[SourceFile] = []
    for value in array(record.get("files")):
        file = read_file(mapping(value))
        # > unique among the files |
        require(all(file.name != other.name for other in files), f"sources: {file.name} is there twice")
        # > A file with pieces MUST NOT have the name of an asset, and no name of an asset or of a file with pieces,
        # > followed by `/`, may begin another.
        require(file.pieces is None or file.name not in assets, f"sources: {file.name} is an asset, too")
        files.append(file)
    names = assets | {file.name for file in files if file.pieces is not None}
    for name in names:
        require(not any(other.startswith(f"{name}/") for other in names), f"sources: {name} is a folder")
    return Sources(literals, files)


def read_file(record: Object) -> SourceFile:
    """Return a file record."""
    # > | `file_bytes` | integer |
    # > | `sha256` | hex digest of the file |
    # > | `pieces` | optional list of pieces |
    file_bytes, sha256 = integer(record.get("file_bytes")), hex_digest(record.get("sha256"))
    pieces = [read_piece(array(value)) for value in array(record["pieces"])] if "pieces" in record else None
    # > | `name` | with `pieces` a relative path, as below; without, any string of 1 to 1024 bytes of UTF-8; unique
    # > among the files |
    name = string(record.get("name"))
    if pieces is not None:
        check_source_path(name)
    require(name != "", "sources: a file without name")
    within(len(name.encode()), 1024, "bytes of a source file's name")
    return SourceFile(name, file_bytes, sha256, pieces)


def read_piece(values: list[object]) -> Piece:
    """Return a piece."""
    # > A piece is a list of integers: `[l, t, p]` is the next `l` bytes of the literals followed by part `p` (7.3) of
    # > tensor `t` (from 0, in `tensors`); `[l, t, p, a, n]` has, instead of the whole part, `n` bytes of it from byte
    # > `a` on; `[l]` is literals alone.
    require(len(values) in (1, 3, 5), "sources: length of a piece")
    return Piece(*(integer(value) for value in values))


def read_origin(record: Object) -> Object:
    """Return the record `origin`."""
    # > `{"layout": name, "version": integer, ...}`, with a name of 1 to 64 characters of `a-z 0-9 _ -` and a version of
    # > at least 1.
    layout = string(record.get("layout"))
    require(re.fullmatch(r"[a-z0-9_-]{1,64}", layout) is not None, f"origin: the layout {layout!r:.80}")
    integer(record.get("version"), 1)
    return record


def check_source_path(name: str) -> None:
    """Check the name of a source file with pieces."""
    # > The name of a file with pieces is a relative path of 1 to 1024 bytes of UTF-8: parts of 1 to 255 bytes separated
    # > by `/`, none of them `.` or `..`, none with a space at its begin or end.
    for part in name.split("/"):
        plain = 1 <= len(part.encode()) <= 255 and part[0] != " " and part[-1] != " "
        require(plain and part not in (".", ".."), f"the name {name!r:.40}")
    # > No character is `\`, `:`, U+0000 to U+001F, U+007F to U+009F, U+00AD, U+200B to U+200F, U+2028 to U+202E, U+2060
    # > to U+206F or U+FEFF
    for letter in name:
        code = ord(letter)
        spans = (0, 0x1F), (0x7F, 0x9F), (0xAD, 0xAD), (0x200B, 0x200F), (0x2028, 0x202E), (0x2060, 0x206F)
        hidden = any(first <= code <= last for first, last in spans) or code == 0xFEFF
        require(not hidden and letter not in "\\:", f"the name {name!r:.40}")


def check_path(name: str) -> str:
    """Return the name of an asset."""
    # > Its name is a relative path of 1 to 255 bytes: parts of the characters `A-Z a-z 0-9 . _ -` separated by `/`,
    # > none of them empty, `.` or `..`.
    require(len(name) <= 255, "a name of more than 255 bytes")
    for part in name.split("/"):
        plain = re.fullmatch(r"[A-Za-z0-9._-]+", part) is not None
        require(plain and part not in (".", ".."), f"the name {name!r:.40}")
    return name
