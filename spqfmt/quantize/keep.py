"""Method keep: what the source stores as codes is written as these codes; all else is dense."""

from dataclasses import replace

import numpy as np

from spqfmt.quantize.base import MethodOptions, Weight
from spqfmt.quantize.layouts import choose_layout
from spqfmt.quantize.lossless import Lossless
from spqfmt.schemes.base import Quantized
from spqfmt.schemes.floats import small_float_values
from spqfmt.schemes.grouped import Grouped
from spqfmt.wire import DTYPES, SMALL_FLOATS

_SORTED = frozenset(dtype for dtype in SMALL_FLOATS if DTYPES[dtype].bits == 8)


class Keep(Lossless):
    """A KeepingMethod that changes nothing: tensors without codes are stored as lossless stores them."""

    name = "keep"

    def describe(self, weight: Weight, options: MethodOptions) -> str:
        """Say which codes are kept."""
        return f"codes of {weight.form}, as they are" if weight.form else ""

    def keep(self, weight: Weight, stored: Quantized) -> Quantized:
        """Return the codes as the source stores them; rows of floats of eight bits in classes, where that saves bytes.

        Rows of a block that share a scale use more or less of its range. Stacked matrices keep their order, so that one
        of them is read alone.
        """
        if isinstance(stored, Grouped) and stored.code_dtype in _SORTED and len(weight.shape) == 2:
            values = np.nan_to_num(np.abs(small_float_values(stored.code_dtype)), posinf=0)
            return replace(stored, layout=choose_layout(stored.codes, by_rows=True, magnitudes=values))
        return stored


METHOD = Keep()
