"""Numbers for people, as the pages' script writes them too (static/text.js)."""


def size(n_bytes: float) -> str:
    """Write bytes in decimal units, B to TB."""
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.2f} TB"


def percent(share: float) -> str:
    """A fraction in percent: one decimal, more where it is small."""
    if 0 < share < 0.00005:
        return "< 0.01 %"
    return f"{100 * share:.{2 if share < 0.01 else 1}f} %"


def ratio(value: float) -> str:
    """Write how many times smaller something is."""
    return f"{value:.2f}"


def change(share: float) -> str:
    """A fraction more or less, in percent."""
    return f"{100 * share:+.2f} %"


def relative_error(error: float) -> str:
    """A relative error in percent; a plain 0 for none."""
    return f"{100 * error:.3f} %" if error else "0"


def integer(value: int) -> str:
    """Write a number with thin spaces between thousands."""
    return f"{value:,}".replace(",", "\u202f")
