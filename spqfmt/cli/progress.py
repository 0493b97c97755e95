"""Progress on stderr, when that is a terminal."""

from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from spqfmt.cli.units import count, printable
from spqfmt.kernels import native


class RateColumn(ProgressColumn):
    """How many of something a second."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        """Nothing before the first step is done."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{count(speed)} {self._unit}/s")


class Bar:
    """Bar, amount, rate, time left and the current tensor. The amount is in bytes, or in the `unit` given."""

    def __init__(self, what: str, *, quiet: bool = False, unit: str | None = None) -> None:
        console = Console(stderr=True)
        amount: tuple[ProgressColumn, ...] = (DownloadColumn(), TransferSpeedColumn())
        if unit is not None:
            amount = (MofNCompleteColumn(), RateColumn(unit))
        self._progress = Progress(
            TextColumn(what),
            BarColumn(),
            *amount,
            TimeRemainingColumn(),
            # A name comes from a file: it is shown as it is, not as markup.
            TextColumn("{task.fields[tensor]}", markup=False),
            console=console,
            transient=True,
            # A calibrated block takes minutes on a large model: its rate must not be forgotten before the next one.
            speed_estimate_period=1800,
            # It is drawn by a thread.
            disable=quiet or not console.is_terminal or native.startable_threads(2) < 2,
        )
        self._task = self._progress.add_task(what, total=None, tensor="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def start(self, total: int) -> None:
        """The work will be this much."""
        self._progress.update(self._task, total=total)

    def advance(self, n: int, name: str) -> None:
        """Show that `n` more are done, `name` the last of them."""
        self._progress.update(self._task, advance=n, tensor=printable(name))

    def stage(self, text: str) -> None:
        """Shown where the tensor's name is."""
        self._progress.update(self._task, tensor=printable(text))
