"""The launches that decode the chunks of a plan, tables, then blocks; that merge planes; that unfold paths."""

from functools import cache, partial

import torch

from spqfmt.kernels.device.chunks import BLOCKS_AT_ONCE, CUMULATIVE_WORDS, DecodePlan
from spqfmt.kernels.device.merging import MergePlan, record_words
from spqfmt.kernels.device.prepared import ALIGNMENT, Decode
from spqfmt.kernels.device.unfolding import UnfoldPlan
from spqfmt.kernels.triton import planes, rans, trellis
from spqfmt.kernels.triton.launch import Launch, Open, prepare
from spqfmt.kernels.triton.products import EXACT

WARP_A_BLOCK = {"num_warps": BLOCKS_AT_ONCE, **EXACT}
_OPEN = {
    "stored": Open(torch.int32),
    "words": Open(torch.int16),
    "records": Open(torch.int32),
    "tables": Open(torch.int32),
}
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@cache
def _build(device: torch.device) -> Launch:
    """The launch that builds tables, the same for all plans of a device."""
    arguments = {"records": Open(torch.int32), "tables": Open(torch.int32)}
    return prepare(rans.build_tables, (0,), arguments, EXACT)


@cache
def _decode(device: torch.device, *, words: bool, pairs: bool) -> Launch:
    """The launch that decodes blocks to words or to bytes, or to as many pairs of bytes."""
    to = {(True, False): torch.int32, (False, False): torch.uint8, (True, True): torch.int64}
    out = Open(to.get((words, pairs), torch.int16))
    opened = {"out": out, "error": Open(torch.int32, anywhere=True), "first_block": Open(None)}
    arguments = {**_OPEN, **opened, "WORDS": words, "PAIRS": pairs}
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
    states, words = _as(stored, 4), _as(stored, 2)
    build = _build(device) if plan.n_tables else None
    kinds = (
        (plan.n_word_blocks, True, False, _as(out, 4)),
        (plan.n_byte_blocks, False, False, out),
        (plan.n_pair_word_blocks, True, True, _as(out, 8)),
        (plan.n_pair_blocks, False, True, _as(out, 2)),
    )
    launches, first = [], 0
    for n_blocks, in_words, in_pairs, target in kinds:
        if n_blocks:
            launch = _decode(device, words=in_words, pairs=in_pairs)
            given = (states, words, blocks, tables, target, error, first)
            launches.append((launch, given, n_blocks // BLOCKS_AT_ONCE))
        first += n_blocks

    def decode() -> None:
        for target, symbol in fills:
            target.fill_(symbol)
        for target, source in copies:
            target.copy_(source, non_blocking=True)
        if build is not None:
            build(of_tables, tables, width=plan.n_tables)
        for launch, given, width in launches:
            launch(*given, width=width)

    return decode


@cache
def _merge(device: torch.device, size: int, *, rotated: bool) -> Launch:
    """The launch that puts planes of elements of this size together."""
    dtypes = {"stored": torch.uint8, "scratch": torch.uint8, "records": torch.int32, "out": _INTEGERS[size]}
    # Planes begin anywhere inside of them, too: nothing is gained where they begin themselves.
    opened = {name: Open(dtype, anywhere=True) for name, dtype in dtypes.items()}
    return prepare(planes.merge_planes, (0,), {**opened, "SIZE": size, "ROTATED": rotated}, EXACT)


def prepare_merge(stored: torch.Tensor, scratch: torch.Tensor, plan: MergePlan, out: torch.Tensor) -> Decode:
    """The launches of DeviceKernels.prepare_merge."""
    launches, at = [], 0
    for size, rotated, n_tiles in plan.launches:
        end = at + n_tiles * record_words(size)
        launch = _merge(stored.device, size, rotated=rotated)
        launches.append((launch, plan.records[at:end], _as(out, size), n_tiles))
        at = end

    def merge() -> None:
        for launch, records, to, width in launches:
            launch(stored, scratch, records, to, width=width)

    return merge


@cache
def _unfold(device: torch.device) -> Launch:
    """The launch that makes codes of path codes."""
    dtypes = {"records": torch.int32, "out": torch.uint8, "error": torch.int32}
    opened = {name: Open(dtype, anywhere=True) for name, dtype in dtypes.items()}
    return prepare(trellis.unfold_paths, (0,), opened, {"num_warps": 2, **EXACT})


def prepare_unfold(plan: UnfoldPlan, out: torch.Tensor, error: torch.Tensor) -> Decode:
    """The launch of DeviceKernels.prepare_unfold."""
    launch = _unfold(out.device)
    return partial(launch, plan.records, out, error, width=plan.n_programs)


def _as(tensor: torch.Tensor, size: int) -> torch.Tensor:
    """The same bytes as integers of `size` bytes, without those behind the last whole one."""
    return tensor[: tensor.numel() // size * size].view(_INTEGERS[size])
