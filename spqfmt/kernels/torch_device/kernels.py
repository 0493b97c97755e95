"""DeviceKernels as torch operations."""

import torch

from spqfmt.kernels.device.checked import CheckedKernels
from spqfmt.kernels.device.chunks import DecodePlan
from spqfmt.kernels.device.matrix import Matrix
from spqfmt.kernels.torch_device import multiply, planes, rans, weights


class TorchKernels(CheckedKernels):
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
        weights.dequantize(codes, matrix, channels, out, first)

    def _decode_dequantize(
        self,
        stored: torch.Tensor,
        plan: DecodePlan,
        matrix: Matrix,
        channels: range,
        out: torch.Tensor,
        tables: torch.Tensor,
        error: torch.Tensor,
    ) -> None:
        codes = torch.empty(sum(job.raw_bytes for job in plan.jobs), dtype=torch.uint8, device=out.device)
        rans.decode_chunks(stored, plan, codes, error)
        weights.dequantize(codes, matrix, channels, out, 0)

    def _multiply(
        self, x: torch.Tensor, codes: torch.Tensor, matrix: Matrix, rows: range, y: torch.Tensor, first: int
    ) -> None:
        multiply.multiply(x, codes, matrix, rows, y, first)
