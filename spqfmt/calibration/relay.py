"""Blocks quantized by several processes, each its share; hidden states of the samples go from one to the next.

    embed -> receive the states before the first block of the share -> quantize -> send those after its last

Each process computes what one alone computes, on the same states, so results do not depend on their number. Where each
block is to see what the quantized ones before it give (`sequential`), processes come one after the other. Else states
first go through all blocks as the source has them, which is quick, and processes quantize at the same time. A method
that counts what it makes (`ResumedMethod`) hands that on, too, behind the last block of each share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from spqfmt.calibration.engine import BlockResult, Calibration, Finished
from spqfmt.errors import EndedError
from spqfmt.processes import Processes, shares_of
from spqfmt.quantize.base import MethodOptions
from spqfmt.quantize.calibrated import ResumedMethod


class Relay:
    """What one process does of a calibration."""

    def __init__(
        self,
        engine: Calibration,
        options: MethodOptions,
        processes: Processes,
        counting: ResumedMethod | None = None,
    ) -> None:
        """`options` are those that a search has found; `counting` is the method where it counts what it makes."""
        self._engine, self._options, self._processes, self._counting = engine, options, processes, counting
        self.share = shares_of(len(engine.block_names), processes.size)[processes.number]
        """Numbers of the blocks that this process quantizes."""

    def run(
        self,
        finished: Finished = lambda name: None,
        is_finished: Callable[[str], bool] = lambda name: False,
        *,
        to_the_end: bool = False,
    ) -> Iterator[BlockResult]:
        """Give the results of blocks of the share, in order; all processes run at the same time.

        `is_finished`: whether `finished` will know the results of a block. Of such blocks those are given that other
        ones go by. `to_the_end`: the last block of the model is run too, for what stands behind. Raises EndedError
        where another process has failed.
        """
        engine, share, processes = self._engine, self.share, self._processes
        names, blocks = engine.block_names, engine.blocks
        missing = [number for number in share if not is_finished(names[number])]
        last = max((number for found in processes.exchange(missing) for number in found), default=-1)
        # Behind the last block that is missing nobody needs states; those of the source are sent before.
        end = last if engine.is_sequential else max(missing, default=-1)
        sends = share.stop <= last
        receives = processes.number > 0 and share.start <= last
        if receives:
            self._receive()
        if sends and not engine.is_sequential:
            before = list(blocks.hidden)
            for number in share:
                engine.pass_through(blocks, number)
            processes.send(blocks.hidden)
            blocks.hidden[:] = before
        if receives and self._counting is not None:
            self._counting.take_over(processes.take_over())
        for number in share:
            if number > (end if self._counting is None else last):
                break
            processes.check()
            if number <= end:
                advance = number < end or (to_the_end and number + 1 == len(names))
                yield engine.step(blocks, number, self._options, finished, advance=advance)
            elif (result := finished(names[number])) is not None:
                yield result
            else:
                raise EndedError(f"{names[number]} is not there any more, or damaged")
        if sends and engine.is_sequential:
            processes.send(_states(engine))
        if sends and self._counting is not None:
            processes.hand_on(self._counting.counted)

    def _receive(self) -> None:
        engine = self._engine
        engine.stage("waiting for the blocks before")
        states = _states(engine)
        found = [torch.empty(old.shape, dtype=old.dtype) for old in states]
        self._processes.receive(found)
        new = [now.to(old.device) for now, old in zip(found, states, strict=True)]
        blocks, n = engine.blocks, len(engine.blocks.hidden)
        blocks.hidden[:] = new[:n]
        if blocks.unquantized is not None:
            blocks.unquantized[:] = new[n:]


def _states(engine: Calibration) -> list[torch.Tensor]:
    """The hidden states of all samples, and behind them those of the unquantized model where it is run, too."""
    return [*engine.blocks.hidden, *(engine.blocks.unquantized or ())]
