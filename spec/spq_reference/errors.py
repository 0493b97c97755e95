"""FORMAT.md 1.2: the kinds of error that a reader reports."""


class SpqRefError(Exception):
    """The file cannot be read; `kind` is the word of FORMAT.md 1.2."""

    kind = ""


# > *not spq* (the first 8 bytes are not the magic, or there are less than 8)
class NotSpq(SpqRefError):
    """The file is something else."""

    kind = "not spq"


# > *truncated* (the file ends before its end is due:
class Truncated(SpqRefError):
    """The file ends too early."""

    kind = "truncated"


# > *checksum* (stored bytes do not match their CRC or digest)
class Checksum(SpqRefError):
    """Stored bytes were changed."""

    kind = "checksum"


# > *limit* (a number passes a limit of section 9)
class Limit(SpqRefError):
    """The file asks for more than a reader has to grant."""

    kind = "limit"


# > *unsupported* (version or feature)
class Unsupported(SpqRefError):
    """The file is newer than this decoder."""

    kind = "unsupported"


# > *corrupt* (everything else that breaks a rule)
class Corrupt(SpqRefError):
    """The file breaks a rule."""

    kind = "corrupt"


def require(condition: bool, message: str) -> None:
    """Raise Corrupt unless the condition holds."""
    if not condition:
        raise Corrupt(message)


def within(number: int, limit: int, what: str) -> None:
    """Raise Limit if the number passes the limit."""
    # > A reader MUST refuse files beyond these limits, and MUST NOT allocate on a number before it has checked it
    # > against them and against the file's length.
    if number > limit:
        raise Limit(f"{what}: {number} is more than {limit}")
