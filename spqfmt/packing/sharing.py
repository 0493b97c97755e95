"""What tensors of one segment have alike is stored once: levels, scales that are one number, orders of inputs."""

from dataclasses import replace

from spqfmt.schemes.base import Encoded, StreamData

_ROLES = frozenset(
    {"levels", "scale_levels", "zero_point_levels", "minimum_levels", "column_scales", "permutation"}
)


class SharedTables:
    """Remembers the tables of the segment that is being encoded.

    Never those of another: shards are cut between segments, and a file's streams are its own.
    """

    def __init__(self) -> None:
        self._segment = ""
        self._held: dict[tuple[str, str, bytes], str] = {}

    def share(self, segment: str, name: str, encoded: Encoded) -> Encoded:
        """The encoding of tensor `name` without the tables that an earlier tensor holds; it is the next of the file."""
        if segment != self._segment:
            self._segment, self._held = segment, {}
        own: list[StreamData] = []
        same_as = dict(encoded.same_as)
        for stream in encoded.streams:
            holder = None
            if stream.role in _ROLES:
                table = stream.role, stream.dtype, stream.elements.tobytes()
                holder = self._held.setdefault(table, name)
            if holder in (None, name):
                own.append(stream)
            else:
                same_as[stream.role] = stream, holder
        return replace(encoded, streams=tuple(own), same_as=same_as)
