"""torch tensors <-> the numpy arrays that carry each dtype (see spqfmt.codecs.elements). Bits are never changed.

Floats of less than 8 bits, which torch lacks or holds in pairs, are uint8 tensors of one element a byte.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from spqfmt.wire import SMALL_FLOATS

TORCH_DTYPES: dict[str, torch.dtype] = {
    "f64": torch.float64,
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "f8_e4m3": torch.float8_e4m3fn,
    "f8_e5m2": torch.float8_e5m2,
    "f8_e4m3fnuz": torch.float8_e4m3fnuz,
    "f8_e5m2fnuz": torch.float8_e5m2fnuz,
    "f8_e8m0": torch.float8_e8m0fnu,
    "f6_e2m3": torch.uint8,
    "f6_e3m2": torch.uint8,
    "f4_e2m1": torch.uint8,
    "c64": torch.complex64,
    "i64": torch.int64,
    "i32": torch.int32,
    "i16": torch.int16,
    "i8": torch.int8,
    "u64": torch.uint64,
    "u32": torch.uint32,
    "u16": torch.uint16,
    "u8": torch.uint8,
    "bool": torch.bool,
}
_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}
# dtypes that numpy lacks travel as integers of their width
_BITS = {"bf16": torch.uint16, "bool": torch.uint8, **dict.fromkeys(SMALL_FLOATS, torch.uint8)}


def dtype_name(tensor: torch.Tensor) -> str:
    """The dtype's name in a file. KeyError for one that the format lacks."""
    return _NAMES[tensor.dtype]


def is_float32(dtype: torch.dtype | None) -> bool:
    """Whether it is torch's float32."""
    return dtype == torch.float32


def in_pairs(elements: NDArray[np.uint8], packed: NDArray[np.uint8]) -> torch.Tensor:
    """Floats of 4 bits as torch has them: the last dimension is one of pairs, which are the bytes of `packed`."""
    return torch.from_numpy(packed).reshape(*elements.shape[:-1], -1).view(torch.float4_e2m1fn_x2)


def to_numpy(tensor: torch.Tensor) -> NDArray[Any]:
    """The carrier of a CPU tensor, same shape; shares memory where the tensor is contiguous."""
    tensor = tensor.detach().contiguous()
    bits = _BITS.get(dtype_name(tensor))
    return (tensor if bits is None else tensor.view(bits)).numpy()


def to_torch(elements: NDArray[Any], dtype: str, shape: Sequence[int]) -> torch.Tensor:
    """The tensor that a carrier stands for; shares memory."""
    tensor = torch.from_numpy(np.ascontiguousarray(elements).reshape(tuple(shape)))
    return tensor if dtype not in _BITS else tensor.view(TORCH_DTYPES[dtype])
