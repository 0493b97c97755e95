"""A scheme without products, in one module: loaders decode its tensors whole."""

from dataclasses import dataclass, replace

from spqfmt.schemes.halves import SCHEME as HALVES
from spqfmt.schemes.halves import Halves

from spqfmt.codecs.elements import Elements
from spqfmt.records import TensorRecord
from spqfmt.schemes.base import Encoded, Scheme, Streamed


@dataclass(frozen=True)
class PlainHalves(Halves):
    def encode(self) -> Encoded:
        return replace(super().encode(), scheme="plain_halves")


class PlainHalvesScheme(Scheme):
    name = "plain_halves"
    roles = HALVES.roles
    weights = "codes"
    is_quantized = True
    parameters = HALVES.parameters

    def check(self, record: TensorRecord) -> None:
        HALVES.check(record)

    def features(self, record: TensorRecord) -> set[str]:
        return set()

    def verify(self, record: TensorRecord, fetch: Streamed) -> None:
        pass

    def restore(
        self, record: TensorRecord, fetch: Streamed, rows: range, columns: range, out: Elements, dtype: str
    ) -> None:
        HALVES.restore(record, fetch, rows, columns, out, dtype)


SCHEME = PlainHalvesScheme()
