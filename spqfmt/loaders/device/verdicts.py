"""What decoding found wrong with each group: words on the device that the host reads where it waits anyway."""

from collections.abc import Sequence
from functools import partial

import torch

from spqfmt.container.reader import Reader
from spqfmt.loaders.device.decoder import Decoder
from spqfmt.loaders.device.group_shipping import GroupShipment
from spqfmt.loaders.device.seam import Device, Memory, Queue, Work


class Verdicts:
    """`memory` has an int32 for each of the `shipments`, in order."""

    def __init__(
        self,
        device: Device,
        memory: Memory,
        shipments: Sequence[GroupShipment],
        readers: Sequence[Reader],
        decoder: Decoder,
    ) -> None:
        self._device = device
        self._memory = memory
        self._shipments = shipments
        self._readers = readers
        self._decoder = decoder
        self._proven: set[int] = set()

    def word(self, number: int) -> Memory:
        """Where decoding a group adds what is wrong."""
        return self._memory.part(4 * number, 4)

    def clear(self) -> None:
        """Nothing is wrong yet."""
        self._clear(self._memory)

    def prove(self, number: int) -> None:
        """Raise what the decoder finds wrong with a group that is decoded for the first time; the host waits for it."""
        if number not in self._proven:
            self._device.synchronize(self._device.record(Queue.DECODE))
            self.judge([number])

    def judge(self, numbers: Sequence[int]) -> None:
        """Raise what was found wrong with groups whose decoding is over, the first of them."""
        memory = self._memory
        work = Work("verdicts", (memory,))
        found = self._device.enqueue(Queue.DECODE, work, lambda: memory.tensor.view(torch.int32).tolist())
        # A simulation that only counts time finds nothing.
        faults: list[int] = found or [0] * len(self._shipments)
        for number in numbers:
            if faults[number]:
                # It may be mended when it is read again.
                self._clear(self.word(number))
            shipment = self._shipments[number]
            self._decoder.judge(shipment, faults[number], self._readers[shipment.reader_number])
            self._proven.add(number)

    def _clear(self, memory: Memory) -> None:
        self._device.enqueue(Queue.DECODE, Work("verdicts", (), (memory,)), partial(_set_to_0, memory))


def _set_to_0(memory: Memory) -> None:
    memory.tensor.zero_()
