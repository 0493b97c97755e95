"""What the fixtures of this folder give."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class Done(NamedTuple):
    """What a command did."""

    code: int
    stdout: str
    stderr: str


Run = Callable[..., Done]


class Models(NamedTuple):
    """One model, two layers."""

    source: Path
    lossless: Path
    zstd: Path
    int8: Path
    int4: Path
    shards: Path
    """The .spq.index.json of the lossless file in shards."""
