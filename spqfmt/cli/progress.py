"""Progress on stderr, when that is a terminal."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)


class Bar:
    """Bar, bytes, rate, time left and the current tensor."""

    def __init__(self, what: str, *, quiet: bool = False) -> None:
        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn(what),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[tensor]}"),
            console=console,
            transient=True,
            # A calibrated block takes minutes on a large model: its rate must not be forgotten before the next one.
            speed_estimate_period=1800,
            disable=quiet or not console.is_terminal,
        )
        self._task = self._progress.add_task(what, total=None, tensor="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def start(self, total_bytes: int) -> None:
        """The work will be this much."""
        self._progress.update(self._task, total=total_bytes)

    def advance(self, n_bytes: int, name: str) -> None:
        """This much more is done."""
        # A name comes from a file: it is shown as it is, not as markup.
        self._progress.update(self._task, advance=n_bytes, tensor=name.replace("[", r"\["))

    def stage(self, text: str) -> None:
        """Shown where the tensor's name is."""
        self._progress.update(self._task, tensor=text.replace("[", r"\["))
