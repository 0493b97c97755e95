"""What a file tells of its source: the files that it gives back, and as what these stored the tensors."""

import json
from collections.abc import Sequence

from spqfmt.container.model import OpenModel
from spqfmt.container.reader import Reader
from spqfmt.errors import SpqError
from spqfmt.importers._quantized import quantized_by
from spqfmt.kernels.ggml_types import BLOCK_TYPES
from spqfmt.reading.origin_arrays import COLUMN_GROUPS, GROUP_BITS
from spqfmt.reading.origin_arrays import LAYOUT as ARRAYS
from spqfmt.reading.origin_gguf import LAYOUT
from spqfmt.reading.report.records import SourceReport, TensorReport
from spqfmt.records import TensorRecord
from spqfmt.wire import DTYPES

_CONFIG = "config.json"
_OF_WEIGHTS = frozenset({"f64", "f32", "f16", "bf16", "bool"})
_MOST_OF_A_NAME = 40
_BLOCKS_AS_BYTES = "ggml."
"""What the names of schemes begin with that hold the bytes of blocks (spec/origins/gguf.md)."""


def quantizer_of(model: OpenModel) -> str:
    """What has quantized the source, such as "exl2"; empty where its tensors are weights, or nothing says so."""
    config: object = {}
    if _CONFIG in model.asset_names:
        try:
            config = json.loads(model.read_asset(_CONFIG))
        # A damaged one says nothing; whoever needs it will tell.
        except (SpqError, ValueError, RecursionError):
            config = {}
    facts = ((record.name, record.shape, record.dtype) for record in model.tensors.values())
    return quantized_by(config if isinstance(config, dict) else {}, facts)


def form_of(reader: Reader, record: TensorRecord, *, stored_raw: int, quantizer: str = "") -> tuple[str, int]:
    """Return what codes a tensor was in the source, and the bytes of these; nothing for what was none.

    `stored_raw` is what its streams take decoded, `quantizer` what `quantizer_of` says: whose arrays are those that are
    stored as they are.
    """
    if quantizer and record.scheme == "dense" and not record.origin and record.dtype not in _OF_WEIGHTS:
        return f"arrays of {quantizer[:_MOST_OF_A_NAME]}", stored_raw
    if record.scheme.startswith(_BLOCKS_AS_BYTES):
        return "GGUF " + record.scheme.removeprefix(_BLOCKS_AS_BYTES).partition("/")[0].upper(), stored_raw
    if record.origin not in (LAYOUT, ARRAYS):
        return "", 0
    origin = reader.index.json_of(reader.index.by_name.numbers[record.name])["origin"]
    if not isinstance(origin, dict):
        return "", 0
    if record.origin == ARRAYS:
        form, parts = (origin.get(key) for key in ("form", "parts"))
        if not isinstance(form, str) or not isinstance(parts, list):
            return "", 0
        n_bytes = sum(_array_bytes(record, part) for part in parts)
        return form[:_MOST_OF_A_NAME] + _groups_of(record, form), n_bytes
    kind = BLOCK_TYPES.get(str(origin.get("type")))
    return (
        ("", 0) if kind is None else (f"GGUF {kind.name}", record.n_weights // kind.n_elements * kind.n_bytes)
    )


def _groups_of(record: TensorRecord, form: str) -> str:
    """Say how many codes share a scale, where the form does not."""
    size, rows = record.parameters.get("group_size"), record.parameters.get("group_rows")
    if not isinstance(size, int) or "scale" in form:
        return ""
    if isinstance(rows, int) and rows > 1:
        return f", blocks of {rows} by {size}"
    is_row = size >= record.matrix_shape[1] and record.view is None
    return ", a scale for each row" if is_row else f", groups of {size}"


def _array_bytes(record: TensorRecord, part: object) -> int:
    """What an array takes that is made of a stream (spec/origins/arrays.md); 0 where a file says none."""
    role = part.get("stream") if isinstance(part, dict) else None
    if not isinstance(part, dict) or not isinstance(role, str):
        return 0
    stream = record.by_role.get(role)
    is_order = role == COLUMN_GROUPS and record.scheme == "grouped"
    n = stream.n if stream is not None else record.matrix_shape[1] if is_order else 0
    width = part.get("bits", GROUP_BITS if stream is None else DTYPES[stream.dtype].bits)
    return -(-n * width // 8) if isinstance(width, int) else 0


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
