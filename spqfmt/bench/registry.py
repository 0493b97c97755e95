"""Peers are found by their folder: every module with a function `make`."""

import importlib
import pkgutil
from types import ModuleType
from typing import Any


def find(package: ModuleType) -> tuple[dict[str, Any], dict[str, str]]:
    """Import every module of the package: their `make` by name, and by name why another cannot run.

    Only a package that is not installed is excused.
    """
    makers, missing = {}, {}
    for module in pkgutil.iter_modules(package.__path__):
        try:
            makers[module.name] = importlib.import_module(f"{package.__name__}.{module.name}").make
        except ImportError as error:
            missing[module.name] = str(error)
    return makers, missing
