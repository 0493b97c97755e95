"""Weights in the layout of bitsandbytes, as its own library rounds them: NF4 and FP4 in blocks, and LLM.int8.

Codes of four bits are of the nearest levels. Scales may be codes as well: less their mean, of the nearest of 256
numbers.
"""

from __future__ import annotations

import json

import torch

Arrays = dict[str, torch.Tensor]
BLOCK, NESTED_BLOCK = 64, 256
NF4 = torch.tensor(
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
        0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ]
)  # fmt: skip
_FP4 = torch.tensor([0, 0.0625, 8, 12, 4, 6, 2, 3]) / 12
FP4 = torch.cat([_FP4, torch.tensor([0.0]), -_FP4[1:]])
MAPS = {"nf4": NF4, "fp4": FP4}


def four_bits(
    name: str, weight: torch.Tensor, kind: str, *, is_nested: bool = False, block: int = BLOCK
) -> Arrays:
    """Make codes of the levels of `kind` with a scale for every `block` weights, whatever the rows are."""
    codes, scales = _in_blocks(weight.flatten().float(), MAPS[kind], block)
    state: dict[str, object] = {
        "quant_type": kind,
        "blocksize": block,
        "dtype": str(weight.dtype).removeprefix("torch."),
        "shape": list(weight.shape),
    }
    arrays = {
        name: (codes[0::2] << 4 | codes[1::2]).unsqueeze(1),
        f"{name}.absmax": scales,
        f"{name}.quant_map": MAPS[kind].clone(),
    }
    if is_nested:
        offset = scales.mean()
        of_scales, steps = _in_blocks(scales - offset, dynamic_map(), NESTED_BLOCK)
        arrays |= {
            f"{name}.absmax": of_scales,
            f"{name}.nested_absmax": steps,
            f"{name}.nested_quant_map": dynamic_map(),
        }
        nested = {"nested_blocksize": NESTED_BLOCK, "nested_dtype": "float32"}
        state |= nested | {"nested_offset": offset.item()}
    text = torch.frombuffer(bytearray(json.dumps(state).encode()), dtype=torch.uint8)
    return {**arrays, f"{name}.quant_state.bitsandbytes__{kind}": text}


def int8(name: str, weight: torch.Tensor) -> Arrays:
    """Make codes of eight bits with the largest magnitude of each row, 127 of its steps."""
    largest = weight.abs().amax(1).float()
    stem = name.removesuffix("weight")
    return {
        name: (weight * (127.0 / largest[:, None])).round().to(torch.int8),
        f"{stem}SCB": largest,
        f"{stem}weight_format": torch.tensor(0, dtype=torch.uint8),
    }


def dynamic_map() -> torch.Tensor:
    """The 256 numbers that scales are rounded to: seven decades, the upper ones in finer steps."""
    numbers = [0.0, 1.0]
    for decade in range(7):
        bounds = torch.linspace(0.1, 1, 2**decade + 1, dtype=torch.float32)
        middles = (bounds[:-1] + bounds[1:]) / 2
        power = 10 ** (decade - 6)
        numbers += (power * middles).tolist() + (-power * middles).tolist()
    return torch.tensor(sorted(numbers), dtype=torch.float32)


def _in_blocks(weights: torch.Tensor, levels: torch.Tensor, block: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes of the nearest levels, and the largest magnitude of each block."""
    padded = torch.nn.functional.pad(weights, (0, -len(weights) % block)).reshape(-1, block)
    largest = padded.abs().amax(1)
    scaled = (padded * (1 / largest[:, None].clamp_min(1e-38))).clamp(-1, 1)
    ordered, order = levels.sort(stable=True)
    codes = order[torch.bucketize(scaled, (ordered[:-1] + ordered[1:]) / 2)]
    return codes.to(torch.uint8).flatten()[: len(weights)], largest
