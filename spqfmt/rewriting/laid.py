"""Tensors of an opened file stored in another order, so that each of several ranks reads its part alone."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from spqfmt.container.content import content_of_encoded
from spqfmt.container.reader import Reader
from spqfmt.container.slices import laid_for_one, laid_for_ranks
from spqfmt.records import TensorRecord
from spqfmt.schemes.base import Encoded, StreamData
from spqfmt.schemes.outliers import ROLES as BANDED_ROLES


@dataclass
class Laid:
    """`cut`: by the name of a tensor that ranks cut, whether along the inputs of its layer. None undoes such cuts."""

    cut: Mapping[str, bool] | None
    n_ranks: int
    _made: dict[str, tuple[TensorRecord, StreamData] | None] = field(default_factory=dict)

    def take(self, reader: Reader, tensor: TensorRecord) -> tuple[TensorRecord, StreamData] | None:
        """The record and the weights of `tensor` as they shall be stored; None where that is as they are.

        They are kept until `forget`.
        """
        if tensor.name not in self._made:
            self._made[tensor.name] = self._make(reader, tensor)
        return self._made[tensor.name]

    def forget(self, tensor: TensorRecord) -> None:
        """The tensor is written."""
        self._made.pop(tensor.name, None)

    def _make(self, reader: Reader, tensor: TensorRecord) -> tuple[TensorRecord, StreamData] | None:
        of_columns = self.cut is not None and self.cut.get(tensor.name)
        # How codes of a foreign layout lie is what gives its bytes again.
        if of_columns is None or tensor.tied_to is not None or (of_columns and tensor.origin is not None):
            return None
        before = _encoded(reader, tensor)
        after = (
            laid_for_one(tensor, before)
            if self.cut is None
            else laid_for_ranks(tensor, before, self.n_ranks, of_columns=of_columns)
        )
        if after is before:
            return None
        [weights] = [s for s in after.streams if all(s is not other for other in before.streams)]
        kept = {stream.role for stream in (*after.streams, *(s for s, _ in after.same_as.values()))}
        streams = tuple(
            weights.record if stream.role == weights.role else stream
            for stream in tensor.streams
            if stream.role in kept
        )
        record = replace(tensor, parameters=after.parameters, streams=streams)
        if tensor.content is not None:
            record = replace(record, content=content_of_encoded(record, after))
        return record, weights


def _encoded(reader: Reader, tensor: TensorRecord) -> Encoded:
    """A tensor with all its elements."""
    streams: list[StreamData] = []
    same_as: dict[str, tuple[StreamData, str]] = {}
    for stream in tensor.streams:
        sizes: tuple[int, ...] | None = None
        if stream.role in BANDED_ROLES:
            sizes = tuple(reader.owner(stream).chunks.n_elements.tolist())
        elements = reader.read_elements(tensor, stream.role)
        data = StreamData(role=stream.role, dtype=stream.dtype, elements=elements, sizes=sizes)
        if stream.same_as is None:
            streams.append(data)
        else:
            same_as[stream.role] = data, reader.index.tensors[stream.same_as].name
    return Encoded(tensor.scheme, tensor.parameters, tuple(streams), same_as)
