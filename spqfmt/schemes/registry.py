"""The schemes by their names in a file."""

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
    is_packed = isinstance(SCHEMES.get(record.scheme), PackedScheme)
    return is_packed and _is_float_matrix(record) and not whole_because(record)


def whole_because(record: TensorRecord) -> str:
    """Why loaders decode a matrix of floats whole, in a few words; empty where they do not, and for other tensors."""
    scheme = SCHEMES.get(record.scheme)
    if not _is_float_matrix(record) or not isinstance(scheme, PackedScheme):
        return ""
    return scheme.whole_because(record) if record.view is None else "groups in a view"


def _is_float_matrix(record: TensorRecord) -> bool:
    return len(record.shape) == 2 and 0 not in record.shape and record.dtype in FLOATS
