"""`hf://owner/model/file.spq` and `hf://owner/model@revision/file.spq`, by the address that huggingface_hub gives."""

import re
from pathlib import Path

from spqfmt.address import Address
from spqfmt.errors import OptionError, RemoteError, foreign_errors
from spqfmt.remote.web import WebFile

_PLACE = re.compile(r"([^/@]+/[^/@]+)(?:@([^/]+))?/(.+)")


def cached(address: Address) -> Path | None:
    """The copy that huggingface_hub keeps of a file, which need not be the newest where HF_HUB_OFFLINE is set.

    None where there is none.
    """
    import huggingface_hub
    from huggingface_hub import constants

    repository, revision, name = _place(address)
    with foreign_errors(lambda reason: RemoteError(f"{address}: {reason}")):
        # A name such as main moves: only a commit, or no network, makes the copy the file that is meant.
        if re.fullmatch(r"[0-9a-f]{40}", revision) or constants.HF_HUB_OFFLINE:
            found = huggingface_hub.try_to_load_from_cache(repository, name, revision=revision)
            if isinstance(found, str):
                return Path(found)
    if constants.HF_HUB_OFFLINE:
        raise RemoteError(f"{address}: not in the cache, and HF_HUB_OFFLINE is set")
    return None


def open_hub(address: Address) -> WebFile:
    """The file on the hub. HF_ENDPOINT and HF_TOKEN count."""
    import huggingface_hub

    repository, revision, name = _place(address)
    with foreign_errors(lambda reason: RemoteError(f"{address}: {reason}")):
        url = huggingface_hub.hf_hub_url(repository, name, revision=revision)
        token = huggingface_hub.get_token()
    return WebFile(address, url, {"Authorization": f"Bearer {token}"} if token else {})


def _place(address: Address) -> tuple[str, str, str]:
    """Repository, revision and file name. Raises OptionError."""
    found = _PLACE.fullmatch(address.url.partition("://")[2])
    if found is None:
        raise OptionError(f"{address}: give hf://OWNER/MODEL/FILE.spq, with @REVISION behind MODEL for one")
    return found[1], (found[2] or "main").replace("%2F", "/"), found[3]
