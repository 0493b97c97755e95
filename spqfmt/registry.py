"""One file, one thing: finds the codec, scheme or method that each module of a folder offers."""

import importlib
import pkgutil
from collections.abc import Iterator
from types import ModuleType
from typing import Any


def find(package: ModuleType, attribute: str) -> Iterator[Any]:
    """The objects called `attribute` in the modules of `package`, by name of their module."""
    for name in sorted(module.name for module in pkgutil.iter_modules(package.__path__)):
        module = importlib.import_module(f"{package.__name__}.{name}")
        if hasattr(module, attribute):
            yield getattr(module, attribute)
