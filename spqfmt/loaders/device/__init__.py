"""Weights on a device: memory that is taken once, compressed chunks on their way to it, products from them."""

from spqfmt.loaders.device.cuda import CudaDevice
from spqfmt.loaders.device.engine import DeviceWeights
from spqfmt.loaders.device.seam import Device
from spqfmt.loaders.device.simulated import BufferConflictError, Fault, SimulatedDevice

__all__ = ["BufferConflictError", "CudaDevice", "Device", "DeviceWeights", "Fault", "SimulatedDevice"]
