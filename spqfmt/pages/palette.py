"""The colours of pages and figures: neutral greys and one accent, and a series of hues for plots that compare things.

Text has a contrast of at least 4.5 to what it stands on (tests/pages/test_palette.py).
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
    "step-0": "#e4eff4",
    "step-1": "#bddae6",
    "step-2": "#8fc0d4",
    "step-3": "#2f7fa0",
    "step-4": "#0b5472",
    "on-0": "#1b2027",
    "on-1": "#1b2027",
    "on-2": "#1b2027",
    "on-3": "#ffffff",
    "on-4": "#ffffff",
}
"""`step-` are shades of the accent for small to large, `on-` the text on them."""

DARK: Final = {
    "background": "#14171b",
    "surface": "#1c2026",
    "line": "#333a43",
    "text": "#e4e8ed",
    "muted": "#9aa5b3",
    "faint": "#4a535f",
    "accent": "#6bbcdb",
    "step-0": "#1f3440",
    "step-1": "#264c5e",
    "step-2": "#2e6880",
    "step-3": "#58a9c8",
    "step-4": "#9ad6ec",
    "on-0": "#e4e8ed",
    "on-1": "#e4e8ed",
    "on-2": "#ffffff",
    "on-3": "#14171b",
    "on-4": "#14171b",
}

N_STEPS: Final = 5

SERIES: Final = ("#0b6285", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#1b2027")
"""Hues for up to seven series, after the palette of Okabe and Ito, told apart by all kinds of colour blindness."""
