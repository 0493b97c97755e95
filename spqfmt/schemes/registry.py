"""The schemes by name."""

from collections.abc import Mapping
from types import MappingProxyType

import spqfmt.schemes as package
from spqfmt.records import FLOATS, TensorRecord
from spqfmt.registry import find
from spqfmt.schemes.base import Scheme
from spqfmt.schemes.named import NAMED
from spqfmt.schemes.sides import PackedScheme

SCHEMES: Mapping[str, Scheme] = MappingProxyType({s.name: s for s in find(package, "SCHEME")})
WEIGHT_ROLES = frozenset(scheme.weights for scheme in SCHEMES.values())
"""Streams whose chunks partial compression chooses among (FORMAT.md 3.4); the chunks of others are all compressed."""


def scheme_of(name: str) -> Scheme:
    """The scheme of a record that was read."""
    return SCHEMES.get(name, NAMED)


def packed_scheme(record: TensorRecord) -> PackedScheme:
    """The scheme of a tensor that is not decoded whole."""
    scheme = SCHEMES[record.scheme]
    assert isinstance(scheme, PackedScheme), f"scheme {scheme.name} has no products"
    return scheme


def is_packable(record: TensorRecord) -> bool:
    """Whether loaders can compute from the tensor as it is stored: a matrix of floats whose rows are the tensor's.

    They decode all others whole.
    """
    scheme = SCHEMES.get(record.scheme)
    is_matrix = len(record.shape) == 2 and 0 not in record.shape and record.view is None
    is_float_matrix = is_matrix and record.dtype in FLOATS
    return is_float_matrix and isinstance(scheme, PackedScheme) and scheme.packs(record)
