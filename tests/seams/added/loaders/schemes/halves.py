"""The products of the scheme halves on the CPU; a device decodes its tensors whole."""

import numpy as np
from spqfmt.schemes.halves import values

from spqfmt.codecs.base import Bytes
from spqfmt.codecs.elements import Elements
from spqfmt.loaders.schemes.base import HostMatrix
from spqfmt.loaders.schemes.matrix import PackedMatrix
from spqfmt.residency.parts import Part
from spqfmt.schemes.base import float_from_bits
from spqfmt.schemes.floats import narrow
from spqfmt.schemes.sides import Sides


class HalvesMatrix(PackedMatrix[Sides]):
    def fill(self, part: Part, codes: Bytes, first: int, rows: slice, out: Elements, name: str) -> None:
        here = codes.view(np.int8).reshape(-1, self._n_columns)[first : first + len(out)]
        step = float_from_bits(self.record.parameters["step"], "step")
        out[:] = narrow(values(here, step), name)


class HalvesProducts:
    name = "halves"
    multiplies_integers = False
    device = None

    def matrix(self, parts: tuple[Part, ...], sides: Sides, whole: Bytes | None) -> HostMatrix:
        return HalvesMatrix(parts, sides, whole)


PRODUCTS = HalvesProducts()
