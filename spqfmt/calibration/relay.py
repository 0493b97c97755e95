"""Blocks quantized by several processes, each its share; hidden states of the samples go from one to the next.

    embed -> receive the states before the first block of the share -> quantize -> send those after its last

Each process computes what one alone computes, on the same states, so results do not depend on their number. Where each
block is to see what the quantized ones before it give (`sequential`), processes come one after the other. Else states
first go through all blocks as the source has them, which is quick, and processes quantize at the same time.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from spqfmt.calibration.engine import BlockResult, Calibration, Finished
from spqfmt.processes import Processes, shares_of
from spqfmt.quantize.base import MethodOptions


class Relay:
    """What one process does of a calibration."""

    def __init__(self, engine: Calibration, options: MethodOptions, processes: Processes) -> None:
        """`options` are those that a search has found."""
        self._engine, self._options, self._processes = engine, options, processes
        self.share = shares_of(len(engine.block_names), processes.size)[processes.number]
        """Numbers of the blocks that this process quantizes."""

    def run(self, finished: Finished) -> Iterator[BlockResult]:
        """Give the results of the share that `finished` does not know, in order; all processes run at the same time.

        Raises EndedError where another process has failed.
        """
        engine, share, processes = self._engine, self.share, self._processes
        names, blocks = engine.block_names, engine.blocks
        missing = [number for number in share if finished(names[number]) is None]
        last = max((number for found in processes.exchange(missing) for number in found), default=-1)
        # Behind the last block that is missing nobody needs states; those of the source are sent before.
        end = last if engine.is_sequential else max(missing, default=-1)
        sends = share.stop <= last
        if processes.number and share.start <= last:
            self._receive()
        if sends and not engine.is_sequential:
            before = list(blocks.hidden)
            for number in share:
                engine.pass_through(blocks, number)
            processes.send(blocks.hidden)
            blocks.hidden[:] = before
        for number in share:
            if number > end:
                break
            processes.check()
            result = engine.step(blocks, number, self._options, finished, advance=number < end)
            if number in missing:
                yield result
        if sends and engine.is_sequential:
            processes.send(blocks.hidden)

    def _receive(self) -> None:
        states = self._engine.blocks.hidden
        # Of a method that corrects there would be the unquantized model's too: ecq alone, which one process packs.
        assert self._engine.blocks.unquantized is None
        self._engine.stage("waiting for the blocks before")
        found = [torch.empty(old.shape, dtype=old.dtype) for old in states]
        self._processes.receive(found)
        states[:] = [new.to(old.device) for new, old in zip(found, states, strict=True)]
