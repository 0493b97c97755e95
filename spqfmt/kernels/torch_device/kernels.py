"""DeviceKernels as torch operations."""

from functools import partial

import torch

from spqfmt.kernels.device.chunks import DecodePlan
from spqfmt.kernels.device.fusing import FusedPlan
from spqfmt.kernels.device.kernels import DeviceKernels
from spqfmt.kernels.device.matrix import DeviceFloats, Matrix
from spqfmt.kernels.device.merging import MergePlan
from spqfmt.kernels.device.prepared import Decode, Product, RowsByNumber
from spqfmt.kernels.device.unfolding import UnfoldPlan
from spqfmt.kernels.torch_device import fused, multiply, planes, rans, trellis, weights
from spqfmt.kernels.torch_device.launching import launched, prepared


class TorchKernels(DeviceKernels):
    """Runs on any device, allocates, and waits for the device: an oracle, and for simulation on a CPU."""

    name = "torch"

    def _prepare_decode(
        self,
        stored: torch.Tensor,
        plan: DecodePlan,
        out: torch.Tensor,
        tables: torch.Tensor,
        error: torch.Tensor,
    ) -> Decode:
        return prepared(partial(rans.decode_chunks, stored, plan, out, error))

    def _prepare_merge(
        self, stored: torch.Tensor, scratch: torch.Tensor, plan: MergePlan, out: torch.Tensor
    ) -> Decode:
        return prepared(partial(planes.merge, stored, scratch, plan, out))

    def _prepare_unfold(self, plan: UnfoldPlan, out: torch.Tensor, error: torch.Tensor) -> Decode:
        return prepared(partial(trellis.unfold, plan, out, error))

    def _dequantize(
        self, codes: torch.Tensor, matrix: Matrix, channels: range, out: torch.Tensor, first: int
    ) -> None:
        launched(weights.dequantize)(codes, matrix, channels, out=out, first=first)

    def _multiply(
        self, x: torch.Tensor, codes: torch.Tensor, matrix: Matrix, rows: range, y: torch.Tensor, first: int
    ) -> None:
        launched(multiply.multiply)(x, codes, matrix, rows=rows, y=y, first=first)

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
        inside = slice(rows.start, rows.stop)

        def product(x: torch.Tensor, codes: torch.Tensor, y: torch.Tensor, n: int) -> None:
            sums = torch.empty(n, matrix.shape[0], device=x.device)
            multiply.multiply(x.view(n, -1), codes, matrix, rows=rows, y=sums, first=first)
            y.view(n, -1)[:, inside] = sums[:, inside] if bias is None else sums[:, inside] + bias[inside]

        return prepared(product)

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
    ) -> Product:
        return prepared(fused.product(stored, plan, matrix, bias=bias, error=error))

    def _prepare_rows(self, matrix: Matrix, rows: range, dtype: torch.dtype, first: int) -> RowsByNumber:
        def look_up(codes: torch.Tensor, ids: torch.Tensor, out: torch.Tensor, n: int) -> None:
            inside = (ids >= rows.start) & (ids < rows.stop)
            found = torch.empty(len(rows), matrix.shape[1], dtype=dtype, device=out.device)
            weights.dequantize(codes, matrix, rows, out=found, first=first)
            out[~inside] = torch.nan
            out[inside] = found[ids[inside] - rows.start]

        return prepared(look_up)
