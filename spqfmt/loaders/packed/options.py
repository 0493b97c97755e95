"""What `load_model` is asked for of packed weights, checked before anything is read."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeAlias

import torch

from spqfmt.container.model import is_packed
from spqfmt.errors import OptionError
from spqfmt.loaders.schemes.matrix import NAMES
from spqfmt.sizes import n_bytes_of


@dataclass(frozen=True)
class Packing:
    """Ceilings, None for none, and how integer layers take their inputs, None for as the file says.

    `is_optional`: only where products from the codes are at least as fast as those of floats, and in dtypes that packed
    weights compute in. `auto_tokens`: the
    ceiling is what is free less what so many tokens take besides; 0: it is what `memory_bytes` says.
    """

    memory_bytes: int | None
    host_memory_bytes: int | None
    int8_activations: bool | None
    is_optional: bool = False
    auto_tokens: int = 0


AUTO: Final = "auto"
"""Packed where that is at least as fast; as a ceiling, what is free."""
TOKENS = 2048
"""Tokens that memory "auto" keeps room for where nobody says how many."""
PackedOption: TypeAlias = bool | Literal["auto"] | None


def packing_options(
    path: Path,
    device_type: str,
    memory: int | str | None,
    packed: PackedOption,
    activations: str | None,
    host_memory: int | str | None = None,
    n_tokens: int | None = None,
) -> Packing | None:
    """Return what was asked for; None where weights shall become ordinary parameters. Raises OptionError.

    `device_type` is torch's name of what the model runs on. `memory` "auto" is what is free there less what `n_tokens`
    tokens take besides, TOKENS where that is None.
    """
    if packed not in {None, False, True, AUTO}:
        raise OptionError(f"packed is True, False or {AUTO!r}, not {packed!r}")
    is_optional = packed == AUTO and memory is None
    if is_optional and device_type == "cuda" and is_packed(path):
        packed, memory = None, AUTO
    if n_tokens is not None and (memory != AUTO or type(n_tokens) is not int or n_tokens < 1):
        raise OptionError("n_tokens is a number of tokens that memory 'auto' keeps room for")
    if packed == AUTO and (memory is not None or device_type != "cpu" or not is_packed(path)):
        packed = None
    if host_memory is not None and device_type == "cpu":
        raise OptionError("host_memory is for a model on a device; on the CPU memory is the ceiling")
    if host_memory is not None and memory is None and not packed:
        raise OptionError("host_memory goes with memory, the ceiling for the device")
    if memory is None and not packed:
        if activations is not None:
            raise OptionError("activations is for packed weights: give memory=, or packed=True")
        return None
    if packed is False:
        raise OptionError("memory is a ceiling for packed weights; leave packed out")
    if activations not in {None, "int8", "float"}:
        raise OptionError(f"activations is int8 or float, not {activations!r}")
    if device_type not in {"cpu", "cuda"}:
        raise OptionError(f"packed weights are on the CPU or a CUDA device, not on {device_type!r}")
    if not is_packed(path):
        raise OptionError(f"{path}: only an .spq file can be run from packed weights; pack it first")
    int8_activations = None if activations is None else activations == "int8"
    if memory == AUTO:
        return Packing(
            None, memory_size(host_memory), int8_activations, is_optional, auto_tokens=n_tokens or TOKENS
        )
    return Packing(memory_size(memory), memory_size(host_memory), int8_activations, is_optional)


def check_dtype(dtype: torch.dtype) -> None:
    """Raise OptionError for a dtype that packed weights do not compute in."""
    if dtype not in NAMES:
        names = ", ".join(str(known).removeprefix("torch.") for known in NAMES)
        raise OptionError(
            f"packed weights compute in {names}, not in {str(dtype).removeprefix('torch.')}: "
            "give one of these as dtype, or leave memory and packed out"
        )


def memory_size(memory: int | str | None) -> int | None:
    """Number of bytes of a ceiling, which may be given in units. Raises OptionError."""
    memory_bytes = None if memory is None else n_bytes_of(memory)
    if memory_bytes is not None and memory_bytes < 1:
        raise OptionError("a ceiling is at least 1 byte")
    return memory_bytes
