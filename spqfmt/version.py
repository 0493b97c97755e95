"""The package's version, as installed; pyproject.toml is the one place where it is written."""

from importlib.metadata import version

__version__ = version("spqfmt")
