"""Files to a repository on a hub, in one commit: all of them, or none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from spqfmt.hub.failures import hub_errors, need_library
from spqfmt.hub.fetch import listed, quiet_hub
from spqfmt.hub.names import HubName

_CARD = "README.md"


@dataclass(frozen=True)
class Sent:
    """What was sent: the address of the commit, names of the files, their bytes in all."""

    address: str
    names: tuple[str, ...]
    n_bytes: int


def card_there(name: HubName) -> str | None:
    """The repository's README.md; None where it has none, or is not there yet.

    Raises RemoteError, also where nothing could be sent there for want of a token.
    """
    need_library()
    from huggingface_hub import get_token, hf_hub_download
    from huggingface_hub.errors import LocalTokenNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    with quiet_hub(shows=False), hub_errors(name):
        if get_token() is None:
            raise LocalTokenNotFoundError
        try:
            # Asked once; a file would be asked for again and again where nothing answers.
            if _CARD not in listed(name):
                return None
        except (RepositoryNotFoundError, RevisionNotFoundError):
            return None
        file = hf_hub_download(name.repository, _CARD, revision=name.revision)
    return Path(file).read_text("utf-8", "replace")


def send(
    name: HubName,
    files: Mapping[str, Path | bytes],
    *,
    message: str,
    private: bool = False,
    shows: bool = False,
) -> Sent:
    """Make the repository where there is none, and commit the files under these names.

    Raises RemoteError; nothing is shown to anyone of a commit that was broken off.
    """
    need_library()
    from huggingface_hub import CommitOperationAdd, HfApi

    with quiet_hub(shows=shows), hub_errors(name):
        api = HfApi()
        api.create_repo(name.repository, private=private, exist_ok=True)
        operations = [CommitOperationAdd(path_in_repo=n, path_or_fileobj=data) for n, data in files.items()]
        done = api.create_commit(name.repository, operations, commit_message=message, revision=name.revision)
    sizes = (len(data) if isinstance(data, bytes) else data.stat().st_size for data in files.values())
    return Sent(str(done.commit_url), tuple(files), sum(sizes))
