"""The methods by name."""

from collections.abc import Mapping
from types import MappingProxyType

import spqfmt.quantize as package
from spqfmt.quantize.base import Method
from spqfmt.registry import find

_ROWS = (row for rows in find(package, "METHOD_ROWS") for row in rows)
METHODS: Mapping[str, Method] = MappingProxyType({m.name: m for m in (*find(package, "METHOD"), *_ROWS)})
