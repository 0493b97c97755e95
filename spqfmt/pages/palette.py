"""The colours of pages and figures: neutral greys and one accent, and a series of hues for plots that compare things.

Every text colour has a contrast of at least 4.5 to its background (tests/pages/test_palette.py).
"""

from typing import Final

LIGHT: Final = {
    "background": "#ffffff",
    "surface": "#f5f6f8",
    "line": "#d9dde3",
    "text": "#1b2027",
    "muted": "#5a6472",
    "faint": "#c3c9d2",
    "accent": "#0b6285",
    "accent-mid": "#6ba9c2",
    "accent-low": "#d3e6ee",
}
DARK: Final = {
    "background": "#14171b",
    "surface": "#1c2026",
    "line": "#333a43",
    "text": "#e4e8ed",
    "muted": "#9aa5b3",
    "faint": "#4a535f",
    "accent": "#6bbcdb",
    "accent-mid": "#3a7f9c",
    "accent-low": "#1f3f4e",
}

SERIES: Final = ("#0b6285", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#5a6472")
"""Hues for up to seven series, after the palette of Okabe and Ito, told apart by all kinds of colour blindness."""
