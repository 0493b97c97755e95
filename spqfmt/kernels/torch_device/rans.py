"""Chunks -> bytes: all lanes of all blocks of a chunk at once."""

import torch

from spqfmt.kernels.device.chunks import DecodePlan
from spqfmt.kernels.torch_device.planes import merge_planes
from spqfmt.kernels.torch_rans import RansBlocks, decode_blocks


def decode_chunks(stored: torch.Tensor, plan: DecodePlan, out: torch.Tensor, error: torch.Tensor) -> None:
    """Decode every job of the plan; faults are added to `error`."""
    for fill in plan.fills:
        out[fill.offset : fill.offset + fill.n] = fill.symbol
    for copy in plan.copies:
        out[copy.offset : copy.offset + copy.n] = stored[copy.stored_offset : copy.stored_offset + copy.n]
    for job in plan.jobs:
        header = job.header
        if header is None or header.symbol is not None:
            continue
        # the bytes of the chunk alone: a damaged block reads zeros behind them, not its neighbours
        chunk = stored[job.stored_offset : job.stored_offset + job.stored_bytes]
        words = chunk.view(torch.int16).long() & 0xFFFF
        blocks = RansBlocks(
            *(
                torch.from_numpy(a).to(stored.device)
                for a in (header.begins // 2, header.ends // 2, header.n_symbols)
            )
        )
        symbols, faults = decode_blocks(words, blocks, torch.from_numpy(header.frequencies).to(stored.device))
        found = symbols.reshape(-1)[: job.raw_bytes]
        target = out[job.out_offset : job.out_offset + job.out_bytes]
        if job.low is None:
            target[:] = found
        else:
            low = stored[job.low : job.low + job.raw_bytes]
            merge_planes(torch.stack((low, found.to(torch.uint8))), target.view(torch.int16), rotated=True)
        for fault in set(faults.tolist()):
            error |= fault
