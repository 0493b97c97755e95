"""What the fixtures of this folder give."""

from pathlib import Path
from typing import NamedTuple


class Models(NamedTuple):
    """One model, two layers."""

    source: Path
    lossless: Path
    zstd: Path
    int8: Path
    int4: Path
    shards: Path
    """The .spq.index.json of the lossless file in shards."""
