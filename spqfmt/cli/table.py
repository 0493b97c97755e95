"""A table of many rows. rich's own takes a second for a thousand of them; this one takes some milliseconds."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderResult
from rich.segment import Segment, Segments
from rich.style import Style

_AT_ONCE = 256
_GAP = "  "
_SHORTEST_NAME = 28


@dataclass(frozen=True)
class Column:
    """How one column is written.

    Where the terminal is too narrow, columns with the highest `spare` above 0 are left out first.
    """

    title: str
    spare: int = 0
    left: bool = False
    style: str = ""
    terminal_only: bool = False


class Table:
    """Rows of text below their titles, one line each. The first column is a name, shortened where there is no room.

    In a pipe nothing is shortened or left out but what draws, and there are no colours.
    """

    def __init__(self, columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
        self._columns = columns
        self._rows = rows

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from chain.from_iterable(self._lines(console, options))

    def print(self, console: Console) -> None:
        """Print it, some lines at a time: the console holds all that it is given at once."""
        lines = self._lines(console, console.options)
        while some := list(chain.from_iterable(islice(lines, _AT_ONCE))):
            console.print(Segments(some), end="", crop=False)

    def _lines(self, console: Console, options: ConsoleOptions) -> Iterator[Iterator[Segment]]:
        limit = options.max_width if console.is_terminal else None
        cells = list(zip(*self._rows, strict=True)) or [()] * len(self._columns)
        widths = [
            max(len(column.title), max(map(_width, of), default=0))
            for column, of in zip(self._columns, cells, strict=True)
        ]
        shown = [i for i, c in enumerate(self._columns) if any(cells[i]) or i == 0]
        if limit is None:
            shown = [i for i in shown if not self._columns[i].terminal_only]
        else:
            shown = self._fit(shown, widths, limit)
            others = sum(widths[i] + len(_GAP) for i in shown[1:])
            widths[0] = max(min(widths[0], limit - others), 1)
        bold = Style(bold=True)
        styles = [Style.parse(self._columns[i].style) if self._columns[i].style else None for i in shown]
        yield self._line([c.title for c in self._columns], shown, widths, [bold] * len(shown))
        for row in self._rows:
            yield self._line(row, shown, widths, styles)

    def _fit(self, shown: list[int], widths: list[int], limit: int) -> list[int]:
        while True:
            needed = min(widths[0], _SHORTEST_NAME) + sum(widths[i] + len(_GAP) for i in shown[1:])
            most = max((self._columns[i].spare for i in shown), default=0)
            if needed <= limit or most == 0:
                return shown
            shown = [i for i in shown if self._columns[i].spare != most]

    def _line(
        self, row: Sequence[str], shown: list[int], widths: list[int], styles: Sequence[Style | None]
    ) -> Iterator[Segment]:
        last = max((place for place, i in enumerate(shown) if row[i]), default=0)
        for place, (i, style) in enumerate(zip(shown[: last + 1], styles, strict=False)):
            text, width = row[i], widths[i]
            if i == 0:
                text = shorten(text, width)
            if i == 0 or self._columns[i].left:
                text = text if place == last else text + " " * (width - _width(text))
            else:
                text = text.rjust(width)
            yield Segment(text if place == 0 else _GAP + text, style)
        yield Segment.line()


def shorten(text: str, width: int) -> str:
    """Cut a text to `width` cells by its middle: what tells names apart is their end, and their layer."""
    if _width(text) <= width:
        return text
    head = (width - 1) // 3
    tail = width - 1 - head
    return set_cell_size(text, head) + "…" + set_cell_size(text[::-1], tail)[::-1]


def _width(text: str) -> int:
    return len(text) if text.isascii() else cell_len(text)
