"""The launches that decode the chunks of a plan: tables, then blocks, all of them at once."""

from functools import cache

import torch

from spqfmt.kernels.device.chunks import BLOCKS_AT_ONCE, CUMULATIVE_WORDS, DecodePlan
from spqfmt.kernels.device.prepared import ALIGNMENT, Decode
from spqfmt.kernels.triton import rans
from spqfmt.kernels.triton.launch import Launch, Open, prepare
from spqfmt.kernels.triton.products import EXACT

WARP_A_BLOCK = {"num_warps": BLOCKS_AT_ONCE, **EXACT}
_OPEN = {
    "stored": Open(torch.int32),
    "words": Open(torch.int16),
    "records": Open(torch.int32),
    "tables": Open(torch.int32),
}
_INTEGERS = {2: torch.int16, 4: torch.int32}


@cache
def _build(device: torch.device) -> Launch:
    """The launch that builds tables, the same for all plans of a device."""
    arguments = {"records": Open(torch.int32), "tables": Open(torch.int32)}
    return prepare(rans.build_tables, (0,), arguments, EXACT)


@cache
def _decode(device: torch.device, *, words: bool) -> Launch:
    """The launch that decodes blocks to words or to bytes."""
    out = {"out": Open(torch.int32 if words else torch.uint8), "error": Open(torch.int32, anywhere=True)}
    arguments = {**_OPEN, **out, "first_block": Open(None), "WORDS": words}
    return prepare(rans.decode_blocks, (0,), arguments, WARP_A_BLOCK)


def prepare_decode(
    stored: torch.Tensor, plan: DecodePlan, out: torch.Tensor, tables: torch.Tensor, error: torch.Tensor
) -> Decode:
    """The launches of DeviceKernels.prepare_decode. ValueError: tensors that do not begin at multiples of ALIGNMENT."""
    if any(tensor.data_ptr() % ALIGNMENT for tensor in (stored, out, tables, plan.records)):
        raise ValueError(f"chunks are decoded between tensors at multiples of {ALIGNMENT}")
    device = stored.device
    fills = [(out[fill.offset : fill.offset + fill.n], fill.symbol) for fill in plan.fills]
    copies = [
        (out[c.offset : c.offset + c.n], stored[c.stored_offset : c.stored_offset + c.n]) for c in plan.copies
    ]
    of_tables, blocks = plan.records, plan.records[plan.n_tables * CUMULATIVE_WORDS :]
    states, words, targets = _as(stored, 4), _as(stored, 2), _as(out, 4)
    build = _build(device) if plan.n_tables else None
    to_words = _decode(device, words=True) if plan.n_word_blocks else None
    to_bytes = _decode(device, words=False) if plan.n_byte_blocks else None
    n_word_programs, n_byte_programs = (n // BLOCKS_AT_ONCE for n in (plan.n_word_blocks, plan.n_byte_blocks))

    def decode() -> None:
        for target, symbol in fills:
            target.fill_(symbol)
        for target, source in copies:
            target.copy_(source, non_blocking=True)
        if build is not None:
            build(of_tables, tables, width=plan.n_tables)
        if to_words is not None:
            to_words(states, words, blocks, tables, targets, error, 0, width=n_word_programs)
        if to_bytes is not None:
            to_bytes(states, words, blocks, tables, out, error, plan.n_word_blocks, width=n_byte_programs)

    return decode


def _as(tensor: torch.Tensor, size: int) -> torch.Tensor:
    """The same bytes as integers of `size` bytes, without those behind the last whole one."""
    return tensor[: tensor.numel() // size * size].view(_INTEGERS[size])
