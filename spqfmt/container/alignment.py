"""Where chunks and segments may begin (FORMAT.md section 2)."""


def align(offset: int, alignment: int) -> int:
    """Return the smallest multiple of `alignment` that is not below `offset`."""
    return -(-offset // alignment) * alignment
