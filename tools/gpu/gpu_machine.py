"""The machine that a section of tools/gpu/gpu_check.py runs on, how much it runs there, and how long things take."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from gpu_lines import NoDeviceError, Options, Recorder

from spqfmt.errors import BackendError
from spqfmt.kernels.choose import kernels_for
from spqfmt.kernels.device import DeviceKernels
from spqfmt.loaders.device import CudaDevice


@dataclass(frozen=True)
class Sizes:
    """How much is run: bytes decoded at a time, edge and number of the matrices, the model, its tokens, and rounds."""

    decode_bytes: int
    edge: int
    n_matrices: int
    hidden: int
    n_layers: int
    n_tokens: int
    rounds: int


FULL = Sizes(decode_bytes=256 << 20, edge=4096, n_matrices=16, hidden=4096, n_layers=4, n_tokens=32, rounds=9)
SMALL = Sizes(decode_bytes=1 << 17, edge=256, n_matrices=2, hidden=64, n_layers=3, n_tokens=2, rounds=1)


class Check(Recorder):
    """A recorder that knows the machine that is checked."""

    def __init__(
        self,
        device: torch.device,
        kernels: DeviceKernels,
        sizes: Sizes,
        path: Path | None = None,
        section: str = "",
    ) -> None:
        super().__init__(path, section)
        self.device = device
        self.kernels = kernels
        self.sizes = sizes

    @property
    def on_gpu(self) -> bool:
        """Whether times mean anything."""
        return self.device.type == "cuda"

    def seconds(self, run: Callable[[], object]) -> float:
        """Median time of `run` on the device, launches included."""
        run()
        times = []
        for _ in range(self.sizes.rounds):
            if self.on_gpu:
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
                begin.record()
                run()
                end.record()
                end.synchronize()
                times.append(begin.elapsed_time(end) / 1e3)
            else:
                begun = perf_counter()
                run()
                times.append(perf_counter() - begun)
        return max(float(median(times)), 1e-9)

    def on(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor on the device."""
        return tensor.to(self.device)

    def synchronize(self) -> None:
        """Wait for all that the device was given."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def after_failure(self) -> None:
        """After an error of CUDA nothing works in this process any more: the next one goes on behind the case."""
        try:
            self.synchronize()
        except RuntimeError as error:
            raise SystemExit(f"the device is lost to this process: {' '.join(str(error).split())}") from error


def open_check(options: Options) -> Check:
    """What a section begins with. Raises NoDeviceError."""
    if options.device == "simulated":
        device, sizes = torch.device("cpu"), SMALL
    else:
        try:
            device = CudaDevice(options.device).torch_device
        except BackendError as error:
            raise NoDeviceError(str(error)) from error
        sizes = FULL if device.type == "cuda" else SMALL
    kernels = kernels_for(device, options.kernels)
    return Check(device=device, kernels=kernels, sizes=sizes, path=options.lines, section=options.section)
