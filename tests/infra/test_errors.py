"""Which errors of other libraries are explained, and which pass."""

import errno
import json
import os
from collections.abc import Callable

import pytest
import zstandard

from spqfmt import errors
from spqfmt.errors import CorruptError, SpqError, foreign_errors, library_of, refused_by_zstd


def _explained(reason: str) -> SpqError:
    return SpqError(f"m: {reason}")


def _parse() -> None:
    json.loads("{")


def _no_key() -> None:
    exec("{}['zork']", {"__name__": "elsewhere"})  # noqa: S102 - code of a module that is not there


class PanicException(BaseException):
    """By name what Rust's bindings raise."""


def _panic() -> None:
    raise PanicException("index out of bounds. More of it")


def _os_error_in_words() -> None:
    raise OSError("Can't load tokenizer for 'x'. If you were trying to load it from")


@pytest.mark.parametrize(
    ("fail", "words"),
    [
        (_parse, "m: Expecting property name"),
        (_no_key, "m: unknown 'zork'"),
        (_panic, "m: index out of bounds"),
        (_os_error_in_words, "m: Can't load tokenizer for 'x'"),
    ],
)
def test_errors_of_other_libraries_become_one_sentence(fail: Callable[[], None], words: str) -> None:
    with pytest.raises(SpqError) as caught, foreign_errors(_explained):
        fail()
    assert str(caught.value).startswith(words)
    assert ". " not in str(caught.value)
    assert caught.value.__cause__ is not None


def test_a_frame_for_which_there_is_no_memory_is_not_corrupt() -> None:
    said = "decompression error: Allocation error : not enough memory"
    assert type(refused_by_zstd("frame 3", zstandard.ZstdError(said))) is MemoryError
    found = refused_by_zstd("frame 3", zstandard.ZstdError("decompression error: Data corruption detected"))
    assert type(found) is CorruptError
    assert str(found) == "frame 3: decompression error: Data corruption detected"


@pytest.mark.parametrize(
    "error",
    [
        CorruptError("x"),
        MemoryError(),
        RuntimeError("CUDA out of memory. Tried"),
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        KeyboardInterrupt(),
        SystemExit(3),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_that_say_nothing_about_what_was_given_pass(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, foreign_errors(_explained):
        raise error
    assert caught.value is error


@pytest.mark.parametrize(
    ("code", "module", "expected"),
    [
        ("None.zork", "transformers.models.llama", "transformers"),
        ("1 / 0", "torch", "torch"),
        ("import json; json.loads('{')", "tokenizers", "tokenizers"),
        ("1 / 0", "spqfmt.cli", ""),
        ("import json; json.loads('{')", "spqfmt.cli", ""),
        ("1 / 0", "__main__", ""),
        ("raise __import__('spqfmt').SpqError('x')", "transformers", ""),
        ("raise KeyboardInterrupt", "transformers", ""),
    ],
)
def test_whose_code_raised_an_error(code: str, module: str, expected: str) -> None:
    with pytest.raises(BaseException) as caught:  # noqa: PT011 - of every kind
        exec(code, {"__name__": module})  # noqa: S102 - code of that module
    assert library_of(caught.value) == expected


def test_an_error_of_the_package_s_own_code_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(errors, "re", None)  # makes one_sentence fail in this package
    with pytest.raises(AttributeError, match=r"has no attribute"), foreign_errors(_explained):
        errors.one_sentence(ValueError("a. b"))
