"""A tensor's record in the index, as the packer writes it."""

from spqfmt.container.strict_json import Json
from spqfmt.importers.base import SourceModel, SourceTensor
from spqfmt.quantize.calibrated import Result
from spqfmt.records import FACT_PREFIX
from spqfmt.schemes.base import Encoded, StreamData
from spqfmt.schemes.registry import SCHEMES


def tensor_record(source: SourceTensor, encoded: Encoded, method: str, result: Result | None = None) -> Json:
    """The record of a tensor, without its streams. `method` is empty for one that is stored as it is."""
    record: Json = {
        "name": source.name,
        "shape": list(source.shape),
        "dtype": source.dtype,
        "scheme": encoded.scheme,
        "method": method,
        "parameters": dict(encoded.parameters),
        "streams": [],
    }
    if source.transposed and SCHEMES[encoded.scheme].is_quantized:
        record["transposed"] = True
    for key in ("activation_clamp", "activation_quantization"):
        value = getattr(result, key, None)
        if value is not None:
            record[key] = dict(value)
    return record


def stream_record(stream: StreamData) -> Json:
    """The record of a stream, without its chunks."""
    return {"role": stream.role, "dtype": stream.dtype, "n": stream.elements.size}


def stored_facts(model: SourceModel) -> dict[str, str]:
    """What the source says of the model, as a file's metadata."""
    return {FACT_PREFIX + key: value for key, value in model.facts.items()}
