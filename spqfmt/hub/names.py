"""`owner/name`, `owner/name@revision` and `owner/name/file`: a model on a hub, or one file of it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

_PART = r"[A-Za-z0-9][\w.-]*"
_NAME = re.compile(rf"(?:hf://)?({_PART}/{_PART})(?:@([^/@\s]+))?(?:/([^@\s]*[^@\s/]))?", re.ASCII)


@dataclass(frozen=True)
class HubName:
    """A repository of models, at a revision (None: the newest), and the name of one file in it or an empty one."""

    repository: str
    revision: str | None = None
    file: str = ""

    def __str__(self) -> str:
        at = f"@{self.revision}" if self.revision else ""
        return f"{self.repository}{at}{'/' if self.file else ''}{self.file}"


def hub_name(text: str) -> HubName | None:
    """What a text names on a hub; None where it has no such form. A branch's slash is written %2F."""
    found = _NAME.fullmatch(text)
    if found is None or ".." in found[1] or "--" in found[1]:
        return None
    revision = found[2].replace("%2F", "/") if found[2] else None
    return HubName(found[1], revision, found[3] or "")


def not_a_path(text: str) -> HubName | None:
    """What a text names on a hub, where it is no path: none of its first folder is here, or it begins with hf://.

    A folder that is here makes it a path, in which something is misspelt.
    """
    found = hub_name(text)
    is_here = not text.startswith("hf://") and os.path.lexists(text.partition("/")[0])
    return None if is_here else found
