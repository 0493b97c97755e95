"""What `load_model` is asked for of packed weights, checked before anything is read."""

from dataclasses import dataclass
from pathlib import Path

import torch

from spqfmt.container.output import INDEX_SUFFIX
from spqfmt.errors import OptionError
from spqfmt.pipeline.sizes import parse_size


@dataclass(frozen=True)
class Packing:
    """A ceiling, None for none, and how integer layers take their inputs, None for as the file says."""

    memory_bytes: int | None
    int8_activations: bool | None


def packing_options(
    path: Path,
    device: str | torch.device,
    memory: int | str | None,
    packed: bool | None,
    activations: str | None,
) -> Packing | None:
    """None where weights shall become ordinary parameters. Raises OptionError."""
    if memory is None and not packed:
        if activations is not None:
            raise OptionError("activations is for packed weights: give memory=, or packed=True")
        return None
    if packed is False:
        raise OptionError("memory is a ceiling for packed weights; leave packed out")
    if activations not in {None, "int8", "float"}:
        raise OptionError(f"activations is int8 or float, not {activations!r}")
    if torch.device(device).type != "cpu":
        raise OptionError("packed weights are on the CPU; leave memory and packed out for another device")
    if path.suffix != ".spq" and not path.name.endswith(INDEX_SUFFIX):
        raise OptionError(f"{path}: only an .spq file can be run from packed weights; pack it first")
    memory_bytes = memory_size(memory)
    return Packing(memory_bytes, None if activations is None else activations == "int8")


def memory_size(memory: int | str | None) -> int | None:
    """Bytes of a ceiling. Raises OptionError."""
    memory_bytes = parse_size(memory) if isinstance(memory, str) else memory
    if memory_bytes is not None and memory_bytes < 1:
        raise OptionError("a ceiling is at least 1 byte")
    return memory_bytes
