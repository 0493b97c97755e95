"""Damage under right checksums: the readers' own checks, not the CRC, have to hold, and both readers must agree.

Each value of an index is replaced by values that do not belong there, with the digest made anew; each bit of a coded
chunk is flipped. A reader may refuse with an error of ours or read the file; it may do nothing else.
"""

import copy
import hashlib
import json
import struct
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import zstandard
from safetensors.torch import save_file
from spec_support import FORMAT_ERROR, READERS, VALID, VECTORS, VECTORS_1_1, RefusedError
from spq_reference import codecs
from spq_reference.errors import SpqRefError
from spq_vectors import encode
from spq_vectors.invalid_codecs import DATA, TABLE

import spqfmt
from spqfmt.codecs.registry import decode_into
from spqfmt.errors import CorruptError, UnsupportedError

ODD = (None, True, -1, 0, 1, 2**31, 2**53 - 1, "", "x", [], {})
# Vectors whose indexes together hold every key of the format.
INDEXES = ("assets", "dense_planes", "grouped_spqr", "shared_scales", "tied_and_segments", "uniform_classes",
           "shards-00001-of-00002")  # fmt: skip


def parts(data: bytes) -> tuple[bytes, dict, bytes]:
    """Return what lies before the index, the index, and the trailer."""
    index_offset, stored_bytes, raw_bytes = struct.unpack_from("<3Q", data, len(data) - 64)
    stored = data[index_offset:-96]
    text = stored if stored_bytes == raw_bytes else zstandard.ZstdDecompressor().decompress(stored)
    return data[:index_offset], json.loads(text), data[-96:]


def sealed(before: bytes, index: dict, trailer: bytes) -> bytes:
    """Return a file with this index and a digest that fits."""
    text = json.dumps(index).encode()
    sizes = struct.pack("<4Q", len(before), len(text), len(text), len(before) + len(text) + 96)
    rest = sizes + trailer[64:]
    return before + text + hashlib.sha256(rest + text).digest() + rest


def places(node: object) -> Iterator[list[str | int]]:
    """Yield the path of each value below a node."""
    if isinstance(node, dict | list):
        for key in node if isinstance(node, dict) else range(len(node)):
            yield [key]
            for path in places(node[key]):
                yield [key, *path]


def changed(index: dict, path: list[str | int], value: object) -> dict:
    """Return the index with another value, or without the key where the value is Ellipsis."""
    index = copy.deepcopy(index)
    node = index
    for key in path[:-1]:
        node = node[key]
    if value is ...:
        del node[path[-1]]
    else:
        node[path[-1]] = value
    return index


@pytest.mark.parametrize("name", INDEXES)
def test_readers_agree_on_every_changed_value_of_an_index(name, tmp_path):
    before, index, trailer = parts((VECTORS / "valid" / f"{name}.spq").read_bytes())
    path = tmp_path / "changed.spq"
    disagreements = []
    for number, place in enumerate(places(index)):
        # All odd values at every place would take minutes; neighbours take turns.
        for value in (..., *ODD[number % 3 :: 3]):
            path.write_bytes(sealed(before, changed(index, place, value), trailer))
            outcomes = {}
            for reader, read in READERS.items():
                try:
                    outcomes[reader] = read(path)
                except RefusedError as refused:
                    outcomes[reader] = refused.kind
            refused = {reader: outcome for reader, outcome in outcomes.items() if isinstance(outcome, str)}
            if len(refused) == 1 or (not refused and outcomes["product"] != outcomes["reference"]):
                disagreements.append((place, value, refused or "other content"))
    assert disagreements == []


def test_sealing_an_index_as_it_is_changes_nothing(tmp_path):
    for name in VALID:
        data = (VECTORS / "valid" / f"{name}.spq").read_bytes()
        path = tmp_path / "same.spq"
        path.write_bytes(sealed(*parts(data)))
        assert READERS["reference"](path) == READERS["reference"](VECTORS / "valid" / f"{name}.spq")


@pytest.mark.parametrize("folder", [VECTORS / "valid", VECTORS_1_1 / "valid"], ids=["1.0", "1.1"])
def test_each_feature_that_is_used_is_to_be_declared(folder, tmp_path):
    """A file may declare more than it uses; what a vector uses both readers know alike."""
    taken = {reader: set() for reader in READERS}
    refused = 0
    for vector in sorted(folder.glob("*.spq")):
        before, index, trailer = parts(vector.read_bytes())
        declared = struct.unpack_from("<Q", trailer, 64)[0]
        for bit in range(64):
            if declared >> bit & 1:
                without = trailer[:64] + struct.pack("<Q", declared ^ 1 << bit) + trailer[72:]
                path = tmp_path / vector.name
                path.write_bytes(sealed(before, index, without))
                for reader, read in READERS.items():
                    try:
                        read(path)
                        taken[reader].add((vector.name, bit))
                    except RefusedError:
                        refused += 1
    assert taken["reference"] == taken["product"]
    assert refused > len(taken["product"])


def test_a_shard_of_one_has_pieces_of_its_own_tensors(tmp_path):
    """Of a shard of several nobody can say that alone."""
    before, index, trailer = parts((VECTORS_1_1 / "valid" / "sources-00001-of-00002.spq").read_bytes())
    path = tmp_path / "m-00001-of-00001.spq"
    for read in READERS.values():
        path.write_bytes(sealed(before, index, trailer))
        read(path)
        path.write_bytes(sealed(before, changed(index, ["shard", "count"], 1), trailer))
        with pytest.raises(RefusedError, match="no tensor"):
            read(path)


def test_what_a_named_scheme_claims_takes_no_memory(tmp_path):
    before, index, trailer = parts((VECTORS_1_1 / "valid" / "named_scheme.spq").read_bytes())
    tied = {tensor.get("tied_to") for tensor in index["tensors"]}
    named = [n for n, t in enumerate(index["tensors"]) if "/" in t["scheme"] and t["name"] not in tied]
    at = named[0]
    for shape in ([2**53 - 1], [2**20, 2**20, 2**13 - 1]):
        path = tmp_path / "m.spq"
        path.write_bytes(sealed(before, changed(index, ["tensors", at, "shape"], shape), trailer))
        spqfmt.verify(path)
        with spqfmt.open(path) as file:
            handle = file[index["tensors"][at]["name"]]
            for read in (handle.read, handle.read_bytes, lambda h=handle: h.read(slice(0, 2**20))):
                with pytest.raises(UnsupportedError, match="is not one of this version"):
                    read()


CHUNKS = {
    "rans": encode.Rans(8, TABLE, fill=0)(DATA),
    "rans_flat": encode.Rans(7, [16] * 256)(bytes(range(200))),
    "constant": encode.constant(bytes(200)),
    "zstd": encode.zstd_by_hand(DATA),
}
RAW_BYTES = {"rans": len(DATA), "rans_flat": 200, "constant": 200, "zstd": len(DATA)}


@pytest.mark.parametrize("name", sorted(CHUNKS))
def test_decoders_agree_on_every_flipped_bit_of_a_chunk(name):
    codec, good = CHUNKS[name]
    n = RAW_BYTES[name]
    assert codecs.decode(codec, good, n) == by_product(codec, good, n)
    for offset in range(len(good)):
        for bit in range(8) if name != "zstd" else [offset % 8]:
            stored = bytearray(good)
            stored[offset] ^= 1 << bit
            agree(codec, bytes(stored), n, f"byte {offset}, bit {bit}")


@pytest.mark.parametrize("name", sorted(CHUNKS))
def test_decoders_agree_on_every_prefix_of_a_chunk(name):
    codec, good = CHUNKS[name]
    for n_bytes in range(len(good)):
        agree(codec, good[:n_bytes], RAW_BYTES[name], f"prefix of {n_bytes}")
    agree(codec, good + bytes(4), RAW_BYTES[name], "longer")
    for n in (1, 127, 129, 255, 257, 10000):
        agree(codec, good, n, f"{n} raw bytes")


def by_product(codec: int, stored: bytes, n: int) -> bytes:
    """Decode a chunk with the package."""
    out = np.zeros(n, np.uint8)
    decode_into(codec, np.frombuffer(stored, np.uint8), out)
    return out.tobytes()


def agree(codec: int, stored: bytes, n: int, what: str) -> None:
    """Check that both decoders give the same bytes or both refuse."""
    outcomes: list[bytes | None] = []
    for decode, error in ((codecs.decode, SpqRefError), (by_product, FORMAT_ERROR)):
        try:
            outcomes.append(decode(codec, stored, n))
        except error:
            outcomes.append(None)
    assert outcomes[0] == outcomes[1], what


def test_a_broken_record_spoils_no_other_tensor(tmp_path):
    """Records that are asked for in order are made some at a time."""
    source = {f"t{number:02}": torch.full((3,), float(number)) for number in range(80)}
    save_file(source, tmp_path / "model.safetensors")
    spqfmt.pack(tmp_path / "model.safetensors", tmp_path / "m.spq", no_identity=True)
    before, index, trailer = parts((tmp_path / "m.spq").read_bytes())
    names = [tensor["name"] for tensor in index["tensors"]]
    broken = {names[2], names[40], names[41], names[79]}
    for tensor in index["tensors"]:
        if tensor["name"] in broken:
            tensor["scheme"] = "unheard_of"
    (tmp_path / "m.spq").write_bytes(sealed(before, index, trailer))
    for order in (names, names[::-1], names[::3]):
        with spqfmt.open(tmp_path / "m.spq") as file:
            for name in order * 2:
                if name in broken:
                    with pytest.raises(CorruptError, match=rf"m\.spq: tensor '{name}': unknown scheme"):
                        file.read(name)
                else:
                    assert torch.equal(file.read(name), source[name])
