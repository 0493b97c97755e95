"""How long work tells what it does. The pipeline only reports; a caller shows it."""

from typing import Protocol, Self


class Progress(Protocol):
    """What shows how far work has come: a bar, a log, nothing. Entered once."""

    def __enter__(self) -> Self:
        """Begin to show what is done."""
        ...

    def __exit__(self, *error: object) -> None:
        """Stop to show, whether or not the work has failed."""
        ...

    def start(self, total: int) -> None:
        """The work will be this much: bytes, unless caller and bar agree on something else."""
        ...

    def advance(self, n: int, name: str) -> None:
        """This much more is done; it was the tensor `name`."""
        ...

    def stage(self, text: str) -> None:
        """What goes on inside a step that takes long."""
        ...


class Silent:
    """A progress that shows nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def start(self, total: int) -> None:
        """Do nothing: nothing is shown."""

    def advance(self, n: int, name: str) -> None:
        """Do nothing: nothing is shown."""

    def stage(self, text: str) -> None:
        """Do nothing: nothing is shown."""
