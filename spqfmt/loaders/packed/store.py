"""The bytes of all parts: decoded, narrow or compressed in memory, or left in the file."""

import queue
import threading
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

from spqfmt.codecs.base import Bytes
from spqfmt.codecs.tasks import side_by_side
from spqfmt.codecs.threads import n_threads
from spqfmt.container.located import located
from spqfmt.container.reader import Reader
from spqfmt.kernels.narrow import narrow, widen
from spqfmt.kernels.pages import allocate, allocate_large
from spqfmt.residency.decode import check_part, decode_part
from spqfmt.residency.inventory import N_BUFFERS, N_EXPERT_READS, N_READS
from spqfmt.residency.parts import Part
from spqfmt.residency.plan import Plan


class Store:
    """Holds what the plan keeps in memory, and reads and decodes the rest. What it has read was checked once."""

    def __init__(self, plan: Plan, readers: Sequence[Reader]) -> None:
        self._readers = readers
        self.parts = tuple(planned.item.part for planned in plan.parts)
        self._is_bounded = plan.memory_bytes is not None
        self._memory: dict[int, Bytes] = {}
        self._rooms: dict[int, Bytes] = {}
        """Memory that parts have where they live in memory, which may be more than they need."""
        self._how = [planned.residency for planned in plan.parts]
        self._apart: dict[int, Bytes] = {}
        """Decoded parts that were to be narrow, in memory of their own."""
        self._region = allocate_large(sum(planned.bytes for planned in plan.parts))
        ends = list(accumulate(planned.bytes for planned in plan.parts))
        self._begins = [0, *ends[:-1]]
        for number, planned in enumerate(plan.parts):
            if planned.residency != "disk":
                self._rooms[number] = self._region[self._begins[number] : ends[number]]
                self._memory[number] = self._rooms[number][: self._size(number)]
        stored = max((part.stored_bytes for part in self.parts), default=0)
        scratch = max((part.work_bytes for part in self.parts), default=0)
        self.is_streamed = any(how != "decoded" for how in self._how)
        self.reads = [allocate(stored) for _ in range(N_READS)]
        """Where parts from disk are read to: by loading, then by the ring."""
        self._scratch = [allocate(scratch) for _ in range(N_READS)]
        experts = [p.item.part.stored_bytes for p in plan.parts if p.item.share is not None]
        largest = max(experts, default=0) if self.is_streamed else 0
        self.expert_reads = [allocate(largest) for _ in range(N_EXPERT_READS)]
        """Where parts of experts are read to that are not in memory."""
        self._read_by: dict[int, int] = {}
        """Bytes of parts that each thread has read."""

    @property
    def n_bytes(self) -> int:
        """Memory that weights and staging take."""
        staging = (*self.reads, *self._scratch, *self.expert_reads)
        apart = sum(array.size for array in self._apart.values())
        return self._region.size + apart + sum(array.size for array in staging)

    @property
    def n_read_bytes(self) -> int:
        """Bytes of all parts that were read so far, by loading too."""
        return sum(list(self._read_by.values()))

    def load(self) -> None:
        """Read, check, and decode where it is planned, all that lives in memory. Raises FormatError, OSError."""
        rooms = queue.SimpleQueue[tuple[Bytes, Bytes]]()
        # Codes that become narrow are decoded where the buffers will be that they pass through later.
        wide = max(
            (self.parts[n].decoded_bytes for n, how in enumerate(self._how) if how == "narrow"), default=0
        )
        wides = queue.SimpleQueue[Bytes]()
        for _ in range(N_BUFFERS if wide else 0):
            wides.put(allocate(wide))
        for room in zip(self.reads, self._scratch, strict=True):
            rooms.put(room)
        if not self._is_bounded:
            # What more threads need is nobody's afterwards, and no ceiling counts it.
            for _ in range(min(n_threads(), len(self._memory)) - N_READS):
                rooms.put((allocate(self.reads[0].size), allocate(self._scratch[0].size)))

        def load_part(number: int) -> None:
            part, room = self.parts[number], self._memory[number]
            if self._how[number] == "compressed":
                self.read(number, room)
                return
            is_narrow = self._how[number] == "narrow"
            read, scratch = rooms.get()
            buffer = wides.get() if is_narrow else room
            try:
                stored, out = self._read(part, read[: part.stored_bytes]), buffer[: part.decoded_bytes]
                decode_part(part, stored, scratch, out=out, path=self._path(part), checked=False)
                if is_narrow and not narrow(out, room):
                    self._keep_otherwise(number, stored, out)
            finally:
                rooms.put((read, scratch))
                if is_narrow:
                    wides.put(buffer)

        side_by_side(load_part, list(self._memory))

    def _keep_otherwise(self, number: int, stored: Bytes, decoded: Bytes) -> None:
        """Hold a part with more escapes than its room in another way: compressed under a ceiling, else decoded."""
        if self._is_bounded:
            self._how[number] = "compressed"
            self._memory[number] = self._rooms[number][: stored.size]
            self._memory[number][:] = stored
            return
        self._how[number] = "decoded"
        self._memory[number] = self._rooms[number] = self._apart[number] = allocate(decoded.size)
        self._apart[number][:] = decoded

    def decoded(self, number: int) -> Bytes | None:
        """The bytes of a part that is decoded in memory, for reading; None for others."""
        return self._memory[number] if self._how[number] == "decoded" else None

    def decoded_run(self, numbers: Sequence[int]) -> Bytes | None:
        """The bytes of parts that follow each other, as one array, where all are decoded in memory; else None."""
        if any(self._how[number] != "decoded" for number in numbers):
            return None
        if any(number in self._apart for number in numbers):
            return self._memory[numbers[0]] if len(numbers) == 1 else None
        begin = self._begins[numbers[0]]
        return self._region[begin : begin + sum(self.parts[number].decoded_bytes for number in numbers)]

    def narrow_run(self, numbers: Sequence[int]) -> list[Bytes] | None:
        """The narrow forms of some parts, where all are held so; else None."""
        if any(self._how[number] != "narrow" for number in numbers):
            return None
        return [self._memory[number] for number in numbers]

    def held(self, number: int) -> Bytes | None:
        """What `decode` takes of a part that is not decoded: where it is in memory, for reading; None for others."""
        return None if self._how[number] == "decoded" else self._memory.get(number)

    def is_in_memory(self, number: int) -> bool:
        """Whether the part need not be read."""
        return number in self._memory

    def room(self, number: int) -> int:
        """Bytes of memory that a part has which lives there."""
        return self._rooms[number].size

    def replace(self, old: int, new: int, values: Bytes) -> None:
        """Let a part have the memory of another, which is on disk from now on; for one caller at a time.

        `values` are the bytes of the new part as the old one was held, decoded or stored, and find room there. Nobody
        holds an array over the old one's.
        """
        room = self._rooms.pop(old)
        self._memory.pop(old)
        self._how[old], self._how[new] = "disk", self._how[old]
        room[: values.size] = values
        self._rooms[new], self._memory[new] = room, room[: values.size]

    def _size(self, number: int) -> int:
        part, how = self.parts[number], self._how[number]
        return (
            part.decoded_bytes
            if how == "decoded"
            else part.narrow_bytes
            if how == "narrow"
            else part.stored_bytes
        )

    def read(self, number: int, out: Bytes) -> None:
        """Read a part's stored bytes into `out` and check them. Raises FormatError, OSError."""
        part = self.parts[number]
        check_part(part, self._read(part, out), self._path(part))

    def decode(self, number: int, stored: Bytes, out: Bytes) -> None:
        """Decode a part from stored bytes that were checked, or from its narrow form, on torch's threads.

        For one caller at a time. Raises CorruptError.
        """
        part = self.parts[number]
        path, n = self._path(part), n_threads()
        if self._how[number] == "narrow":
            widen(stored, out, n)
            return
        decode_part(part, stored, self._scratch[0], out=out, path=path, checked=True, n_threads=n)

    def _path(self, part: Part) -> Path:
        return self._readers[part.reader_number].path

    def _read(self, part: Part, out: Bytes) -> Bytes:
        reader = self._readers[part.reader_number]
        with located(reader.path):
            reader.read_into(part.offset, out)
        # What was read will be read again only after all else, and under a ceiling it should not take the cache's room.
        # Without one the next process that loads the file is glad of it.
        if self._is_bounded:
            reader.forget(part.offset, part.stored_bytes)
        thread = threading.get_ident()
        self._read_by[thread] = self._read_by.get(thread, 0) + part.stored_bytes
        return out
