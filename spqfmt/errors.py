"""Every error that spqfmt raises on purpose. The message is one line that a user can act on."""

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType


class SpqError(Exception):
    """Base of all errors of this package."""


class FormatError(SpqError):
    """A file breaks FORMAT.md or cannot be read. `offset` is the byte in the file, where it is known.

    `job` is the number of the plane at fault where many were decoded at once.
    """

    job: int | None = None

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


class RemoteError(SpqError):
    """The bytes at an address cannot be had: no answer, a wrong one, or another file than before."""


class OptionError(SpqError, ValueError):
    """What was asked for makes no sense, whatever the model."""


class BackendError(SpqError):
    """A backend is unknown, or not available on this machine."""


class EndedError(SpqError):
    """Another process of the same work has failed, or has ended without a word."""


class MemoryBudgetError(SpqError):
    """A memory ceiling cannot be met. `smallest_bytes` is the smallest one that can."""

    def __init__(self, message: str, smallest_bytes: int) -> None:
        super().__init__(message)
        self.smallest_bytes = smallest_bytes


class UnusedTensorsWarning(UserWarning):
    """A model holds tensors that its class has no place for: they stay where they are, as transformers leaves them."""


class NoGraphWarning(UserWarning):
    """Tokens that were to be graphs of a GPU are computed as usual, for the reason that it tells."""


def one_sentence(error: BaseException) -> str:
    """The first sentence of another library's message, which may go on for a page."""
    text = " ".join(str(error).split())
    # What a KeyError says is the key alone.
    text = f"unknown {text}" if isinstance(error, KeyError) else text
    return re.split(r"\.\s", text, maxsplit=1)[0].rstrip(".")[:300]


@contextmanager
def foreign_errors(explained: Callable[[str], SpqError]) -> Iterator[None]:
    """What another library raises inside becomes the error that `explained` makes of one sentence about it.

    Left as they are: errors of this package's own code, of the system (OSError with a number), and memory that runs
    out, none of which says anything about what the library was given.
    """
    try:
        yield
    except BaseException as error:
        of_the_system = isinstance(error, OSError) and error.errno is not None
        if not _is_foreign(error) or of_the_system or is_out_of_memory(error):
            raise
        raise explained(one_sentence(error) or type(error).__name__) from error


_REQUIRED = frozenset(
    {"jinja2", "numpy", "rich", "safetensors", "tokenizers", "torch", "transformers", "zstandard"}
)
"""What the package requires by its metadata. An environment for looking at files has not all of it."""


def without_package(error: ModuleNotFoundError) -> str:
    """What is missing and what to do, after the name of what needs it; empty where it is nothing that is required."""
    package = (error.name or "").partition(".")[0]
    if package not in _REQUIRED:
        return ""
    return f"needs {package}, which is not installed here: `pip install spqfmt` brings all that is needed"


@contextmanager
def needed_by(what: str) -> Iterator[None]:
    """A package that is missing inside is told of as what `what` needs."""
    try:
        yield
    except ModuleNotFoundError as error:
        if said := without_package(error):
            raise ModuleNotFoundError(f"{what} {said}", name=error.name) from error
        raise


# Those that read what stands in a model, and compute with it.
_LIBRARIES = frozenset(
    {"huggingface_hub", "jinja2", "mistral_common", "peft", "safetensors", "sentencepiece", "tiktoken"}
    | {"tokenizers", "torch", "transformers", "triton"}
)


def library_of(error: BaseException) -> str:
    """The library of models whose code raised `error`, by its name; empty for this package's own faults."""
    if not _is_fault(error):
        return ""
    # What Python's own library was called for is its caller's.
    packages = [name for name in _packages(error) if name not in sys.stdlib_module_names]
    return packages[-1] if packages and packages[-1] in _LIBRARIES else ""


def _is_foreign(error: BaseException) -> bool:
    """Whether another package's code raised it."""
    return _is_fault(error) and _packages(error)[-1:] != ["spqfmt"]


def _is_fault(error: BaseException) -> bool:
    """Whether nobody raised it on purpose for users. A panic in Rust (tokenizers) is no Exception to Python."""
    is_error = isinstance(error, Exception) or type(error).__name__ == "PanicException"
    return is_error and not isinstance(error, SpqError)


def _packages(error: BaseException) -> list[str]:
    """Packages whose functions the error went through, the one that raised it last."""
    found = []
    trace: TracebackType | None = error.__traceback__
    while trace is not None:
        module, trace = str(trace.tb_frame.f_globals.get("__name__")), trace.tb_next
        found.append(module.partition(".")[0])
    return found


_WITHOUT_MEMORY = re.compile(r"allocate memory|out of memory|failed to map segment|not enough memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, as Python, torch, zstandard and the loader of shared libraries say it."""
    tells = isinstance(error, RuntimeError | ImportError) or type(error).__name__ == "ZstdError"
    return isinstance(error, MemoryError) or (tells and bool(_WITHOUT_MEMORY.search(str(error))))


def refused_by_zstd(what: str, error: Exception) -> CorruptError | MemoryError:
    """What is to be raised where a frame does not decompress: it is corrupt, unless memory ran out."""
    return MemoryError(f"{what}: {error}") if is_out_of_memory(error) else CorruptError(f"{what}: {error}")
