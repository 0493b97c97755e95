"""The settings of a model's small files, without what names code, for a folder that other programs read."""

from typing import NamedTuple

from spqfmt.container.reader import Reader
from spqfmt.models.code_settings import MOST_BYTES, is_settings, without_code

__all__ = ["Settings", "is_settings", "read_settings", "settings_of"]


class Settings(NamedTuple):
    """A file of settings as it is written, and the keys that were left out of it."""

    data: bytes
    keys: tuple[str, ...]

    @property
    def reason(self) -> str:
        """What was done, for the report."""
        return f"without {', '.join(self.keys)}, which name code; --with-code writes all"


def read_settings(reader: Reader, name: str) -> Settings | None:
    """The asset `name`, as bytes where nothing is left out of it; None where it is to be left out."""
    sizes = {asset.name: asset.stream.n for asset in reader.index.assets}
    return settings_of(name, reader.read_asset(name)) if sizes[name] <= MOST_BYTES else None


def settings_of(name: str, data: bytes) -> Settings | None:
    """What is in a file of settings, as `read_settings` does."""
    found = without_code(name, data) if len(data) <= MOST_BYTES else None
    return None if found is None else Settings(*found)
