"""How fast a device and its host are: what the planner and the simulated device compute with.

There is no way to measure a device that is not there: rates come from a JSON file that tools/gpu/gpu_check.py wrote on
a real one, or they are assumed, and then whatever is derived from them says so.
"""

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path

from spqfmt.errors import OptionError
from spqfmt.residency.decode_rates import parse_rates
from spqfmt.stand_ins import read_text

INSTRUCTIONS_PER_32_SYMBOLS = 33
"""Instructions of the inner loop of rans decoding: what the kernels are checked against by their machine code."""
ANS_SHARE = 0.42
"""Share of what a card could issue at the above number that a decoder is assumed to reach. DietGPU, whose coder is of
our kind (32 lanes a warp), reports 250 to 410 GB/s on an A100: 0.42 at least. Products fused with a decoder
(bf16-huffman-infer 0.0.3, 256 tokens of a 7B in 13.0 s on an RTX 4060 Ti, in 7.2 s on an A6000) are no faster than that
decodes: 0.41 and 0.43."""
NVCOMP_ANS_SHARE = 0.31
"""The same of the slowest that is published: nvCOMP's ANS, 177 GB/s on an A40 (84 multiprocessors at 1.74 GHz), arXiv
2502.15443."""
ZSTD_SHARE = 0.034
"""The same for nvCOMP's zstd there, 19 GB/s."""
STEP_CYCLES = 113.6
"""Cycles of one step of a block, whose steps depend on each other, beside its two loads: the critical path of the
machine code (docs/gpu-kernels.md), with published latencies of instructions."""
FUSED_STEP_CYCLES = 105.0
"""Likewise of a step whose symbols are multiplied, beside one load: its table is in shared memory."""
COMPUTE_SHARE = 0.8
"""Share of the memory bandwidth at which a product for one token is assumed to read codes."""


@dataclass(frozen=True)
class DeviceRates:
    """Bytes a second, and the seconds that any operation on a stream takes besides.

    `read`: from the file into host memory, checksum included. `copy`: from pinned host memory to the device. `rans`
    and `zstd`: raw bytes decoded on the device. `move`: copied within device memory. `compute`: bytes of decoded
    codes that a product for one token goes through. `host_decode`: raw bytes decoded by one thread of the host.

    However fast, a launch that decodes takes as long as one of its blocks: a warp makes 32 symbols of it in `step_s`
    seconds, 0 where that is not known, and `warps` blocks are decoded at once. `block_bytes` is the size of the blocks.

    `fused`: raw bytes that are multiplied as they are decoded, for one token; 0 where it was not measured: as `rans`.
    `fused_step_s`: the seconds of a step there; 0: as `step_s`.
    """

    name: str
    assumed: bool
    read: float
    copy: float
    rans: float
    zstd: float
    move: float
    compute: float
    host_decode: float
    operation_s: float
    step_s: float = 0.0
    warps: int = 1
    block_bytes: int = 1 << 16
    fused: float = 0.0
    fused_step_s: float = 0.0

    def seconds(self, amounts: Mapping[str, int]) -> float:
        """Time of one operation that handles so many bytes of each kind, the kinds being this class's rates."""
        seconds = self.operation_s + sum(n_bytes / self._rate(kind) for kind, n_bytes in amounts.items())
        for kind, step_s in (("rans", self.step_s), ("fused", self.fused_step_s or self.step_s)):
            n_bytes = amounts.get(kind, 0)
            seconds += max(0.0, self._least_seconds(n_bytes, step_s) - n_bytes / self._rate(kind))
        return seconds

    def _least_seconds(self, n_bytes: int, step_s: float) -> float:
        """What decoding so many bytes takes by the length of blocks alone: one after the other in each warp's place."""
        turns = -(-n_bytes // (self.block_bytes * self.warps))
        return turns * min(n_bytes, self.block_bytes) / 32 * step_s

    def _rate(self, kind: str) -> float:
        rate: float = getattr(self, kind)
        return rate or self.rans if kind == "fused" else rate

    def to_json(self) -> dict[str, object]:
        """Return the object that `read_rates` reads."""
        return asdict(self)


def _assume(
    name: str,
    multiprocessors: int,
    ghz: float,
    memory: float,
    copy: float,
    warps: int,
    latency: float,
) -> DeviceRates:
    """Derive rates from a data sheet: multiprocessors (of 4 schedulers), clock, bytes a second of memory and PCIe.

    `warps` of a multiprocessor; `latency` of the first cache in cycles, where words are that are asked for ahead.
    """
    issue_bound = multiprocessors * 4 * ghz * 1e9 * 32 / INSTRUCTIONS_PER_32_SYMBOLS
    return DeviceRates(
        name=name,
        assumed=True,
        read=3.5e9,
        copy=copy,
        rans=ANS_SHARE * issue_bound,
        zstd=ZSTD_SHARE * issue_bound,
        move=memory / 2,
        compute=COMPUTE_SHARE * memory,
        host_decode=1.2e9,
        operation_s=8e-6,
        step_s=(STEP_CYCLES + 2 * latency) / (ghz * 1e9),
        fused_step_s=(FUSED_STEP_CYCLES + latency) / (ghz * 1e9),
        warps=multiprocessors * warps,
    )


_ADA, _AMPERE, _HOPPER = 43.4, 37.9, 40.7
"""Latencies of the first cache by generation, as arXiv 2402.13499 measures them."""


ASSUMED: Mapping[str, DeviceRates] = {
    rates.name: rates
    for rates in (
        _assume("rtx4060", 24, 2.46, memory=272e9, copy=12.5e9, warps=48, latency=_ADA),
        _assume("rtx4060ti", 34, 2.54, memory=288e9, copy=12.5e9, warps=48, latency=_ADA),
        _assume("rtx4090", 128, 2.52, memory=1008e9, copy=25e9, warps=48, latency=_ADA),
        _assume("a100", 108, 1.41, memory=1555e9, copy=25e9, warps=64, latency=_AMPERE),
        _assume("h100", 132, 1.755, memory=3350e9, copy=50e9, warps=64, latency=_HOPPER),
    )
}
"""Rates of cards, by name. PCIe 4.0 x8 and x16 and 5.0 x16 at about 80 % of their nominal rates, a disk of 3.5 GB/s."""
DEFAULT = ASSUMED["rtx4090"]
_MAY_BE_0 = ("operation_s", "step_s", "fused", "fused_step_s")
_MAKES_THEM = "`python tools/gpu/gpu_check.py --rates FILE` measures those of a device"


def assumed_for(card: str) -> DeviceRates:
    """Find rates by a name such as "NVIDIA GeForce RTX 4090"; DEFAULT for a card that is not in the table."""
    plain = card.lower().replace(" ", "")
    found = [name for name in ASSUMED if name in plain]
    return ASSUMED[max(found, key=len)] if found else DEFAULT


def read_rates(source: str | Path) -> DeviceRates:
    """Rates by the name of an assumed card, or from a JSON file with the fields of DeviceRates. Raises OptionError."""
    if str(source) in ASSUMED:
        return ASSUMED[str(source)]
    path = Path(source)
    try:
        found = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise OptionError(
            f"device rates {source}: neither a readable JSON file nor one of {', '.join(ASSUMED)}"
        ) from error
    if parse_rates(found) is not None:
        raise OptionError(
            f"{path}: decode rates of `spqfmt bench --rates`, which pack and repack take; {_MAKES_THEM}"
        )
    names = {field.name for field in fields(DeviceRates)}
    more = {field.name for field in fields(DeviceRates) if field.default is not MISSING}
    if isinstance(found, dict):
        # Rates that were measured before there were these.
        names -= more - found.keys()
    if not isinstance(found, dict) or found.keys() != names:
        raise OptionError(
            f"{path}: device rates are an object with the keys {', '.join(sorted(names))}; {_MAKES_THEM}"
        )
    numbers = {name: found[name] for name in names - {"name", "assumed"}}
    if not isinstance(found["name"], str) or not isinstance(found["assumed"], bool):
        raise OptionError(f"{path}: name is a string and assumed is true or false")
    for name, number in numbers.items():
        if name in {"warps", "block_bytes"} and type(number) is not int:
            raise OptionError(f"{path}: {name} is not a whole number")
        if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number < float("inf"):
            raise OptionError(f"{path}: {name} is not a number of bytes a second or of seconds")
        if number == 0 and name not in _MAY_BE_0:
            raise OptionError(f"{path}: {name} is 0")
    return DeviceRates(**found)
