"""JSON texts of many megabytes: checked in one pass, and what is wanted of them without the rest; native, typed."""

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from spqfmt.kernels import _native

Wanted: TypeAlias = str | int | tuple[int, "Wanted"] | Mapping[str, "Wanted"]
"""What `project_json` shall make of a value:

scalar      a string, an integer, a boolean, None
integers    a list of integers: their int64 bytes
rows        a list of lists of integers, all of one length: their int64 bytes, and that length (0 without any)
lists       a list of lists of integers: their int64 bytes, and the int64 bytes of the lists' lengths
strings     an object whose values are strings: a dict
N           a list of at most N values: int64 bytes, begin and end of each in the text; LimitError for a longer one
(N, {...})  a list of at most N objects: a list of dicts; CorruptError for a longer one
{...}       an object: a dict of those of these keys that it has

A value of another kind than is wanted comes as the scalar that it is, or as Ellipsis.
"""

PLACE_COLUMNS = ("extent", "tail", "raw_bytes", "n_planes")


def check_json(text: bytes) -> None:
    """Raise CorruptError or LimitError unless the text is one object that keeps the rules of FORMAT.md section 3."""
    _native.check_json(text)


def project_json(text: bytes, begin: int, end: int, wanted: Wanted) -> object:
    """What is wanted of the value at `begin` of a text that `check_json` has passed; nothing else takes memory."""
    return _native.project_json(text, begin, end, wanted)


def tensor_places(
    text: bytes, spans: npt.NDArray[np.int64], alignment: int
) -> tuple[list[str], npt.NDArray[np.int64]]:
    """The names of the tensor records at `spans`, int64[n, 2], and what their chunks take of the file, int64[n, 4].

    The columns are PLACE_COLUMNS: bytes from the begin of the first chunk plane to that of what follows it, a multiple
    of `alignment`; how much of them lies behind the end of the last plane; the planes' raw bytes and their number. It
    ends before the first record that lacks a key that it must have, or whose chunk records are not what FORMAT.md 3.3
    says.
    """
    places = np.empty((len(spans), len(PLACE_COLUMNS)), np.int64)
    names = _native.tensor_places(text, np.ascontiguousarray(spans), alignment, places)
    return names, places[: len(names)]


def chunk_table(
    rows: npt.NDArray[np.int64], bits: int, begin: int, alignment: int, *, may_be_empty: bool
) -> tuple[int, npt.NDArray[np.int64]]:
    """The number of elements of the chunks whose records are `rows`, int64[n, 1 + 3 planes], and a table of places.

    The table is int64[n, 2 + planes]: the first element, raw_bytes of a plane, the offset of each plane; the first one
    lies at `begin`, each other one at the next multiple of `alignment`. `bits` are an element's. Raises CorruptError or
    LimitError that names the chunk; which codecs there are is not its business.
    """
    planes = rows.shape[1] // 3
    table = np.empty((len(rows), 2 + planes), np.int64)
    return _native.chunk_table(
        rows, planes, bits, begin=begin, alignment=alignment, may_be_empty=may_be_empty, out=table
    ), table
