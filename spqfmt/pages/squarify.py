"""Areas in a rectangle, close to squares (Bruls, Huizing and van Wijk: Squarified Treemaps, 2000)."""

from collections.abc import Sequence
from typing import NamedTuple


class Box(NamedTuple):
    """Left, top, width and height."""

    x: float
    y: float
    width: float
    height: float


def squarify(values: Sequence[float], box: Box) -> list[Box]:
    """One box for each value, all above 0, in their order; together they fill `box` in proportion."""
    boxes: list[Box] = []
    total = sum(values)
    at = 0
    while at < len(values):
        short = min(box.width, box.height)
        scale = box.width * box.height / total
        stop = at + 1
        while stop < len(values) and _worst(values[at : stop + 1], short, scale) <= _worst(
            values[at:stop], short, scale
        ):
            stop += 1
        row, box = _lay(values[at:stop], box, scale)
        boxes += row
        total -= sum(values[at:stop])
        at = stop
    return boxes


def _worst(row: Sequence[float], short: float, scale: float) -> float:
    """The largest ratio of sides in a row along a side of length `short`."""
    thickness = sum(row) * scale / short
    sides = [value * scale / thickness for value in row]
    return max(max(thickness / side, side / thickness) for side in sides)


def _lay(row: Sequence[float], box: Box, scale: float) -> tuple[list[Box], Box]:
    """The boxes of a row along the shorter side, and what is left of the box."""
    area = sum(row) * scale
    laid = []
    if box.width >= box.height:
        width, y = area / box.height, box.y
        for value in row:
            height = value * scale / width
            laid.append(Box(box.x, y, width, height))
            y += height
        return laid, Box(box.x + width, box.y, box.width - width, box.height)
    height, x = area / box.width, box.x
    for value in row:
        width = value * scale / height
        laid.append(Box(x, box.y, width, height))
        x += width
    return laid, Box(box.x, box.y + height, box.width, box.height - height)
