"""safetensors with the same codes, and with BF16 weights, as its own `load_file` reads them."""

from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from spqfmt.bench.load.base import Loader, Payload


class Safetensors(Loader):
    """The library allocates what it reads into; that is part of using it."""

    def load(self) -> None:
        arrays = load_file(self.path)
        self.out = [arrays[array.name].view(np.uint8) for array in self.payload.arrays]


def make(payload: Payload, folder: Path, threads: int) -> list[Loader]:
    """The codes as they are and, where they are narrower, BF16 weights; of one thread."""
    if threads > 1:
        return []
    loaders: list[Loader] = [_written("safetensors", payload, folder / f"{payload.name}.safetensors")]
    if payload.is_codes:
        path = folder / f"{payload.name}-bf16.safetensors"
        loaders.append(_written("safetensors BF16", payload.as_bf16(), path))
    return loaders


def _written(container: str, payload: Payload, path: Path) -> Safetensors:
    save_file({a.name: a.raw.view(f"u{a.element_bytes}") for a in payload.arrays}, path)
    return Safetensors(container, path, payload, 1)
