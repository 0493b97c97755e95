"""The coders that ours is measured beside, one file each: `make(element_bytes, threads)` gives its contenders."""

import importlib
import pkgutil
from dataclasses import dataclass

from spqfmt.bench.contender import Make


@dataclass(frozen=True)
class Peers:
    """The peers that can run here, and why the others cannot."""

    make: dict[str, Make]
    missing: dict[str, str]


def find() -> Peers:
    """Import every peer of this folder; a package that is not installed is no error."""
    found = Peers({}, {})
    for module in pkgutil.iter_modules(__path__):
        try:
            found.make[module.name] = importlib.import_module(f"{__name__}.{module.name}").make
        except ImportError as error:
            found.missing[module.name] = str(error)
    return found
