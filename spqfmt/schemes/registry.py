"""The schemes by name."""

from collections.abc import Mapping
from types import MappingProxyType

import spqfmt.schemes as package
from spqfmt.registry import find
from spqfmt.schemes.base import Scheme

SCHEMES: Mapping[str, Scheme] = MappingProxyType({s.name: s for s in find(package, "SCHEME")})
