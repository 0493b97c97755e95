"""Small models, packed by the methods whose codes are exported."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import spqfmt

TEXT = Path(__file__).resolve().parents[2] / "LICENSE"
CALIBRATED: Mapping[str, Any] = {"calibration": TEXT, "samples": 2, "seq_len": 16}
INF = float("inf")
METHODS: Mapping[str, Mapping[str, Any]] = {
    "rtn, 8 bits a row": {"method": "rtn"},
    "rtn, 4 bits a row": {"method": "rtn", "bits": 4, "granularity": "row"},
    "rtn, 8 bits a tensor": {"method": "rtn", "granularity": "tensor"},
    "rtn, groups of 4 bits": {"method": "rtn", "bits": 4, "group_size": 16},
    "rtn, groups of 2 bits": {"method": "rtn", "bits": 2, "group_size": 16},
    "rtn, groups of 3 bits": {"method": "rtn", "bits": 3, "group_size": 16},
    "rtn, groups of 8 bits": {"method": "rtn", "bits": 8, "group_size": 16},
    "gptq, groups": {"method": "gptq", "group_size": 16, "act_order": False, **CALIBRATED},
    "gptq, a grid a row, act-order": {"method": "gptq", **CALIBRATED},
    "zeroquant": {"method": "zeroquant", "group_size": 16, **CALIBRATED},
    "ecq": {"method": "ecq", "bits": 4, "no_calibration": True},
}
"""Options of `pack` whose codes lie on an even grid."""
OTHERS: Mapping[str, tuple[Mapping[str, Any], str]] = {
    "outliers": ({"method": "spqr", "threshold": 0.01, **CALIBRATED}, "it has outliers"),
    "second level": ({"method": "spqr", "threshold": INF, "act_order": False, **CALIBRATED}, "are no whole numbers"),
    "columns": ({"method": "dc", **CALIBRATED}, "it has scales of columns"),
    "clamped": ({"method": "jsq", **CALIBRATED}, "it has scales of columns|are clamped"),
}  # fmt: skip
"""Options whose codes do not, and what is said of them."""


def values(path: Path, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    """What a packed file restores, by name; tied tensors left out."""
    with spqfmt.open(path) as file:
        return {name: file.read(name, dtype=dtype) for name in file if file[name].info.scheme != "tied"}
