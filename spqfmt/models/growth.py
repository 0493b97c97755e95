"""How many times longer a tokenizer.json may make a text, by what it says: a bound that is never too small."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from spqfmt.errors import SpqError

MOST_BEFORE = 10**6
"""The most growth by what changes a text before it is cut. Real ones replace some signs by a few others."""
MOST_AFTER = 10**4
"""The most growth by what makes a text of tokens, which is done again for each token that a model writes."""
_COMPATIBILITY = 18  # the longest that Unicode's NFKC and NFKD make of a character


def refuse_growth(tokenizer: Any, explained: Callable[[str], SpqError]) -> None:
    """Raise what `explained` makes of one sentence for a tokenizer that may multiply a text beyond these."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    for name, most in (("normalizer", MOST_BEFORE), ("decoder", MOST_AFTER)):
        part = getattr(backend, name, None)
        if part is not None and (times := growth(json.loads(part.__getstate__()))) > most:
            raise explained(
                f"its {name} can make a text {times:.0e} times as long; {most:.0e} times is the most"
            )


def growth(part: dict[str, Any]) -> float:
    """How many times as long a normalizer or a decoder makes a text; `part` is as tokenizer.json has it."""
    times = 1.0
    for one in part.get("normalizers") or part.get("decoders") or ():
        times *= growth(one)
    if part["type"] == "Replace":
        content, old = (len(text.encode()) for text in (part["content"], part["pattern"].get("String", "")))
        # An expression may match nothing at all, between any two characters.
        times *= max(1.0, content / old) if old else 1.0 + content
    return times * (_COMPATIBILITY if part["type"] in ("NFKC", "NFKD") else 1)
