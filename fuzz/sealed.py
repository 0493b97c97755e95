"""Files of .spq taken apart into trees, and sealed again with sizes, checksums and digest that are right.

A file is a tree: its index, in which the size of each plane of a chunk is the plane's bytes themselves. Whatever is
copied, moved or left out takes its bytes along; sealing writes them where FORMAT.md 2.3 has them.
"""

import hashlib
import json
import random
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import zstandard

from spqfmt import wire

Tree = Any
"""A value of an index: dicts, lists, strings, integers, and `Plane` where a plane's size stands."""

_ODD_TEXT = (
    b"-0",
    b"1.0",
    b"1e3",
    b"\\u0061",
    b"\\ud800",
    b" ",
    b"\n",
    b'"x":1,',
    b"[" * 17,
    b"\xff",
    b"\x00",
    b"01",
)


@dataclass(frozen=True)
class Plane:
    """The stored bytes of a plane of a chunk."""

    stored: bytes


@dataclass(frozen=True)
class Parsed:
    """A file as a tree, and what its trailer says."""

    index: Tree
    minor: int
    required: int
    optional: int


def parse(data: bytes) -> Parsed:
    """Take a sound file apart."""
    offset, stored_bytes, raw_bytes, _, required, optional = struct.unpack_from("<6Q", data, len(data) - 64)
    stored = data[offset:-96]
    text = stored if stored_bytes == raw_bytes else zstandard.ZstdDecompressor().decompress(stored)
    index = json.loads(text)
    end = 64
    inner = index.get("chunk_alignment", 64)

    def take(streams: list[Tree], alignment: int) -> None:
        nonlocal end
        for row in (row for stream in streams for row in stream.get("chunks", [])):
            for at in range(1, len(row), 3):
                begin = -(-end // alignment) * alignment
                alignment = inner
                end = begin + row[at]
                row[at] = Plane(data[begin:end])

    tensors = iter(index["tensors"])
    for segment in index["segments"]:
        streams = [stream for _ in range(segment["n_tensors"]) for stream in next(tensors).get("streams", [])]
        take(streams, index["segment_alignment"])
    take([asset["stream"] for asset in index["assets"]], inner)
    return Parsed(index, data[10], required, optional)


def planes_of(node: Tree) -> Iterator[list[Tree]]:
    """Yield the chunk records below a node that hold planes, in order."""
    if isinstance(node, list) and any(isinstance(value, Plane) for value in node):
        yield node
    elif isinstance(node, dict | list):
        for value in node.values() if isinstance(node, dict) else node:
            yield from planes_of(value)


def _positive(value: Tree, otherwise: int) -> int:
    return value if type(value) is int and 0 < value <= 4096 else otherwise


def seal(parsed: Parsed, random_: random.Random, *, beside: bool = False) -> bytes:
    """Return a file of this tree with sizes, checksums and digest that are right.

    With `beside` something beside the tree is changed too: the index's text, a required bit, the header or padding.
    """
    index = parsed.index
    out = bytearray(struct.pack("<8sHH52x", wire.MAGIC, 1, parsed.minor))
    chunk_alignment = _positive(index.get("chunk_alignment", 64), 64) if isinstance(index, dict) else 64

    def put(streams: Tree, alignment: int) -> None:
        for row in planes_of(streams):
            for value in row:
                if isinstance(value, Plane):
                    out.extend(bytes(-len(out) % alignment))
                    alignment = chunk_alignment
                    out.extend(value.stored)

    tensors = index.get("tensors", []) if isinstance(index, dict) else []
    tensors = tensors if isinstance(tensors, list) else [tensors]
    segments = index.get("segments") if isinstance(index, dict) else None
    at = 0
    for segment in segments if isinstance(segments, list) else []:
        n = segment.get("n_tensors") if isinstance(segment, dict) else None
        n = _positive(n, 1)
        put(_chunks(tensors[at : at + n], "streams"), _positive(index.get("segment_alignment"), 64))
        at += n
    put(_chunks(tensors[at:], "streams"), _positive(index.get("segment_alignment"), 64))
    if isinstance(index, dict):
        put(_chunks(index.get("assets"), "stream"), chunk_alignment)
    out.extend(bytes(-len(out) % 64))
    raw = json.dumps(_written(index), separators=(",", ":")).encode()
    where = random_.randrange(4) if beside else None
    if where in {0, 1}:
        raw = _changed_text(raw, random_)
    stored = zstandard.compress(raw) if random_.random() < 0.2 else raw
    required, minor, optional = parsed.required, parsed.minor, parsed.optional
    if where == 2:
        required ^= 1 << random_.randrange(64)
    elif where == 3:
        out[random_.randrange(8, len(out))] ^= 1 << random_.randrange(8)
    sizes = struct.pack("<4Q", len(out), len(stored), len(raw), len(out) + len(stored) + 96)
    rest = sizes + struct.pack("<2QHHI", required, optional, 1, minor, 0) + wire.MAGIC
    return bytes(out) + stored + hashlib.sha256(rest + stored).digest() + rest


def _chunks(holders: Tree, key: str) -> list[Tree]:
    """Return the chunks of streams where readers look for them: those that a change put elsewhere have no bytes."""
    held = holders if isinstance(holders, list) else []
    streams = [holder.get(key) for holder in held if isinstance(holder, dict)]
    rows = [stream for some in streams for stream in (some if isinstance(some, list) else [some])]
    return [stream.get("chunks") for stream in rows if isinstance(stream, dict)]


def _written(node: Tree) -> Tree:
    """Return a tree as JSON takes it: each plane's size, and its checksum two places on."""
    if isinstance(node, Plane):
        return len(node.stored)
    if isinstance(node, dict):
        return {key: _written(value) for key, value in node.items()}
    if not isinstance(node, list):
        return node
    found = [_written(value) for value in node]
    for at, value in enumerate(node):
        if isinstance(value, Plane) and at + 2 < len(node) and type(node[at + 2]) is int:
            found[at + 2] = zlib.crc32(value.stored)
    return found


def _changed_text(raw: bytes, random_: random.Random) -> bytes:
    at = random_.randrange(len(raw))
    return raw[:at] + random_.choice(_ODD_TEXT) + raw[at + random_.randrange(3) :]
