"""Codes one a byte, and the outliers of a run of rows: what the products of several schemes need."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from spqfmt import wire
from spqfmt.codecs.base import Bytes
from spqfmt.codecs.elements import CARRIERS, Elements, from_planes
from spqfmt.kernels.multiply import OutlierRows
from spqfmt.residency.parts import Part
from spqfmt.schemes.base import Float32


def outliers_of(outliers: OutlierRows, first: int, stop: int) -> tuple[NDArray[np.int64], Any, Float32]:
    """Rows counted from `first`, columns and values of the outliers of rows `first` to `stop`."""
    begin = outliers.row_begin[first : stop + 1]
    here = slice(begin[0], begin[-1])
    return np.repeat(np.arange(stop - first), np.diff(begin)), outliers.columns[here], outliers.values[here]


def unpacked(part: Part, codes: Bytes) -> Elements:
    """All codes of a part, one a byte."""
    if wire.DTYPES[part.dtype].bits == 8:
        return codes.view(CARRIERS[part.dtype])
    out = np.empty(part.n_weights, CARRIERS[part.dtype])
    from_planes(codes, part.dtype, part.n_weights, out)
    return out
