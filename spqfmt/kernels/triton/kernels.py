"""DeviceKernels as launches of the Triton kernels, on the current stream."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton

from spqfmt.errors import BackendError
from spqfmt.kernels.cuda.driver import Driver
from spqfmt.kernels.cuda.launches import prepare_fused
from spqfmt.kernels.cuda.trial import trusted_driver
from spqfmt.kernels.device.chunks import DecodePlan
from spqfmt.kernels.device.fusing import FusedPlan
from spqfmt.kernels.device.kernels import DeviceKernels
from spqfmt.kernels.device.matrix import DeviceFloats, Matrix
from spqfmt.kernels.device.merging import MergePlan
from spqfmt.kernels.device.prepared import Decode, Product, RowsByNumber
from spqfmt.kernels.device.unfolding import UnfoldPlan
from spqfmt.kernels.triton import multiply, outliers, weights
from spqfmt.kernels.triton.arguments import TO, code_arguments, scale_arguments, unit_arguments
from spqfmt.kernels.triton.decoding import prepare_decode, prepare_merge, prepare_unfold
from spqfmt.kernels.triton.products import (
    EXACT,
    TILE_BY_ROWS,
    correct_arguments,
    multiply_arguments,
    prepare_product,
    prepare_rows,
)

TILE_BY_COLUMNS = {"CHANNELS": 32, "ROWS": 64}


class TritonKernels(DeviceKernels):
    """Kernels on a GPU; on the CPU where Triton interprets (TRITON_INTERPRET=1 before it was imported), for tests."""

    name = "triton"
    driver_of: Callable[[torch.device], Driver | None] = staticmethod(trusted_driver)
    """What runs the kernels that are not Triton's."""

    def __init__(self, device: torch.device) -> None:
        if device.type != "cuda" and not triton.knobs.runtime.interpret:
            raise BackendError(f"backend 'triton' needs a GPU, not {device}, or TRITON_INTERPRET=1")
        self._device = device

    def _prepare_decode(
        self,
        stored: torch.Tensor,
        plan: DecodePlan,
        out: torch.Tensor,
        tables: torch.Tensor,
        error: torch.Tensor,
    ) -> Decode:
        with self._here():
            return prepare_decode(stored, plan, out, tables=tables, error=error)

    def _prepare_merge(
        self, stored: torch.Tensor, scratch: torch.Tensor, plan: MergePlan, out: torch.Tensor
    ) -> Decode:
        with self._here():
            return prepare_merge(stored, scratch, plan, out)

    def _prepare_unfold(self, plan: UnfoldPlan, out: torch.Tensor, error: torch.Tensor) -> Decode:
        with self._here():
            return prepare_unfold(plan, out, error)

    def _dequantize(
        self, codes: torch.Tensor, matrix: Matrix, channels: range, out: torch.Tensor, first: int
    ) -> None:
        arguments = scale_arguments(matrix) | code_arguments(matrix) | {"TO": TO[out.dtype]} | EXACT
        run = (first, channels.start, channels.stop)
        rows, columns = matrix.shape
        with self._here():
            if matrix.by_columns:
                grid = _tiles(len(channels), TILE_BY_COLUMNS["CHANNELS"], rows, TILE_BY_COLUMNS["ROWS"])
                weights.dequantize_columns[grid](
                    codes, _storable(out), matrix.order, *run, rows, **arguments, **TILE_BY_COLUMNS
                )
            else:
                grid = _tiles(len(channels), TILE_BY_ROWS["ROWS"], columns, TILE_BY_ROWS["COLUMNS"])
                units = unit_arguments(matrix, first)
                weights.dequantize_rows[grid](
                    codes,
                    _storable(out),
                    matrix.permutation,
                    None,
                    *run,
                    n_columns=columns,
                    **arguments,
                    **TILE_BY_ROWS,
                    **units,
                )
            self._replace(matrix, channels, out)

    def _multiply(
        self, x: torch.Tensor, codes: torch.Tensor, matrix: Matrix, rows: range, y: torch.Tensor, first: int
    ) -> None:
        is_one = len(x) == 1
        asked = (matrix, rows, first, x.dtype, y.dtype)
        with self._here():
            grid, arguments = multiply_arguments(*asked, is_one=is_one)
            multiply.multiply[grid](x, codes, y, bias=None, n_tokens=len(x), **arguments, **EXACT)
            if matrix.outliers is not None:
                grid, arguments = correct_arguments(*asked, is_one=is_one)
                multiply.correct[grid](
                    x, codes, y, out=None, bias=None, n_tokens=len(x), **arguments, **EXACT
                )

    def _prepare_product(
        self,
        matrix: Matrix,
        rows: range,
        dtype: torch.dtype,
        bias: torch.Tensor | None,
        first: int,
        *,
        is_one: bool,
    ) -> Product:
        with self._here():
            return prepare_product(matrix, rows, dtype, bias, first=first, is_one=is_one)

    def _prepare_fused(
        self,
        stored: torch.Tensor,
        plan: FusedPlan,
        matrix: Matrix | DeviceFloats,
        dtype: torch.dtype,
        *,
        bias: torch.Tensor | None,
        sums: torch.Tensor,
        error: torch.Tensor | None,
        is_one: bool,
    ) -> Product | None:
        """In CUDA C++: Triton gives a warp no table that it reads by number."""
        if bias is not None and bias.dtype != dtype:
            return None
        with self._here():
            driver = self.driver_of(self._device)
            if driver is None:
                return None
            return prepare_fused(
                driver,
                stored,
                plan,
                matrix,
                dtype=dtype,
                bias=bias,
                sums=sums,
                error=error,
                is_one=is_one,
            )

    def _prepare_rows(self, matrix: Matrix, rows: range, dtype: torch.dtype, first: int) -> RowsByNumber:
        with self._here():
            return prepare_rows(matrix, rows, dtype, first)

    def _replace(self, matrix: Matrix, channels: range, out: torch.Tensor) -> None:
        o = matrix.outliers
        if o is None:
            return
        by_columns = matrix.by_columns
        outliers.replace[(len(out),)](
            _storable(out),
            row_begin=o.row_begin,
            columns=o.columns,
            values=o.values,
            places=matrix.places,
            permutation=matrix.permutation,
            ids=None,
            first_row=0 if by_columns else channels.start,
            first_channel=channels.start,
            stop_channel=channels.stop,
            width=out.shape[1],
            BY_COLUMNS=by_columns,
            TO=TO[out.dtype],
            **EXACT,
        )

    def _here(self) -> AbstractContextManager[Any]:
        return torch.cuda.device(self._device) if self._device.type == "cuda" else nullcontext()


def _tiles(n: int, at_once: int, width: int, width_at_once: int) -> tuple[int, int]:
    return triton.cdiv(n, at_once), triton.cdiv(width, width_at_once)


def _storable(out: torch.Tensor) -> torch.Tensor:
    """View `out` as floats.store takes it."""
    return out.view(torch.int16) if out.dtype == torch.bfloat16 else out
