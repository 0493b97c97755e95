"""The checks that all device kernels make before they launch anything."""

from abc import ABC, abstractmethod

import torch

from spqfmt.kernels.device.chunks import READ_AHEAD_BYTES, DecodePlan
from spqfmt.kernels.device.kernels import MAX_TOKENS
from spqfmt.kernels.device.matrix import CODE_DTYPES, Matrix, UniformScales
from spqfmt.kernels.torch_rans import UNUSED_BITS_FAULT

FLOATS = (torch.float32, torch.bfloat16, torch.float16)


class CheckedKernels(ABC):
    """DeviceKernels whose arguments are checked here; a subclass has the loops."""

    name: str

    def decode_chunks(
        self,
        stored: torch.Tensor,
        plan: DecodePlan,
        out: torch.Tensor,
        tables: torch.Tensor,
        error: torch.Tensor,
    ) -> None:
        """See DeviceKernels."""
        _check_plan(stored, plan, tables, error)
        _require(out.dtype == torch.uint8 and out.is_contiguous(), "out is not uint8, contiguous")
        decoded = max((job.out_offset + job.raw_bytes for job in plan.jobs), default=0)
        _require(decoded <= out.numel(), "chunks pass the end of out")
        if plan.jobs:
            self._decode_chunks(stored, plan, out, tables, error)
        for job in plan.jobs:
            if job.used_bits:  # of a stream of packed elements that is the last chunk at most
                last = out[job.out_offset + job.raw_bytes - 1 :][:1]
                error |= (last >> job.used_bits != 0).int() << UNUSED_BITS_FAULT

    def merge_planes(self, planes: torch.Tensor, out: torch.Tensor, *, rotated: bool) -> None:
        """See DeviceKernels."""
        size, n = planes.shape
        _require(planes.dtype == torch.uint8 and planes.is_contiguous(), "planes are not uint8, contiguous")
        _require(
            size in (2, 4, 8) and out.dtype.itemsize == size, "planes are not the bytes of out's elements"
        )
        _require(out.numel() == n and out.is_contiguous(), "planes and elements are not as many")
        if n:
            self._merge_planes(planes, out, rotated)

    def dequantize(
        self, codes: torch.Tensor, matrix: Matrix, channels: range, out: torch.Tensor, *, first: int = 0
    ) -> None:
        """See DeviceKernels."""
        _check_codes(codes, matrix, channels, first)
        _check_weights(matrix, channels, out)
        if out.numel():
            self._dequantize(codes, matrix, channels, out, first)

    def can_fuse(self, plan: DecodePlan, matrix: Matrix, channels: range) -> bool:
        """Whole quads of symbols have one row, and one group."""
        bits, _ = CODE_DTYPES[matrix.code_dtype]
        codes_per_quad = 4 * 8 // bits
        if not plan.is_plain or matrix.by_columns or matrix.permutation is not None or bits == 2:
            return False
        whole = matrix.shape[1] % codes_per_quad == 0
        if isinstance(matrix.scales, UniformScales):
            return whole
        return whole and matrix.scales.group_size % codes_per_quad == 0

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
        """See DeviceKernels."""
        _require(
            self.can_fuse(plan, matrix, channels), "these chunks cannot be dequantized while they decode"
        )
        _check_plan(stored, plan, tables, error)
        _check_weights(matrix, channels, out)
        _require(out.dtype == torch.bfloat16, "out is not bfloat16")
        bits, _ = CODE_DTYPES[matrix.code_dtype]
        end = 0
        for job in plan.jobs:
            _require(job.out_offset == end, "chunks do not follow each other")
            end += job.raw_bytes
        _require(end * 8 == out.numel() * bits, "chunks do not hold the codes of these rows")
        if out.numel():
            self._decode_dequantize(stored, plan, matrix, channels, out, tables, error)

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
        """See DeviceKernels."""
        _require(not matrix.by_columns, "the product wants codes by rows")
        _check_codes(codes, matrix, rows, first)
        _require(1 <= len(x) <= MAX_TOKENS, f"the product takes 1 to {MAX_TOKENS} tokens")
        _require(x.dtype in FLOATS and x.is_contiguous(), "x is no contiguous float tensor")
        _require(x.shape[1] == matrix.shape[1], "x has not the matrix's columns")
        _require(y.dtype == torch.float32 and y.is_contiguous(), "y is not float32, contiguous")
        _require(y.shape == (len(x), matrix.shape[0]), "y is not tokens by rows")
        if len(rows):
            self._multiply(x, codes, matrix, rows, y, first)

    @abstractmethod
    def _decode_chunks(
        self,
        stored: torch.Tensor,
        plan: DecodePlan,
        out: torch.Tensor,
        tables: torch.Tensor,
        error: torch.Tensor,
    ) -> None: ...

    @abstractmethod
    def _merge_planes(self, planes: torch.Tensor, out: torch.Tensor, rotated: bool) -> None: ...

    @abstractmethod
    def _dequantize(
        self, codes: torch.Tensor, matrix: Matrix, channels: range, out: torch.Tensor, first: int
    ) -> None: ...

    @abstractmethod
    def _decode_dequantize(
        self,
        stored: torch.Tensor,
        plan: DecodePlan,
        matrix: Matrix,
        channels: range,
        out: torch.Tensor,
        tables: torch.Tensor,
        error: torch.Tensor,
    ) -> None: ...

    @abstractmethod
    def _multiply(
        self, x: torch.Tensor, codes: torch.Tensor, matrix: Matrix, rows: range, y: torch.Tensor, first: int
    ) -> None: ...


def _check_plan(stored: torch.Tensor, plan: DecodePlan, tables: torch.Tensor, error: torch.Tensor) -> None:
    _require(stored.dtype == torch.uint8 and stored.is_contiguous(), "stored is not uint8, contiguous")
    end = max((job.stored_offset + job.stored_bytes for job in plan.jobs), default=0)
    _require(
        end + READ_AHEAD_BYTES <= stored.numel(),
        f"stored has less than {READ_AHEAD_BYTES} bytes after its chunks",
    )
    _require(tables.dtype == torch.int32 and tables.numel() >= plan.table_words, "tables are too small")
    _require(error.dtype == torch.int32 and error.numel() == 1, "error is not one int32")
    _require(plan.records.device == stored.device, "the plan's records are on another device")


def _check_codes(codes: torch.Tensor, matrix: Matrix, channels: range, first: int) -> None:
    bits, _ = CODE_DTYPES[matrix.code_dtype]
    width = matrix.shape[0] if matrix.by_columns else matrix.shape[1]
    _require(codes.dtype == torch.uint8 and codes.is_contiguous(), "codes are not uint8, contiguous")
    _require(
        channels.step == 1 and 0 <= channels.start <= channels.stop <= matrix.n_channels, "no such channels"
    )
    _require(
        first >= 0 and (first + len(channels) * width) * bits <= 8 * codes.numel(),
        "codes are fewer than these channels have",
    )


def _check_weights(matrix: Matrix, channels: range, out: torch.Tensor) -> None:
    rows, columns = matrix.shape
    shape = (rows, len(channels)) if matrix.by_columns else (len(channels), columns)
    _require(out.dtype in FLOATS and out.is_contiguous(), "out is no contiguous float tensor")
    _require(out.shape == shape, f"out is {list(out.shape)}, not {list(shape)}")


def _require(condition: bool, reason: str) -> None:
    if not condition:
        raise ValueError(reason)
