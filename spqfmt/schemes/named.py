"""Schemes of other makers: what a reader that does not know them needs to pass over such a tensor (FORMAT.md 5.8)."""

import re
from collections.abc import Mapping
from typing import NoReturn

from spqfmt.codecs.elements import Elements
from spqfmt.errors import CorruptError, UnsupportedError
from spqfmt.kernels.json_text import Wanted
from spqfmt.records import TensorRecord
from spqfmt.schemes.base import Scheme, Streamed
from spqfmt.schemes.dense import DTYPES

_NAME = re.compile(r"(?=.{3,64}$)[a-z0-9_-]+(\.[a-z0-9_-]+)+/[1-9][0-9]{0,3}")
_GGML = "ggml."
_ROLE = re.compile(r"(?!asset$)[a-z0-9_]{1,64}")


def is_scheme_name(name: str) -> bool:
    """Whether it is the name of another maker's scheme, with its version."""
    return _NAME.fullmatch(name) is not None


class NamedScheme(Scheme):
    """Any scheme that a maker has named.

    What its parameters and streams mean only its maker says, so nothing of them is looked at.
    """

    name = "named"
    roles: tuple[str, ...] = ()
    weights = ""
    is_quantized = False
    parameters: Mapping[str, Wanted] = {}

    def check(self, record: TensorRecord) -> None:
        """Dtype, and the roles of streams of its own."""
        where = f"tensor {record.name!r}"
        if record.dtype not in DTYPES or record.transposed:
            raise CorruptError(f"{where}: a tensor of the scheme {record.scheme} cannot be that")
        if len(record.by_role) < len(record.streams) or not all(map(_ROLE.fullmatch, record.by_role)):
            raise CorruptError(f"{where}: a role is there twice, or is no name")
        if any(stream.same_as is not None for stream in record.streams):
            raise CorruptError(f"{where}: the streams of the scheme {record.scheme} must be the tensor's own")

    def features(self, record: TensorRecord) -> set[str]:
        """The one feature of all such schemes."""
        return {"named_schemes"}

    def verify(self, record: TensorRecord, fetch: Streamed) -> None:
        """There is nothing to say of elements."""

    def restore(
        self, record: TensorRecord, fetch: Streamed, rows: range, columns: range, out: Elements, dtype: str
    ) -> None:
        """Raise UnsupportedError, as `refuse` does."""
        self.refuse(record)

    def refuse(self, record: TensorRecord) -> NoReturn:
        """Raise UnsupportedError: only the scheme's maker can restore its tensors."""
        if record.scheme.startswith(_GGML):
            kind = record.scheme.removeprefix(_GGML).rpartition("/")[0].upper().replace("-", "_")
            raise UnsupportedError(
                f"tensor {record.name!r} was kept as the bytes of its GGUF blocks ({kind}), which stand for no values "
                "here: `spqfmt unpack` gives the file back, but no model is loaded",
                record.scheme,
            )
        raise UnsupportedError(
            f"tensor {record.name!r}: its scheme {record.scheme} is not one of this version of spqfmt; what its "
            "maker offers may read it",
            record.scheme,
        )


NAMED = NamedScheme()
