"""The methods by name."""

from collections.abc import Mapping
from types import MappingProxyType

import spqfmt.quantize as package
from spqfmt.quantize.base import Method
from spqfmt.registry import find

METHODS: Mapping[str, Method] = MappingProxyType({m.name: m for m in find(package, "METHOD")})
