"""Options that several methods take, checked in one place; every OptionError is one line for the user."""

from collections.abc import Sequence

from spqfmt.errors import OptionError
from spqfmt.quantize.base import MethodOptions

BITS = (2, 3, 4, 5, 6, 7, 8)
GRANULARITIES = ("tensor", "row", "group")
KEEP = 16
"""embedding_bits that leaves embedding and head as they are."""
_EMBEDDING_BITS = 8


def check_bits(options: MethodOptions, default: int) -> tuple[int, int]:
    """Bits of the layers and of the embeddings, both valid."""
    bits = default if options.bits is None else options.bits
    embedding_bits = _EMBEDDING_BITS if options.embedding_bits is None else options.embedding_bits
    if bits not in BITS or embedding_bits not in {*BITS, KEEP}:
        raise OptionError("bits must be from 2 to 8, embedding bits from 2 to 8 or 16 to keep them")
    return bits, embedding_bits


def check_choice(what: str, value: object, choices: Sequence[str]) -> None:
    """The value is one of the choices."""
    if value not in choices:
        raise OptionError(f"{what} must be one of {', '.join(choices)}")


def check_grouping(
    options: MethodOptions, default_size: int, choices: Sequence[str] = GRANULARITIES
) -> tuple[str, int | None]:
    """Granularity and group size: a size alone means groups, no size their default size, nothing at all rows."""
    granularity = options.granularity or ("row" if options.group_size is None else "group")
    check_choice("granularity", granularity, choices)
    size = options.group_size
    if granularity == "group":
        size = default_size if size is None else size
    if size is not None and (granularity != "group" or size < 1):
        raise OptionError("a group size is at least 1 and goes with granularity group")
    return granularity, size


def check_damping(damping: float | None, default: float) -> float:
    """The damping, which is not negative."""
    damping = default if damping is None else damping
    if not 0 <= damping < float("inf"):
        raise OptionError("damping is a number from 0 on")
    return damping
