"""Room for the weights that are dequantized at a time. Sizes only, so that a page's estimate needs no torch."""

TILE_WEIGHTS = 1 << 20
"""Weights that are dequantized at a time: a whole part of 8-bit codes, whose product then is in one piece."""
_LEAST_ROWS = 8


def rows_at_once(n_columns: int, itemsize: int, room_bytes: int) -> int:
    """Rows of one tile in `room_bytes`; a multiple of 8, so that tiles of packed codes begin at whole bytes."""
    return max(_LEAST_ROWS, room_bytes // (itemsize * n_columns) // 8 * 8)


def workspace_bytes(n_rows: int, n_columns: int, itemsize: int) -> int:
    """Room for a tile of a matrix in a dtype of `itemsize` bytes, and for the least one in float32."""
    rows = min(n_rows, rows_at_once(n_columns, itemsize, TILE_WEIGHTS * itemsize))
    return n_columns * max(rows * itemsize, 4 * min(n_rows, _LEAST_ROWS))
