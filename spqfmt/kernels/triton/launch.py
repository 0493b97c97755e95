"""Launches that are prepared once: what stays the same is bound, compiled and checked before the first of them.

Triton binds the arguments of a launch by name, looks at each of them and searches its cache, which takes a hundred
microseconds of the host. What a model does for every token has the same arguments every time but for a few tensors.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
import triton
from triton.runtime import driver
from triton.runtime.jit import MockTensor

Launch: TypeAlias = Callable[..., None]
"""Launches with the tensors (or numbers) that were left open, in the order of their names."""


class Open:
    """An argument that each launch gives: a tensor of this dtype (or of one as large), or an integer, which is None.

    `anywhere`: it need not lie at a multiple of prepared.ALIGNMENT.
    """

    def __init__(self, dtype: torch.dtype | None, *, anywhere: bool = False) -> None:
        self.dtype = dtype
        self.anywhere = anywhere


class _Anywhere(MockTensor):  # type: ignore[misc]  # Triton has no types
    """Stands for a tensor whose address is not known to be a multiple of anything."""

    @staticmethod
    def data_ptr() -> int:
        return 4


def prepare(
    kernel: Any, grid: tuple[int, ...], arguments: Mapping[str, Any], options: Mapping[str, Any]
) -> Launch:
    """Compile `kernel` for these arguments, some of which are Open, for one thread at a time.

    A launch goes to the stream that is current on the device that is current, which must be that of the arguments;
    their memory is the caller's. An open tensor lies at a multiple of prepared.ALIGNMENT, which compiled code relies
    on; an open integer fits int32. A grid that begins with 0 leaves its width to the launch, as `width`.
    """
    names = [name for name, value in arguments.items() if isinstance(value, Open)]
    if triton.knobs.runtime.interpret:
        return _interpreted(kernel, grid, arguments, names=names, options=options)
    samples = {name: _sample(arguments[name]) for name in names}
    bound = dict(arguments) | samples
    compiled = kernel.run(grid=grid, warmup=True, **bound, **options)
    values = [_address(bound[name]) for name in kernel.arg_names]
    launcher, function, packed = compiled.run, compiled.function, compiled.packed_metadata
    width, height, depth = (*grid, 1, 1)[:3]
    device_of, stream_of = driver.active.get_current_device, driver.active.get_current_stream
    places = [kernel.arg_names.index(name) for name in names]

    def launch(*opened: Any, width: int = width) -> None:
        for place, value in zip(places, opened, strict=True):
            values[place] = value if value.__class__ is int else value.data_ptr()
        launcher(width, height, depth, stream_of(device_of()), function, packed, None, None, None, *values)

    return launch


def _sample(argument: Open) -> Any:
    if argument.dtype is None:
        return 2  # neither 1 nor a multiple of 16, of which compiled code would know
    return (_Anywhere if argument.anywhere else MockTensor)(argument.dtype)


def _address(value: Any) -> Any:
    """A tensor as its address: whoever launches then asks neither it nor the driver again."""
    return value.data_ptr() if isinstance(value, torch.Tensor) else value


def _interpreted(
    kernel: Any,
    grid: tuple[int, ...],
    arguments: Mapping[str, Any],
    names: list[str],
    options: Mapping[str, Any],
) -> Launch:
    fixed = {name: value for name, value in arguments.items() if name not in names}
    dtypes = [arguments[name].dtype for name in names]

    def launch(*opened: Any, width: int = grid[0]) -> None:
        given = [v if dtype is None else v.view(dtype) for v, dtype in zip(opened, dtypes, strict=True)]
        kernel[width, *grid[1:]](**fixed, **dict(zip(names, given, strict=True)), **options)

    return launch
