"""The bytes of all parts: decoded or compressed in memory, or left in the file."""

import queue
from collections.abc import Sequence
from itertools import accumulate

from spqfmt.codecs.base import Bytes
from spqfmt.codecs.threads import side_by_side
from spqfmt.container.reader import Reader, located
from spqfmt.loaders.packed.buffers import allocate
from spqfmt.pipeline.residency.decode import decode_part
from spqfmt.pipeline.residency.parts import Part
from spqfmt.pipeline.residency.plan import N_WORKERS, Plan

LOOKUP_WORKER = N_WORKERS
"""The staging buffer of lookups, which decode on the thread of the one who asks."""


class Store:
    """Holds what the plan keeps in memory, and decodes any part from where it is."""

    def __init__(self, plan: Plan, readers: Sequence[Reader]) -> None:
        self._readers = readers
        self.parts = tuple(planned.item.part for planned in plan.parts)
        self._memory: dict[int, Bytes] = {}
        self._decoded = [planned.residency == "decoded" for planned in plan.parts]
        self._region = allocate(sum(planned.bytes for planned in plan.parts))
        ends = list(accumulate(planned.bytes for planned in plan.parts))
        self._begins = [0, *ends[:-1]]
        for number, planned in enumerate(plan.parts):
            if planned.residency != "disk":
                self._memory[number] = self._region[self._begins[number] : ends[number]]
        stored = max((part.stored_bytes for part in self.parts), default=0)
        scratch = max((part.scratch_bytes for part in self.parts), default=0)
        self.is_streamed = not all(self._decoded)
        self._staging = [(allocate(stored), allocate(scratch)) for _ in range(N_WORKERS + 1)]

    @property
    def n_bytes(self) -> int:
        """Memory of weights and staging."""
        return self._region.size + sum(stored.size + scratch.size for stored, scratch in self._staging)

    def load(self) -> None:
        """Read, and decode where it is planned, all that lives in memory. Raises FormatError, OSError."""
        workers = queue.SimpleQueue[int]()
        for worker in range(len(self._staging)):
            workers.put(worker)

        def load_part(number: int) -> None:
            if not self._decoded[number]:
                self._read(self.parts[number], self._memory[number])
                return
            worker = workers.get()
            try:
                self.fill(worker, number, self._memory[number])
            finally:
                workers.put(worker)

        side_by_side(load_part, list(self._memory))

    def decoded(self, number: int) -> Bytes | None:
        """The bytes of a part that is decoded in memory, for reading; None for others."""
        if not self._decoded[number]:
            return None
        return self._memory[number]

    def decoded_run(self, numbers: Sequence[int]) -> Bytes | None:
        """The bytes of parts that follow each other, as one array, where all are decoded in memory; else None."""
        if not all(self._decoded[number] for number in numbers):
            return None
        begin = self._begins[numbers[0]]
        return self._region[begin : begin + sum(self.parts[number].decoded_bytes for number in numbers)]

    def fill(self, worker: int, number: int, out: Bytes) -> None:
        """Decode a part into `out` on a thread of its own staging. Raises FormatError, OSError."""
        part = self.parts[number]
        stored = None if self._decoded[number] else self._memory.get(number)
        if stored is None:
            stored = self._read(part, self._staging[worker][0][: part.stored_bytes])
        path = self._readers[part.reader_number].path
        decode_part(part, stored, self._staging[worker][1], out, path)

    def _read(self, part: Part, out: Bytes) -> Bytes:
        reader = self._readers[part.reader_number]
        with located(reader.path):
            reader.read_into(part.offset, out)
        # What was read will be read again only after all else: the page cache has better use for its room.
        reader.forget(part.offset, part.stored_bytes)
        return out
