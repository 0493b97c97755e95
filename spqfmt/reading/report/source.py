"""What a file tells of its source: the files that it gives back, and as what these stored the tensors."""

from collections.abc import Sequence

from spqfmt.container.model import OpenModel
from spqfmt.container.reader import Reader
from spqfmt.kernels.ggml_types import BLOCK_TYPES
from spqfmt.reading.origin_gguf import LAYOUT
from spqfmt.reading.report.records import SourceReport, TensorReport
from spqfmt.records import TensorRecord

_BLOCKS_AS_BYTES = "ggml."
"""What the names of schemes begin with that hold the bytes of blocks (spec/origins/gguf.md)."""


def form_of(reader: Reader, record: TensorRecord, *, stored_raw: int) -> tuple[str, int]:
    """Return the type of the blocks that a tensor was in the source, and their bytes; nothing for what was none.

    `stored_raw` is what its streams take decoded.
    """
    if record.scheme.startswith(_BLOCKS_AS_BYTES):
        return record.scheme.removeprefix(_BLOCKS_AS_BYTES).partition("/")[0].upper(), stored_raw
    if record.origin != LAYOUT:
        return "", 0
    origin = reader.index.json_of(reader.index.by_name.numbers[record.name])["origin"]
    kind = BLOCK_TYPES.get(str(origin.get("type"))) if isinstance(origin, dict) else None
    return ("", 0) if kind is None else (kind.name, record.n_weights // kind.n_elements * kind.n_bytes)


def source_of(model: OpenModel, tensors: Sequence[TensorReport]) -> SourceReport | None:
    """Return what the files took that the tensors came from; None where the file cannot give them back."""
    files = [] if model.index.sources is None else model.index.sources.files
    held = [file for file in files if any(piece.tensor is not None for piece in file.pieces or ())]
    if not held:
        return None
    forms: dict[str, tuple[int, int, int]] = {}
    for tensor in tensors:
        if tensor.form:
            n, there, here = forms.get(tensor.form, (0, 0, 0))
            forms[tensor.form] = n + 1, there + tensor.form_bytes, here + tensor.stored_bytes
    return SourceReport(len(held), sum(file.file_bytes for file in held), forms)
