"""What a place has to do for its files to be read."""

import threading
from typing import Protocol

from spqfmt.address import Address
from spqfmt.errors import RemoteError

N_CONNECTIONS = 6
"""How many blocks of a file are fetched at once."""


class RemoteFile(Protocol):
    """One file elsewhere, which stays the same while it is open. Several threads may use it at once."""

    address: Address
    n_bytes: int
    mark: str
    """What tells it from what will be at the address later: empty where nothing does, before `tail` too."""

    def tail(self, n_bytes: int) -> bytes:
        """The last bytes of the file, all of a smaller one; makes `n_bytes` and `mark` known. Called once, first."""

    def fetch(self, begin: int, end: int, stop: threading.Event) -> bytes:
        """Bytes `begin` to `end`, all of them. Raises RemoteError, also where the file has changed since `tail`.

        Gives up soon after `stop` is set.
        """

    def close(self) -> None:
        """Let all idle connections go."""


def changed(address: Address, what: str) -> RemoteError:
    """The error of a file that is another one by now."""
    return RemoteError(f"{address}: the file changed while it was read ({what}); start again")
