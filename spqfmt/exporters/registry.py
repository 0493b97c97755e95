"""Finds the exporters of this folder."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import spqfmt.exporters as package
from spqfmt.exporters.base import Exporter
from spqfmt.registry import find


@functools.cache
def exporters() -> Mapping[str, Exporter]:
    """All exporters by what `--as` calls them. A module is one when it has a name `EXPORTER`."""
    return {exporter.name: exporter for exporter in find(package, "EXPORTER")}
