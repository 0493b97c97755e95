"""Method keep: what the source stores as codes is written as these codes; all else is dense."""

from spqfmt.quantize.base import MethodOptions, Weight
from spqfmt.quantize.lossless import Lossless
from spqfmt.schemes.base import Quantized


class Keep(Lossless):
    """A KeepingMethod that changes nothing: tensors without codes are stored as lossless stores them."""

    name = "keep"

    def describe(self, weight: Weight, options: MethodOptions) -> str:
        """Say which codes are kept."""
        return f"codes of {weight.form}, as they are" if weight.form else ""

    def keep(self, weight: Weight, stored: Quantized) -> Quantized:
        """Return the codes as the source stores them."""
        return stored


METHOD = Keep()
