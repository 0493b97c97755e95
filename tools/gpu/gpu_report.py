"""What tools/gpu/gpu_check.py runs, how long things take, and the rows that come out."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from time import perf_counter

import torch

from spqfmt.kernels.device import DeviceKernels


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


FULL = Sizes(
    decode_bytes=256 << 20, edge=4096, n_matrices=16, hidden=1024, n_layers=16, n_tokens=32, rounds=9
)
SMALL = Sizes(decode_bytes=1 << 17, edge=256, n_matrices=2, hidden=64, n_layers=3, n_tokens=2, rounds=1)


@dataclass(frozen=True)
class Row:
    """One line of the result. `ok` is None for a figure that cannot be wrong."""

    section: str
    what: str
    value: float | None
    unit: str
    ok: bool | None
    note: str = ""


class Check:
    """The machine that is checked, and what was found so far."""

    def __init__(self, device: torch.device, kernels: DeviceKernels, sizes: Sizes) -> None:
        self.device = device
        self.kernels = kernels
        self.sizes = sizes
        self.rows: list[Row] = []
        self.figures: dict[str, float] = {}

    @property
    def on_gpu(self) -> bool:
        """Whether times mean anything."""
        return self.device.type == "cuda"

    def add(
        self, section: str, what: str, value: float | None, unit: str, ok: bool | None, note: str = ""
    ) -> None:
        """Add a row to the report."""
        self.rows.append(Row(section=section, what=what, value=value, unit=unit, ok=ok, note=note))

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


def table(check: Check) -> Iterator[str]:
    """The rows, for a reader."""
    yield f"{'what':58} {'value':>10} {'unit':14} {'right':6} note"
    for row in check.rows:
        value = "" if row.value is None else f"{row.value:.3g}"
        right = {True: "yes", False: "NO", None: ""}[row.ok]
        yield f"{row.section + ': ' + row.what:58} {value:>10} {row.unit:14} {right:6} {row.note}".rstrip()
