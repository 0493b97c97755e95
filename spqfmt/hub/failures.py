"""What huggingface_hub raises, as one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from json import JSONDecodeError
from typing import Any

from spqfmt.errors import OptionError, RemoteError, SpqError, is_out_of_memory, one_sentence
from spqfmt.hub.names import HubName

_ACCESS = "`hf auth login` or HF_TOKEN gives access to what is private"


class NoAnswerError(RemoteError):
    """The hub cannot be reached, or may not be asked."""


def need_library() -> None:
    """Raise OptionError where huggingface_hub is not installed."""
    try:
        import huggingface_hub  # noqa: F401
    except ModuleNotFoundError:
        raise OptionError(
            "a hub is asked through huggingface_hub, which is not installed; pip install huggingface_hub"
        ) from None


@contextmanager
def hub_errors(name: HubName) -> Iterator[None]:
    """Errors of the hub and of the way to it become RemoteError; those of this machine's files stay as they are."""
    try:
        yield
    except (SpqError, KeyboardInterrupt):
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        said = _said(name, error)
        if said is None:
            raise
        raise said from error


def _said(name: HubName, error: Exception) -> SpqError | None:
    from huggingface_hub import constants, errors

    if type(error) is RuntimeError and isinstance(error.__cause__, Exception):
        return _said(name, error.__cause__)  # of a file that is sent
    host = constants.ENDPOINT
    status = getattr(getattr(error, "response", None), "status_code", None)
    match error:
        case errors.HFValidationError():
            return OptionError(f"{name}: no name of a model on a hub ({one_sentence(error)})")
        case errors.LocalTokenNotFoundError():
            return RemoteError(f"{name}: no token for {host}; `hf auth login` keeps one, or HF_TOKEN has it")
        case errors.GatedRepoError():
            return RemoteError(f"{name}: its owner gives access at {host}/{name.repository}; then {_ACCESS}")
        case errors.RevisionNotFoundError():
            return RemoteError(
                f"{name}: {host} has the model, and no revision {name.revision or 'main'!r} of it"
            )
        case errors.EntryNotFoundError() if not isinstance(error, OSError) or status == 404:
            return RemoteError(f"{name}: {host} has no such file of it")
        case errors.OfflineModeIsEnabled():
            return NoAnswerError(f"{name}: HF_HUB_OFFLINE is set")
        case errors.RepositoryNotFoundError():
            return RemoteError(f"{name}: {host} has no such model, or shows it to others only; {_ACCESS}")
    return _by_status(name, error, status) or _by_way(name, error)


def _by_status(name: HubName, error: Exception, status: Any) -> SpqError | None:
    from huggingface_hub import constants

    host = constants.ENDPOINT
    if status == 401:
        return RemoteError(f"{name}: {host} wants a token that it knows; {_ACCESS}")
    if status == 403:
        return RemoteError(
            f"{name}: the token may not do this at {host}; take one that may write, of its owner"
        )
    if status == 404:
        return RemoteError(f"{name}: {host} has no such model or file, or shows it to others only; {_ACCESS}")
    if status is not None:
        return RemoteError(f"{name}: {host} answers {status} ({one_sentence(error)})")
    return None


def _by_way(name: HubName, error: Exception) -> SpqError | None:
    """Return what a connection that is not there or ends early means; None for a fault of this machine's files."""
    from huggingface_hub import constants

    module = type(error).__module__.partition(".")[0]
    if isinstance(error, OSError) and error.filename is not None:
        return None
    # What should be JSON may be a page of a proxy.
    is_of_way = isinstance(error, OSError | JSONDecodeError) or module.startswith(
        ("httpx", "httpcore", "hf_xet", "requests")
    )
    if not is_of_way and module != "huggingface_hub":
        return None
    why = one_sentence(error) or type(error).__name__
    return NoAnswerError(f"{name}: no whole answer from {constants.ENDPOINT} ({why})")
