"""What MXFP4 and NVFP4 have in common: two codes of f4_e2m1 in each byte, the first one in its low half."""

from __future__ import annotations

import numpy as np

from spqfmt.codecs.elements import Elements, from_planes
from spqfmt.errors import ImporterError
from spqfmt.importers.quantizers.base import Checkpoint

CODES = "f4_e2m1"
_AT_ONCE = 1 << 22


def unpacked(stored: Elements) -> Elements:
    """The codes of bytes [..., n], one a byte: [..., 2 n]."""
    flat = np.ascontiguousarray(stored).reshape(-1)
    codes = np.empty(2 * flat.size, np.uint8)
    for first in range(0, flat.size, _AT_ONCE):
        some, out = flat[first : first + _AT_ONCE], codes[2 * first : 2 * (first + _AT_ONCE)]
        from_planes(some, CODES, out.size, out)
    return codes.reshape(*stored.shape[:-1], -1)


def check_said(checkpoint: Checkpoint, name: str, *, form: str, packed: str, columns: int) -> None:
    """Raise ImporterError where all groups of a config that is of the format `packed` alone speak of other codes.

    `columns` share a scale in tensor `name`, which is stored as `form`.
    """
    quantizer = checkpoint.quantizer
    if quantizer.formats != {packed}:
        return
    weights = [group.get("weights") for group in (quantizer.said.get("config_groups") or {}).values()]
    due = {"num_bits": 4, "type": "float", "group_size": columns}
    others = [
        [f"{key} {scheme[key]!r}" for key, value in due.items() if scheme.get(key) not in (None, value)]
        for scheme in weights
        if isinstance(scheme, dict)
    ]
    if others and all(others):
        said = ", ".join(others[0])[:80]
        raise ImporterError(
            f"tensor {name!r} is stored as {form}, but config.json says {said}; download both again"
        )
