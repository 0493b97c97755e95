"""The bytes themselves, read into memory that is there already: the floor."""

from pathlib import Path

from spqfmt.bench.load.base import Loader, Payload, read_into


class Plain(Loader):
    """The values as they are in a file of their own, read by one `readinto` for each array."""

    def load(self) -> None:
        read_into(self.path, self.out)


def make(payload: Payload, folder: Path, threads: int) -> list[Loader]:
    """Make the one loader, which has one thread."""
    if threads > 1:
        return []
    path = folder / f"{payload.name}.bin"
    with path.open("wb") as file:
        for array in payload.arrays:
            file.write(array.raw.data)
    return [Plain("raw bytes", path, payload, 1)]
