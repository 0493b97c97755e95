"""Small charts out of characters."""

from collections.abc import Iterable, Sequence
from math import ceil

from spqfmt.reading.report import Histogram, OutlierMap

_EIGHTHS = " ▏▎▍▌▋▊▉"
_HEIGHTS = "▁▂▃▄▅▆▇█"
_SHADES = " ░▒▓█"


def bar(share: float, width: int) -> str:
    """A bar of `share` (0 to 1, cut beyond) of `width` characters, with the rest as dots."""
    eighths = round(min(max(share, 0.0), 1.0) * width * 8)
    full, part = divmod(eighths, 8)
    return ("█" * full + (_EIGHTHS[part] if part else "")).ljust(width, "·")


def spark(histogram: Histogram, width: int = 16) -> str:
    """A histogram in one line, neighbouring values together where there are more than `width`."""
    counts = together(histogram.counts, width)
    top = max(counts, default=0)
    return "".join(_HEIGHTS[count * 7 // top] if count else " " for count in counts)


def together(counts: Sequence[int], width: int) -> list[int]:
    """Sums of runs of neighbours, at most `width` of them."""
    run = -(-len(counts) // width) or 1
    return [sum(counts[at : at + run]) for at in range(0, len(counts), run)]


def columns(histogram: Histogram, width: int) -> Iterable[str]:
    """A histogram as lines: the values and a bar for how many have them."""
    counts = together(histogram.counts, width)
    run = -(-len(histogram.counts) // width) or 1
    top, total = max(counts), sum(histogram.counts) + histogram.n_zeros
    for i, n in enumerate(counts):
        low = histogram.first + i * run
        high = min(low + run, histogram.first + len(histogram.counts)) - 1
        label = f"{low}" if low == high else f"{low} to {high}"
        yield f"{label:>12}  {bar(n / top, 48).rstrip('·'):48}  {n:>13,}  {100 * n / total:6.2f} %"


def shades(grid: OutlierMap) -> Iterable[str]:
    """A map of outliers as lines, darker where more of a cell's weights are outliers."""
    top = max(max(row) for row in grid.counts)
    for row in grid.counts:
        # The root, since a few cells hold most of them.
        yield "".join(_SHADES[ceil(4 * (n / top) ** 0.5)] for n in row)
