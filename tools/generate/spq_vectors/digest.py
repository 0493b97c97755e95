"""Content digests (FORMAT.md 3.5), from the elements that a file is built of."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from spq_vectors import encode

OF_THE_HEAD = ("shape", "dtype", "scheme", "view", "activation_clamp", "activation_quantization")


def add_content(records: Sequence[dict[str, Any]], elements: Sequence[Sequence[Sequence[int]]]) -> str:
    """Put `content` into the tensors' records and return the model's; `elements` are by tensor and stream."""
    digests: dict[str, bytes] = {}
    for number, record in enumerate(records):
        if record["scheme"] == "tied":
            digests[record["name"]] = digests[record["tied_to"]]
            continue
        held = []
        for stream, own in zip(record["streams"], elements[number], strict=True):
            holder = stream.get("same_as", number)
            roles = [other["role"] for other in records[holder]["streams"]]
            held.append(own if holder == number else elements[holder][roles.index(stream["role"])])
        digests[record["name"]] = of_tensor(record, held)
        record["content"] = digests[record["name"]].hex()
    model = [digests[name] + name.encode() + b"\0" for name in sorted(digests, key=str.encode)]
    return hashlib.sha256(b"".join(model)).hexdigest()


def of_tensor(record: dict[str, Any], elements: Sequence[Sequence[int]]) -> bytes:
    """Return the digest of a tensor with these elements of its streams."""
    head = {key: record[key] for key in OF_THE_HEAD if key in record}
    head |= {"transposed": True} if record.get("transposed") else {}
    head["parameters"] = dict(record["parameters"])
    if record["scheme"] != "uniform" or "trellis" not in head["parameters"]:
        head["parameters"].pop("class_sizes", None)
    head["streams"] = [described(stream, "/" in record["scheme"]) for stream in record["streams"]]
    text = json.dumps(head, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    for stream, values in zip(record["streams"], elements, strict=True):
        bits = encode.BITS[stream["dtype"]]
        text += encode.packed(bits, [value % (1 << bits) for value in values])
    return hashlib.sha256(text).digest()


def described(stream: dict[str, Any], is_named: bool) -> list[Any]:
    """Return what the head says of a stream."""
    known = [stream["role"], stream["dtype"], stream["n"]]
    if not is_named and stream["role"] in ("outlier_gaps", "outlier_values"):
        known.append([chunk[0] for chunk in stream["chunks"]])
    return known
