"""Kernels for tensors of a device: the records that describe their work, and who computes it."""

from spqfmt.kernels.device.chunks import READ_AHEAD_BYTES, ChunkJob, DecodePlan, chunk_job, plan_chunks
from spqfmt.kernels.device.kernels import MAX_TOKENS, DeviceKernels
from spqfmt.kernels.device.matrix import (
    DeviceFloats,
    DeviceGroupValues,
    DeviceOutliers,
    GroupScales,
    Matrix,
    UniformScales,
)
from spqfmt.kernels.torch_rans import PATH_FAULT, UNUSED_BITS_FAULT, raise_fault

__all__ = [
    "MAX_TOKENS",
    "PATH_FAULT",
    "READ_AHEAD_BYTES",
    "UNUSED_BITS_FAULT",
    "ChunkJob",
    "DecodePlan",
    "DeviceFloats",
    "DeviceGroupValues",
    "DeviceKernels",
    "DeviceOutliers",
    "GroupScales",
    "Matrix",
    "UniformScales",
    "chunk_job",
    "plan_chunks",
    "raise_fault",
]
