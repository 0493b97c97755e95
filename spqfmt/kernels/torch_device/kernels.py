"""DeviceKernels as torch operations."""

import torch

from spqfmt.kernels.device.chunks import DecodePlan
from spqfmt.kernels.device.kernels import DeviceKernels
from spqfmt.kernels.device.matrix import Matrix
from spqfmt.kernels.torch_device import multiply, planes, rans, weights


class TorchKernels(DeviceKernels):
    """Runs on any device, allocates, and waits for the device: an oracle, and for simulation on a CPU."""

    name = "torch"

    def _decode_chunks(
        self,
        stored: torch.Tensor,
        plan: DecodePlan,
        out: torch.Tensor,
        tables: torch.Tensor,
        error: torch.Tensor,
    ) -> None:
        rans.decode_chunks(stored, plan, out, error)

    def _merge_planes(self, planes_: torch.Tensor, out: torch.Tensor, rotated: bool) -> None:
        planes.merge_planes(planes_, out, rotated)

    def _dequantize(
        self, codes: torch.Tensor, matrix: Matrix, channels: range, out: torch.Tensor, first: int
    ) -> None:
        weights.dequantize(codes, matrix, channels, out=out, first=first)

    def _multiply(
        self, x: torch.Tensor, codes: torch.Tensor, matrix: Matrix, rows: range, y: torch.Tensor, first: int
    ) -> None:
        multiply.multiply(x, codes, matrix, rows=rows, y=y, first=first)
