"""Where the figures were taken."""

import importlib.metadata
import os
import platform
from pathlib import Path

from spqfmt import systems
from spqfmt.kernels import backend, native

PACKAGES = ("spqfmt", "numpy", "zstandard", "zipnn", "blosc2", "pcodec", "lz4", "safetensors")


def describe() -> dict[str, object]:
    """The processor, what the process may use of it, how busy it is, and package versions (None: not installed)."""
    return {
        "processor": _processor(),
        "architecture": platform.machine(),
        "threads": systems.usable_processors(),
        "load_average": round(
            os.getloadavg()[0], 2
        ),  # well above zero before a run: other programs share the figures
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "backend": backend.backend(),
        "native_path": native.active_kernels(),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
