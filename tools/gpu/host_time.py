"""What a token costs the host: launches, copies and waits of a model of 7 billion weights, and microseconds for each.

    python tools/gpu/host_time.py [--json] [--target sm_90] [--case NAME]

No GPU is needed, and nothing is launched: the loader's pipeline and products run on a device that keeps count, through
Triton's own launcher with a driver that does nothing. So microseconds are those of this package, of torch and of Triton
up to the call of the driver, on this machine; what the driver takes comes on top. The counts are exact. Products with
BF16 are torch's, for which the least of its products stands here.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from time import thread_time
from types import SimpleNamespace
from typing import Any, cast

import gpu_shapes
import numpy as np
import simulate_gpu
import torch
from gpu_counting import CountingDevice, NoDriver
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime import driver

from spqfmt import wire
from spqfmt.container.reader import Reader
from spqfmt.kernels.device.chunks import ChunkJob
from spqfmt.kernels.rans_header import STATE_BYTES, RansHeader
from spqfmt.kernels.triton.kernels import TritonKernels
from spqfmt.loaders.device import direct
from spqfmt.loaders.device.decoder import Decoder
from spqfmt.loaders.device.group_shipping import GroupShipment
from spqfmt.loaders.device.pieces import WeightPiece
from spqfmt.loaders.device.pipeline import Pipeline
from spqfmt.loaders.device.shipping import Jobs
from spqfmt.loaders.device.sides import DeviceSides, change_bytes, device_side_bytes, sides_in
from spqfmt.residency.device_rates import ASSUMED
from spqfmt.residency.plan import Plan

GIB = 1 << 30
_SLOW = 1.0
"""Products straight from blocks, so that all is decoded first."""
ROUNDS = 25
NO_LAUNCH = (
    "empty",
    "view",
    "as_strided",
    "slice",
    "expand",
    "detach",
    "select",
    "unsqueeze",
    "reshape",
    "t.",
)
"""Beginnings of torch's operations that give a device nothing to do."""


@dataclass(frozen=True)
class Cost:
    """What one token asks of the driver, and microseconds of one thread of the host for all of it."""

    case: str
    launches: int
    torch_launches: int
    copies: int
    host_waits: int
    events: int
    groups: int
    microseconds: float

    @property
    def microseconds_a_launch(self) -> float:
        """The same for each launch."""
        return self.microseconds / max(1, self.launches + self.torch_launches)


class _TorchLaunches(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts torch's operations that would give a device something to do."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__
        if not name.startswith(NO_LAUNCH):
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


class _LeastProducts:
    """In place of torch's products with large matrices, which a CPU would compute: as many, of one number each."""

    def __init__(self) -> None:
        self._x, self._w, self._y = (torch.zeros(1, 1, dtype=torch.bfloat16) for _ in range(3))

    def linear(self, _x: torch.Tensor, _weights: torch.Tensor) -> torch.Tensor:
        """A product in memory of its own."""
        return torch.nn.functional.linear(self._x, self._w)

    def mm(self, _x: torch.Tensor, _weights: torch.Tensor, *, out: torch.Tensor) -> torch.Tensor:
        """A product in memory that is given, for which other memory stands."""
        assert out.numel()
        return torch.mm(self._x, self._w, out=self._y)


class Token:
    """All products of one token, and the row of the embedding, as a model's modules ask for them."""

    def __init__(self, plan: Plan, target: NoDriver) -> None:
        self.device = CountingDevice(plan.on_host.rates)
        self.target = target
        self.plan = plan
        kernels = TritonKernels.__new__(TritonKernels)
        kernels._device = self.device.torch_device
        kernels.driver_of = lambda _: target
        shipments = [
            GroupShipment.of([p.item.part for p in plan.parts[g.first : g.stop]], zstd_on_device=False)
            for g in plan.on_host.groups
        ]
        for shipment in shipments:
            shipment.decodings = shipment._planned([_jobs(shipment, n) for n in range(len(shipment.parts))])
        readers: list[Reader] = [SimpleNamespace(path=None)]  # type: ignore[list-item]
        pipeline = Pipeline(
            device=self.device, plan=plan, shipments=shipments, readers=readers, decoder=Decoder(kernels)
        )
        engine = direct.DirectEngine(
            device=self.device,
            kernels=kernels,
            dtype=torch.bfloat16,
            hold=pipeline.hold,
            stored=pipeline.stored,
            workspace=self.device.allocate(plan.fixed.workspace),
            lock=nullcontext(),
        )
        pipeline.load()
        self._products, self._rows = [], []
        products = {p.name.partition("[")[0] for p in plan.parts if p.item.products}
        for name, pieces in pipeline.pieces.items():
            sides = self._sides(pieces)
            x = torch.zeros(1, pieces[0].record.matrix_shape[1], dtype=torch.bfloat16)
            if name in products:
                found = direct.direct_product(pieces, sides, engine)
                assert found is not None
                self._products.append((found, x))
            else:
                rows = direct.look_up(pieces, sides, engine)
                assert rows is not None
                self._rows.append(rows)
        self._id = torch.zeros(1, dtype=torch.int64)

    def _sides(self, pieces: tuple[WeightPiece, ...]) -> DeviceSides:
        record = pieces[0].record
        memory = self.device.allocate(device_side_bytes(record) + change_bytes(record))
        return sides_in(record, memory, with_changes=True)[1]

    def run(self) -> None:
        """Ask for all of one token."""
        for rows in self._rows:
            rows(self._id)
        for product, x in self._products:
            product(x, None)

    def cost(self, case: str) -> Cost:
        """Count one token, then time some."""
        with torch.inference_mode():
            for _ in range(3):  # what is used next is known from the second on
                self.run()
            self.target.launched.clear()
            self.device.counts.clear()
            with _TorchLaunches() as torch_launches:
                self.run()
            launched, counts = self.target.launched.total(), self.device.counts.copy()
            times = []
            for _ in range(ROUNDS):
                begin = thread_time()
                self.run()
                times.append(thread_time() - begin)
        return Cost(
            case=case,
            launches=launched,
            torch_launches=torch_launches.found.total(),
            copies=counts["copies"],
            host_waits=counts["host_waits"],
            events=counts["events"],
            groups=len(self.plan.on_host.groups),
            microseconds=round(1e6 * min(times), 1),
        )


def _jobs(shipment: GroupShipment, number: int) -> Jobs:
    """What chunks of a part would decode by, had they been read: blocks of the usual size."""
    own, place = shipment.shipments[number], shipment.places[number]
    found = []
    for at, size, codec, _, out, raw_bytes in own.jobs.tolist():
        header = _header(size, raw_bytes) if codec == wire.CODEC_RANS else None
        found.append(ChunkJob(codec, at + place.sent, size, out, raw_bytes=raw_bytes, header=header))
    return Jobs(found, [])


def _header(stored_bytes: int, raw_bytes: int) -> RansHeader:
    size = 1 << wire.RANS_MAX_BLOCK_LOG2
    n_symbols = np.array([min(size, raw_bytes - first) for first in range(0, raw_bytes, size)], np.int64)
    ends = np.cumsum(n_symbols) * (stored_bytes - 1024) // raw_bytes // 4 * 4 + 1024
    begins = np.concatenate(([1024], ends[:-1]))
    assert (ends - begins >= STATE_BYTES).all()
    frequencies = np.full(256, 16)
    return RansHeader(symbol=None, frequencies=frequencies, begins=begins, ends=ends, n_symbols=n_symbols)


def cases() -> Iterator[tuple[str, Callable[[], Plan]]]:
    """Plans of a 7B, by name."""
    shape = gpu_shapes.SHAPES[0]
    by_name = {codes.name.partition(",")[0]: codes for codes in gpu_shapes.CODES}
    rates = ASSUMED["rtx4090"]
    for name, memory, codes, block_log2 in (
        ("7B int8, decoded", 24, "int8", 16),
        ("7B int4, decoded", 24, "int4", 16),
        ("7B int8, compressed", 7, "int8", 16),
        ("7B int8, fused", 7, "int8", 14),
        ("7B bf16, compressed", 12, "bf16", 16),
        ("7B bf16, fused", 12, "bf16", 14),
    ):

        def plan(
            name: str = name, memory: int = memory, codes: str = codes, block_log2: int = block_log2
        ) -> Plan:
            own = replace(rates, block_bytes=1 << block_log2)
            found = simulate_gpu.plan(
                shape,
                by_name[codes],
                own if name != "7B bf16, compressed" else replace(own, fused=_SLOW),
                memory=memory * GIB,
                host=64 * GIB,
                compressed=True,
            )
            return found if name.endswith("decoded") else simulate_gpu.compressed_alone(found)

        yield name, plan


def main() -> int:
    """Run the tool, whose help is the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--target", default="sm_90", choices=("sm_80", "sm_90", "sm_100"))
    parser.add_argument("--case", help="This one alone.")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    least, module = _LeastProducts(), cast("Any", direct)
    module.linear, module.mm = least.linear, least.mm
    target = NoDriver(int(arguments.target.removeprefix("sm_")))
    driver.set_active(target)
    found = [
        Token(plan(), target).cost(name)
        for name, plan in cases()
        if arguments.case is None or name == arguments.case
    ]
    if arguments.json:
        print(json.dumps([asdict(cost) for cost in found]))
        return 0
    for cost in found:
        print(
            f"{cost.case}: {cost.launches} launches, {cost.torch_launches} of torch, {cost.copies} copies, "
            f"{cost.host_waits} host waits, {cost.events} events; {cost.microseconds:.0f} us a token, "
            f"{cost.microseconds_a_launch:.1f} us a launch"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
