"""What computes for the loader on a device, and the choice of who does it."""

from typing import Protocol

import torch

from spqfmt.errors import BackendError
from spqfmt.kernels import backend
from spqfmt.kernels.device.chunks import DecodePlan
from spqfmt.kernels.device.matrix import Matrix

MAX_TOKENS = 16
"""Tokens that `multiply` takes at most; more are cheaper as a product with dequantized weights."""


class DeviceKernels(Protocol):
    """Kernels over tensors of one device.

    All memory is the caller's. Everything is launched on the current stream and nothing waits for it ("torch", the
    plain twin, does wait). What decoding finds damaged is added to `error`, int32 [1], by atomic or; the caller reads
    it where it waits anyway and hands it to `raise_fault`. Tensors that do not fit together raise ValueError before a
    launch.
    """

    name: str

    def decode_chunks(
        self,
        stored: torch.Tensor,
        plan: DecodePlan,
        out: torch.Tensor,
        tables: torch.Tensor,
        error: torch.Tensor,
    ) -> None:
        """Decode the chunks of a plan, whose records are on this device.

        `stored` uint8, beginning at a multiple of 4, with READ_AHEAD_BYTES after the last chunk; `out` uint8, likewise
        aligned; `tables` int32 of at least plan.table_words, scratch that nothing else uses meanwhile.
        """
        ...

    def merge_planes(self, planes: torch.Tensor, out: torch.Tensor, *, rotated: bool) -> None:
        """Planes of a dense chunk, uint8 [bytes of an element, n], become n elements of `out` (any dtype of that size).

        `rotated` as the dtype says (wire.DTYPES): then every element is rotated right by one bit.
        """
        ...

    def dequantize(
        self, codes: torch.Tensor, matrix: Matrix, channels: range, out: torch.Tensor, *, first: int = 0
    ) -> None:
        """Weights of stored rows (columns with by_columns) `channels`, outliers in place, rounded to out's dtype.

        `codes` uint8, packed as in the file; code number `first` is the first of the first channel. `out` is float32,
        bfloat16 or float16, contiguous: [len(channels), columns], or [rows, len(channels)] with by_columns.
        """
        ...

    def can_fuse(self, plan: DecodePlan, matrix: Matrix, channels: range) -> bool:
        """Whether `decode_dequantize` takes this; if not, decode into a buffer and dequantize from there."""
        ...

    def decode_dequantize(
        self,
        stored: torch.Tensor,
        plan: DecodePlan,
        matrix: Matrix,
        channels: range,
        out: torch.Tensor,
        tables: torch.Tensor,
        error: torch.Tensor,
    ) -> None:
        """`decode_chunks` and `dequantize` to bfloat16 in one pass: the codes never exist in memory.

        The plan decodes to the packed codes of exactly `channels`. ValueError where `can_fuse` is false.
        """
        ...

    def multiply(
        self,
        x: torch.Tensor,
        codes: torch.Tensor,
        matrix: Matrix,
        rows: range,
        y: torch.Tensor,
        *,
        first: int = 0,
    ) -> None:
        """y[:, rows] = x W[rows]^T straight from codes, for a matrix by rows; float32 sums.

        `x` [1 to MAX_TOKENS, columns] float32, bfloat16 or float16, contiguous, in stored column order; `y` float32
        [n_tokens, rows of the matrix], contiguous. `codes` and `first` as in `dequantize`. For more than one token
        weights are rounded to x's dtype first, as a product with dequantized weights would.
        """
        ...


def kernels_for(device: torch.device, name: str | None = None) -> DeviceKernels:
    """The kernels `name`, "triton" or "torch"; None is what SPQFMT_BACKEND says, else "triton" on a GPU.

    "triton" runs on a GPU, or on the CPU where TRITON_INTERPRET=1 was set before triton was imported; "torch" anywhere.
    BackendError: the name is not known, or they cannot run on this device.
    """
    name = name or backend.current().device_kernels or ("triton" if device.type == "cuda" else "torch")
    if name == "torch":
        from spqfmt.kernels.torch_device.kernels import TorchKernels

        return TorchKernels()
    if name != "triton":
        raise BackendError(f"unknown kernels {name!r} for a device; known are torch, triton")
    try:
        from spqfmt.kernels.triton.kernels import TritonKernels
    except ImportError as error:
        raise BackendError(f"backend 'triton' needs triton: {error}") from error
    return TritonKernels(device)
