"""FORMAT.md 3.5: the digest of what a tensor holds, and of the whole model."""

import hashlib
import json

from spq_reference.errors import Checksum
from spq_reference.numbers import BITS, packed_bytes
from spq_reference.records import OUTLIER_ROLES, Index, Tensor
from spq_reference.restore import Streams, flat


def tensor_digest(tensor: Tensor, streams: Streams) -> bytes:
    """Return the content digest of a tensor that is not tied."""
    # > The head is a JSON text in the form of RFC 8785 (keys sorted, no white space): an object with the record's
    # > `shape`, `dtype` and `scheme`; `parameters`, without `class_sizes` unless the tensor is uniform and has
    # > `trellis`; `view`, `transposed`, `activation_clamp` and `activation_quantization`, where they are there and not
    # > false; and `streams`, a list of `[role, dtype, n]`, for the streams of 5.4 `[role, dtype, n, [elements of each
    # > chunk]]`.
    head: dict[str, object] = {"shape": tensor.shape, "dtype": tensor.dtype, "scheme": tensor.scheme}
    dropped = set() if tensor.scheme == "uniform" and "trellis" in tensor.parameters else {"class_sizes"}
    head["parameters"] = {key: value for key, value in tensor.parameters.items() if key not in dropped}
    head |= tensor.activations
    if tensor.view is not None:
        head["view"] = tensor.view
    if tensor.transposed:
        head["transposed"] = True
    described = []
    for role, stream in tensor.streams.items():
        bands = [len(chunk) for chunk in streams[role]]
        is_banded = role in OUTLIER_ROLES and not tensor.is_named
        described.append([role, stream.dtype, stream.n, *([bands] if is_banded else [])])
    head["streams"] = described
    # > It is taken over the tensor's *head*, and then over the elements of its streams in order: little-endian, not
    # > rotated and not in planes, those below 8 bits packed as in one chunk; a stream with `same_as` has the elements
    # > of the stream that it names.
    digest = hashlib.sha256(canonical(head))
    for role, stream in tensor.streams.items():
        digest.update(packed_bytes(BITS[stream.dtype], flat(streams, role)))
    return digest.digest()


def canonical(value: object) -> bytes:
    """Return a JSON text in the form of RFC 8785, for which integers and strings are all there is."""
    if isinstance(value, dict):
        # RFC 8785 sorts by UTF-16 code units.
        keys = sorted(value, key=lambda key: key.encode("utf-16-be"))
        return b"{" + b",".join(canonical(key) + b":" + canonical(value[key]) for key in keys) + b"}"
    if isinstance(value, list):
        return b"[" + b",".join(canonical(item) for item in value) + b"]"
    return json.dumps(value, ensure_ascii=False).encode()


def check_content(index: Index, digests: dict[str, bytes]) -> None:
    """Check the digests that a file gives against those of its tensors that are not tied."""
    # > A reader that is asked to check `content` and finds another digest reports *checksum*.
    for tensor in index.tensors:
        if tensor.content is not None and digests[tensor.name].hex() != tensor.content:
            raise Checksum(f"{tensor.name}: its content does not match")
    # Those of a shard are of all shards' tensors.
    if index.content is not None and not index.is_shard and model_digest(index, digests) != index.content:
        raise Checksum("the content of the model does not match")


def model_digest(index: Index, digests: dict[str, bytes]) -> str:
    """Return the content digest of all tensors, in hex."""
    # > `content` of the index is taken over all tensors of the model, of all its shards, in ascending order of the
    # > bytes of their names: for each the 32 bytes of its digest, its name, and a zero byte. A tied tensor counts with
    # > the digest of the one that it is tied to.
    whole = hashlib.sha256()
    for tensor in sorted(index.tensors, key=lambda tensor: tensor.name.encode()):
        whole.update(digests[tensor.tied_to or tensor.name] + tensor.name.encode() + b"\0")
    return whole.hexdigest()
