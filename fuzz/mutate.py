"""Changes of files that `sealed` took apart, so that what a change breaks is all that is wrong with them."""

import copy
import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import zstandard
from sealed import Parsed, Plane, Tree, planes_of
from spq_reference import codecs
from spq_reference.errors import SpqRefError

from spqfmt import wire
from spqfmt.kernels import native

_ODD: tuple[Tree, ...] = (
    None,
    True,
    False,
    -1,
    0,
    1,
    2,
    3,
    7,
    8,
    63,
    64,
    255,
    256,
    4096,
    2**31,
    2**32,
    2**53 - 1,
    2**53,
    "",
    "x",
    [],
    {},
)
_CONTENT_KEPT = 0.15
"""How often digests of contents stay: with them every change of a value is the same error."""


def _places(node: Tree, holder: Tree = None) -> Iterator[tuple[Tree, Any]]:
    """Yield container and key of each value below a node."""
    if isinstance(node, dict | list):
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            yield node, key
            yield from _places(node[key])


def _named(node: Tree, wanted: Any) -> list[Tree]:
    """Return what stands under a key anywhere; for a number, all members of lists."""
    return [
        holder[key]
        for holder, key in _places(node)
        if key == wanted or (isinstance(wanted, int) and isinstance(key, int))
    ]


def _other_value(value: Tree, random_: random.Random) -> Tree:
    if type(value) is int and random_.random() < 0.7:
        return random_.choice(
            [value + 1, value - 1, value * 2, value // 2, value + 8, value ^ 1 << random_.randrange(32)]
        )
    return copy.deepcopy(random_.choice(_ODD))


def _other_bytes(data: bytes, random_: random.Random) -> bytes:
    changed = bytearray(data)
    kind = random_.randrange(6)
    at = random_.randrange(len(changed) + 1)
    if kind == 0 and changed:
        changed[at % len(changed)] ^= 1 << random_.randrange(8)
    elif kind == 1 and changed:
        changed[at % len(changed)] = random_.choice([0, 1, 127, 128, 254, 255])
    elif kind == 2:
        changed[at:at] = random_.randbytes(random_.randint(1, 8))
    elif kind == 3:
        del changed[at : at + random_.randint(1, 8)]
    elif kind == 4:
        del changed[at:]
    else:
        n = random_.randint(1, 16)
        changed[at : at + n] = changed[-n:]
    return bytes(changed)


def _chunks(index: Tree) -> list[tuple[Tree, list[Tree]]]:
    """Streams with their chunk records that hold planes."""
    return [
        (holder[key], row)
        for holder, key in _places(index)
        if isinstance(holder[key], dict) and isinstance(holder[key].get("chunks"), list)
        for row in holder[key]["chunks"]
        if isinstance(row, list) and any(isinstance(value, Plane) for value in row)
    ]


def _change_value(tree: Tree, donor: Tree, random_: random.Random) -> None:
    holder, key = random_.choice(list(_places(tree)))
    holder[key] = _other_value(holder[key], random_)


def _leave_out(tree: Tree, donor: Tree, random_: random.Random) -> None:
    holder, key = random_.choice(list(_places(tree)))
    del holder[key]


def _say_twice(tree: Tree, donor: Tree, random_: random.Random) -> None:
    lists = [(holder, key) for holder, key in _places(tree) if isinstance(holder, list)]
    if lists:
        holder, key = random_.choice(lists)
        holder.insert(random_.randrange(len(holder) + 1), copy.deepcopy(holder[key]))


def _swap(tree: Tree, donor: Tree, random_: random.Random) -> None:
    lists = [
        holder for holder, key in _places(tree) if isinstance(holder, list) and len(holder) > 1 and key == 0
    ]
    if lists:
        chosen = random_.choice(lists)
        a, b = random_.sample(range(len(chosen)), 2)
        chosen[a], chosen[b] = chosen[b], chosen[a]


def _take_from(tree: Tree, donor: Tree, random_: random.Random) -> None:
    """Put what another file, or another place, has under a key where this one has something under it."""
    holder, key = random_.choice(
        [place for place in _places(tree) if not isinstance(place[1], int)] or list(_places(tree))
    )
    known = _named(random_.choice([tree, donor]), key)
    if known:
        holder[key] = copy.deepcopy(random_.choice(known))


def _add_key(tree: Tree, donor: Tree, random_: random.Random) -> None:
    """Give an object a key that such an object has elsewhere."""
    objects = [holder[key] for holder, key in _places(tree) if isinstance(holder[key], dict)]
    holder, key = random_.choice([place for place in _places(donor) if isinstance(place[0], dict)])
    if objects:
        random_.choice(objects)[key] = copy.deepcopy(holder[key])


def _take_tensor(tree: Tree, donor: Tree, random_: random.Random) -> None:
    """Add a tensor of another file to the last segment."""
    tensors, others = tree.get("tensors"), donor.get("tensors")
    segments = tree.get("segments")
    if (
        isinstance(tensors, list)
        and others
        and isinstance(segments, list)
        and segments
        and isinstance(segments[-1], dict)
    ):
        taken = copy.deepcopy(random_.choice(others))
        tensors.append(taken)
        if type(segments[-1].get("n_tensors")) is int:
            segments[-1]["n_tensors"] += 1


def _change_stored(tree: Tree, donor: Tree, random_: random.Random) -> None:
    rows = list(planes_of(tree))
    if rows:
        row = random_.choice(rows)
        at = random_.choice([at for at, value in enumerate(row) if isinstance(value, Plane)])
        row[at] = Plane(_other_bytes(row[at].stored, random_))


def _change_elements(tree: Tree, donor: Tree, random_: random.Random) -> None:
    """Store other elements, or more, under the same or another codec, as a writer would."""
    chunks = _chunks(tree)
    if not chunks:
        return
    stream, row = random_.choice(chunks)
    at = random_.choice([at for at, value in enumerate(row) if isinstance(value, Plane)])
    dtype = wire.DTYPES.get(stream.get("dtype")) if isinstance(stream.get("dtype"), str) else None
    if dtype is None or type(row[0]) is not int or at + 1 >= len(row) or row[0] > 1 << 17 or row[0] < 0:
        return
    bits = min(dtype.bits, 8)
    try:
        raw = codecs.decode(row[at + 1], row[at].stored, -(-row[0] * bits // 8))
    except (SpqRefError, ValueError, TypeError):
        return
    if random_.random() < 0.8:
        raw = _other_bytes(raw, random_)
        if len(row) <= 4 and len(raw) != -(-row[0] * bits // 8):
            row[0] = len(raw) * 8 // bits
            if len(stream["chunks"]) == 1 and random_.random() < 0.8:
                stream["n"] = row[0]
    codec = random_.choice((wire.CODEC_RAW, wire.CODEC_RANS, wire.CODEC_ZSTD))
    if not raw:
        codec = wire.CODEC_RAW
    row[at : at + 2] = [Plane(_encoded(codec, raw)), codec]


def _encoded(codec: int, raw: bytes) -> bytes:
    if codec == wire.CODEC_RAW:
        return raw
    if codec == wire.CODEC_RANS:
        return native.rans_encode(raw)
    frames = [zstandard.compress(raw[at : at + 65536]) for at in range(0, len(raw), 65536)]
    ends, end = [], 4 * len(frames)
    for frame in frames:
        end += len(frame)
        ends.append(end)
    return struct.pack(f"<{len(ends)}I", *ends) + b"".join(frames)


def _split(tree: Tree, donor: Tree, random_: random.Random) -> None:
    """Cut a chunk in two, which changes nothing that the file says; bands of outliers become more."""
    chunks = [(stream, row) for stream, row in _chunks(tree) if len(row) == 4 and row[2] == wire.CODEC_RAW]
    if not chunks:
        return
    stream, row = random_.choice(chunks)
    dtype = wire.DTYPES.get(stream.get("dtype")) if isinstance(stream.get("dtype"), str) else None
    if dtype is None or not isinstance(row[1], Plane) or type(row[0]) is not int or len(row[1].stored) < 2:
        return
    cut = random_.randrange(1, len(row[1].stored))
    first = cut * 8 // min(dtype.bits, 8)
    place = next(at for at, other in enumerate(stream["chunks"]) if other is row)
    stored = row[1].stored
    stream["chunks"][place : place + 1] = [
        [first, Plane(stored[:cut]), 0, 0],
        [row[0] - first, Plane(stored[cut:]), 0, 0],
    ]


_CHANGES: tuple[tuple[Callable[[Tree, Tree, random.Random], None], int], ...] = (
    (_change_value, 4),
    (_leave_out, 1),
    (_say_twice, 1),
    (_swap, 1),
    (_take_from, 3),
    (_add_key, 1),
    (_take_tensor, 1),
    (_change_stored, 3),
    (_change_elements, 5),
    (_split, 1),
)


def mutated(parsed: Parsed, donor: Parsed, n_changes: int, random_: random.Random) -> Parsed:
    """Return a file with some changes, of this one's values and of another's."""
    index = copy.deepcopy(parsed.index)
    if random_.random() > _CONTENT_KEPT:
        index.pop("content", None)
        for tensor in index["tensors"]:
            tensor.pop("content", None)
    changes, weights = zip(*_CHANGES, strict=True)
    for change in random_.choices(changes, weights, k=n_changes):
        if isinstance(index, dict) and index:
            change(index, donor.index, random_)
    # What a donor brings along needs its bits; a bit may be set although nothing uses it.
    required = parsed.required if random_.random() < 0.3 else parsed.required | donor.required
    minor = max(parsed.minor, donor.minor)
    return replace(parsed, index=index, required=required, minor=minor)
