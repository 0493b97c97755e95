"""The look of every figure that spqfmt draws with matplotlib (extra `plots`), for `--png` and for the tools.

with style():
    figure, axes = new_figure(height=2.4)
    axes.plot(x, y)
    save(figure, "sizes.png")
"""

import io
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

from spqfmt.errors import OptionError
from spqfmt.pages.palette import LIGHT, SERIES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH_INCHES = 6.75
"""Text width of a two-column paper, and of a README on a screen."""
DPI = 144

_SETTINGS = {
    "figure.facecolor": LIGHT["background"],
    "savefig.facecolor": LIGHT["background"],
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # matplotlib brings it: the same figure on every machine
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.labelsize": 8,
    "axes.labelcolor": LIGHT["muted"],
    "axes.edgecolor": LIGHT["line"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": LIGHT["line"],
    "grid.linewidth": 0.5,
    "xtick.color": LIGHT["muted"],
    "ytick.color": LIGHT["muted"],
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "text.color": LIGHT["text"],
    "lines.linewidth": 1.4,
    "lines.markersize": 4,
    "patch.linewidth": 0,
    "text.parse_math": False,  # names from a file are no formulas
    "legend.frameon": False,
    "legend.fontsize": 7,
}


@contextmanager
def style() -> Iterator[None]:
    """Draw in spqfmt's look. Raises OptionError where matplotlib is not installed."""
    try:
        import matplotlib as mpl
        from cycler import cycler
    except ImportError:
        raise OptionError("figures need matplotlib: pip install 'spqfmt[plots]'") from None
    settings = _SETTINGS | {"axes.prop_cycle": cycler(color=list(SERIES))}
    with mpl.rc_context(settings):  # type: ignore[arg-type]
        yield


def new_figure(height: float, columns: int = 1) -> "tuple[Figure, list[Axes]]":
    """A figure of `height` inches and its axes side by side; no window and no global state."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH_INCHES, height), layout="constrained")
    return figure, list(figure.subplots(1, columns, squeeze=False).flat)


def save(figure: "Figure", path: str | os.PathLike[str] | IO[bytes]) -> None:
    """Write a PNG in 128 colours, a third of the size. The same figure gives the same bytes: no date, no version."""
    from PIL import Image

    drawn = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a box stands for it
        figure.savefig(drawn, format="png", dpi=DPI)
    with Image.open(drawn) as image:
        image.convert("RGB").quantize(128, dither=Image.Dither.NONE).save(path, format="PNG", optimize=True)
