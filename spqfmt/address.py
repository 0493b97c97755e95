"""Where a file is that lies elsewhere: `https://...`, `s3://...`, given where a path is given."""

import os
import re
import sys
from pathlib import Path, PosixPath
from typing import Self
from urllib.parse import quote, unquote, urlsplit

_SIGNATURES = frozenset({"x-amz-signature", "x-goog-signature", "signature", "sig"})
# Of the signed addresses of S3, CloudFront, Google's and Azure's storage: who may read, and until when.
_SIGNING = re.compile(
    r"x-(amz|goog)-.*|signature|expires|policy|key-pair-id|awsaccesskeyid|googleaccessid"
    r"|s(ig|[veptrs]|pr|ip|rt|k[evts]|koid|ktid)",
    re.IGNORECASE,
)
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


def is_address(value: str | os.PathLike[str]) -> bool:
    """Whether this is an address and not a path. As it was given: a Path has no two slashes in a row."""
    return isinstance(value, Address) or bool(_ADDRESS.match(os.fspath(value)))


class Address(PosixPath):
    """An address as a path that nothing on this machine has.

    It is a Path since everything between the command line and the bytes of a file hands its name on, and only
    what reads the bytes has to know. `str` leaves a password out, which messages would show; `url` has it.
    """

    url: str = ""
    """The address as it was given; empty for what a Path makes of parts of one."""

    def __new__(cls, url: str | os.PathLike[str]) -> Self:
        """Take `url` as it is."""
        made = super().__new__(cls, os.fspath(url))
        made.url = url.url if isinstance(url, Address) else os.fspath(url)
        return made

    def __init__(self, url: str | os.PathLike[str]) -> None:
        # Python 3.11 has made all of it by now.
        if sys.version_info >= (3, 12):
            super().__init__(os.fspath(url))

    def __reduce__(self) -> tuple[type["Address"], tuple[str]]:
        return Address, (self.url,)

    def __str__(self) -> str:
        if not self.url:
            return super().__str__()
        before, mark, after = self.url.partition("://")
        host, slash, rest = after.partition("/")
        return before + mark + host.rpartition("@")[2] + slash + rest

    __fspath__ = __str__

    def __repr__(self) -> str:
        return f"Address({str(self)!r})"

    @property
    def unsigned(self) -> str:
        """The same file's address whoever has signed it, and when: without what a signature adds to the query."""
        before, mark, query = str(self).partition("?")
        fields = query.split("&")
        names = [field.partition("=")[0] for field in fields]
        if not any(name.lower() in _SIGNATURES for name in names):
            return str(self)
        kept = [f for f, name in zip(fields, names, strict=True) if not _SIGNING.fullmatch(name)]
        return before + mark + "&".join(kept)

    @property
    def scheme(self) -> str:
        """What stands before ://, in small letters."""
        return self.url.partition("://")[0].lower()

    @property
    def name(self) -> str:
        """The file's name, without what follows a question mark."""
        return unquote(urlsplit(self.url).path.rpartition("/")[2])

    def with_name(self, name: str) -> "Address":
        """The address of another file in the same place."""
        parts = urlsplit(self.url)
        return Address(parts._replace(path=f"{parts.path.rpartition('/')[0]}/{quote(name)}").geturl())

    def with_segments(self, *segments: str | os.PathLike[str]) -> Path:
        """Parts of an address are none themselves."""
        return Path(*segments)

    def absolute(self) -> Self:
        """The address itself, as `resolve` does."""
        return self

    def resolve(self, strict: bool = False) -> Self:
        """The address itself: what it leads to is known where it is read."""
        return self

    def exists(self, *, follow_symlinks: bool = True) -> bool:  # type: ignore[override,unused-ignore]
        """Whether there is something is known only by asking for it."""
        return True

    def is_file(self, *, follow_symlinks: bool = True) -> bool:  # type: ignore[override,unused-ignore]
        """An address is taken for a file's."""
        return True

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:  # type: ignore[override,unused-ignore]
        """No folders are read at an address."""
        return False
