"""Every error that spqfmt raises on purpose. The message is one line that a user can act on."""

import re


class SpqError(Exception):
    """Base of all errors of this package."""


class FormatError(SpqError):
    """A file breaks FORMAT.md or cannot be read. `offset` is the byte in the file, where it is known."""

    def __init__(self, message: str, offset: int | None = None) -> None:
        super().__init__(message)
        self.offset = offset


class NotSpqError(FormatError):
    """The file does not begin with the magic of .spq."""


class TruncatedError(FormatError):
    """The file ends before its end is due."""


class CorruptError(FormatError):
    """The file breaks a rule of FORMAT.md."""


class ChecksumError(CorruptError):
    """Stored bytes do not match their CRC-32 or the digest."""


class LimitError(FormatError):
    """A number in the file passes a limit of FORMAT.md section 9."""


class UnsupportedError(FormatError):
    """The file is sound as far as can be told, but uses something this version does not know."""

    def __init__(self, message: str, feature: str, offset: int | None = None) -> None:
        super().__init__(message, offset)
        self.feature = feature


class EncodeError(SpqError):
    """Something cannot be written: a weight that is NaN, a number that the format cannot hold."""


class ImporterError(SpqError):
    """A source model cannot be read."""


class OptionError(SpqError, ValueError):
    """What was asked for makes no sense, whatever the model."""


class BackendError(SpqError):
    """A backend is unknown, or not available on this machine."""


class MemoryBudgetError(SpqError):
    """A memory ceiling cannot be met. `smallest_bytes` is the smallest one that can."""

    def __init__(self, message: str, smallest_bytes: int) -> None:
        super().__init__(message)
        self.smallest_bytes = smallest_bytes


def one_sentence(error: BaseException) -> str:
    """The first sentence of another library's message, which may go on for a page."""
    text = " ".join(str(error).split())
    return re.split(r"\.\s", text, maxsplit=1)[0].rstrip(".")[:300]
