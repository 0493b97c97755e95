"""The rans decoder as torch operations: an oracle that shares no code with the native decoders.

All lanes of all blocks take a step at once. Slow (tens of MB/s) and plain.
"""

from typing import NamedTuple

import numpy as np
import torch

from spqfmt import wire
from spqfmt.errors import CorruptError
from spqfmt.kernels.native import Buffer
from spqfmt.kernels.rans_header import GROUP, TOTAL, read_header

FAULTS = (
    "a first state of a rans block is below 2^16",
    "rans block ends before its symbols",
    "rans block has words left after its symbols",
    "padding word of a rans block is not zero",
    "a last state of a rans block is not 2^16",
    "unused bits of the last byte are not zero",
    "path codes that are not from -64 to 63",
)
"""What only decoding finds: bit k of the faults stands for FAULTS[k]. The last two are not of rans, but of packed
elements and of path codes."""
UNUSED_BITS_FAULT, PATH_FAULT = len(FAULTS) - 2, len(FAULTS) - 1


class RansBlocks(NamedTuple):
    """Blocks to decode side by side: int64[n_blocks] each. `begins` and `ends` count 16-bit words."""

    begins: torch.Tensor
    ends: torch.Tensor
    n_symbols: torch.Tensor


def rans_decode(src: Buffer, dst: Buffer) -> None:
    """Decode the rans chunk `src` into `dst` of exactly its raw size; errors as native.rans_decode."""
    chunk = np.frombuffer(src, np.uint8)
    out = np.frombuffer(dst, np.uint8)
    if not out.flags.writeable:
        raise ValueError("dst is read-only")
    out[:] = decode(chunk, out.size).numpy()


def decode(chunk: Buffer, raw_bytes: int) -> torch.Tensor:
    """Decode a chunk of `raw_bytes` symbols into a new uint8[raw_bytes] tensor."""
    header = read_header(chunk, raw_bytes)
    if header.symbol is not None:
        return torch.full((raw_bytes,), header.symbol, dtype=torch.uint8)
    words = torch.tensor(np.frombuffer(chunk, "<u2").astype(np.int64))
    blocks = RansBlocks(
        *(torch.from_numpy(a) for a in (header.begins // 2, header.ends // 2, header.n_symbols))
    )
    symbols, faults = decode_blocks(words, blocks, torch.from_numpy(header.frequencies))
    raise_fault(int(faults[faults != 0][0]) if bool(faults.any()) else 0)
    return symbols.reshape(-1)[:raw_bytes]


def raise_fault(faults: int, what: str = "") -> None:
    """Raise CorruptError for the first of FAULTS whose bit is set; nothing for 0. `what` names the data."""
    for number, reason in enumerate(FAULTS):
        if faults >> number & 1:
            raise CorruptError(f"{what}: {reason}" if what else reason)


def decode_blocks(
    words: torch.Tensor, blocks: RansBlocks, frequencies: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Decode blocks of `words` (int64, 0 to 65,535) that share the table of `frequencies` (int64[256]).

    Returns uint8[n_blocks, longest block, rounded up to groups] and the faults of each, int64[n_blocks].
    """
    begins, ends, n_symbols = blocks
    cumulative = torch.cumsum(frequencies, 0) - frequencies
    symbol_of_slot = torch.repeat_interleave(
        torch.arange(256, device=words.device), frequencies, output_size=TOTAL
    )
    state_words = words[begins[:, None] + torch.arange(2 * wire.RANS_LANES, device=words.device)]
    x = state_words[:, 0::2] | state_words[:, 1::2] << 16
    faults = (x < wire.RANS_STATE_LOWER_BOUND).any(1).long()
    at = begins + 2 * wire.RANS_LANES
    n_steps = -(-n_symbols // GROUP) * wire.RANS_SYMBOLS_PER_LANE
    most_steps = int(n_steps.max())
    out = torch.empty((len(begins), most_steps, wire.RANS_LANES), dtype=torch.uint8, device=words.device)
    for step in range(most_steps):
        running = (step < n_steps)[:, None]
        slot = x % TOTAL
        symbol = symbol_of_slot[slot]
        out[:, step] = symbol.to(torch.uint8)
        y = frequencies[symbol] * (x // TOTAL) + slot - cumulative[symbol]
        takes = (y < wire.RANS_STATE_LOWER_BOUND) & running
        rank = torch.cumsum(takes, 1) - 1
        faults |= (at + takes.sum(1) > ends).long() << 1
        word = words[(at[:, None] + rank).clamp(0, len(words) - 1)]
        x = torch.where(running, torch.where(takes, y << 16 | word, y), x)
        at = at + takes.sum(1)
    left = ends - at
    faults |= (left > 1).long() << 2
    faults |= ((left == 1) & (words[ends - 1] != 0)).long() << 3
    faults |= (x != wire.RANS_STATE_LOWER_BOUND).any(1).long() << 4
    # step 4g + k of lane l is symbol 128g + 4l + k
    quads = out.reshape(len(begins), -1, wire.RANS_SYMBOLS_PER_LANE, wire.RANS_LANES)
    return quads.transpose(2, 3).reshape(len(begins), -1), faults
