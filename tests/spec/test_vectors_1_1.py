"""The frozen files of version 1.1, under the reference decoder, a second reader of the text, and foreign libraries."""

import hashlib
import re
from functools import partial

import gguf
import numpy as np
import pytest
import reference_decoder
import second_reader
import torch
from paths import PATHS
from safetensors import deserialize
from spec_support import (
    FORMAT_WORDS,
    INVALID_1_1,
    KINDS,
    ORIGINS_WORDS,
    READERS,
    VALID_1_1,
    VECTORS,
    VECTORS_1_1,
    words,
)
from spq_reference.errors import SpqRefError, Unsupported
from test_paths import PACKED, concerns_packed
from test_resealed import parts, sealed

import spqfmt
from spqfmt import errors
from spqfmt.reading.diff import diff_files

PIECES = ("sources_file_bytes", "sources_no_part", "sources_past_part", "sources_piece_short")
"""Vectors whose pieces are not what their tensors have."""

NAMED = [name for name, entry in VALID_1_1.items() if entry["refused"]]
"""Vectors with tensors in schemes that only their makers know."""
NOT_WHOLE_BYTES = ("dense_small_floats", "unused_bits_f4", "unused_bits_f6")
"""Vectors with tensors that safetensors does not hold."""


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def data_of(name: str) -> bytes:
    return (VECTORS_1_1 / "valid" / f"{name}.spq").read_bytes()


@pytest.mark.parametrize("name", sorted(VALID_1_1))
def test_reference_decoder_restores_what_the_manifest_says(name):
    decoded = reference_decoder.decode(data_of(name))
    entry = VALID_1_1[name]
    assert {key: tensor.sha256 for key, tensor in decoded.tensors.items()} == entry["tensors"]
    assert {key: sha256(asset) for key, asset in decoded.assets.items()} == entry["assets"]
    assert {key: sha256(file) for key, file in decoded.files.items()} == entry["files"]
    assert sorted(decoded.refused) == entry["refused"]
    assert sorted(decoded.unmade) == entry["unmade"]
    reasons = [*decoded.refused.values(), *decoded.unmade.values()]
    assert all(isinstance(reason, Unsupported) for reason in reasons)


@pytest.mark.parametrize("name", sorted(VALID_1_1))
def test_second_reader_restores_the_same(name):
    entry = VALID_1_1[name]
    file = second_reader.File(data_of(name))
    for number, tensor in enumerate(file.tensors):
        if "/" in tensor["scheme"] or tensor["scheme"] == "uniform" or tensor["name"] in entry["refused"]:
            continue
        assert sha256(file.restored(number)) == entry["tensors"][tensor["name"]], tensor["name"]
    assert file.model_content() == reference_decoder.decode(data_of(name)).content
    made = {key: sha256(file) for key, file in file.files().items()}
    assert made == {key: digest for key, digest in entry["files"].items() if not key.endswith("model.gguf")}


@pytest.mark.parametrize("name", sorted(INVALID_1_1))
def test_invalid_vector_gives_its_kind_of_error(name):
    with pytest.raises(SpqRefError) as refused:
        reference_decoder.decode((VECTORS_1_1 / "invalid" / f"{name}.spq").read_bytes())
    assert refused.value.kind == INVALID_1_1[name]["kind"], str(refused.value)


@pytest.mark.parametrize("name", sorted(INVALID_1_1))
def test_broken_clause_stands_in_the_text(name):
    assert words(INVALID_1_1[name]["clause"]) in f"{FORMAT_WORDS} {ORIGINS_WORDS}"


def test_manifests_list_every_file():
    for folder, manifest in (("valid", VALID_1_1), ("invalid", INVALID_1_1)):
        assert {path.stem for path in (VECTORS_1_1 / folder).glob("*.spq")} == set(manifest)
    for name, entry in VALID_1_1.items():
        assert len(data_of(name)) == entry["file_bytes"]


def minor_and_bits(data: bytes) -> tuple[int, int, int]:
    return data[10], *(int.from_bytes(data[at : at + 8], "little") for at in (len(data) - 32, len(data) - 24))


def test_every_new_bit_is_set_by_a_vector_and_none_of_1_0():
    required = optional = 0
    for name in VALID_1_1:
        minor, more, maybe = minor_and_bits(data_of(name))
        assert minor == int(more >> 14 > 0 or maybe >> 2 > 0), name
        required, optional = required | more, optional | maybe
    assert required >> 14 == (1 << 11) - 1
    assert optional >> 2 & 7 == 7
    for path in (VECTORS / "valid").glob("*.spq"):
        assert path.stem == "future_minor" or minor_and_bits(path.read_bytes())[1] >> 13 == 0


def test_the_same_content_in_other_chunks():
    first, second = (
        reference_decoder.decode(data_of(name)) for name in ("content", "content_in_other_chunks")
    )
    assert first.content == second.content
    assert data_of("content")[64:] != data_of("content_in_other_chunks")[64:]


def test_safetensors_reads_the_files_that_come_back():
    decoded = reference_decoder.decode(data_of("sources_safetensors"))
    tensors: dict[str, bytes] = {}
    for name in ("model-00001-of-00002.safetensors", "weights/model-00002-of-00002.safetensors"):
        tensors |= {key: bytes(entry["data"]) for key, entry in deserialize(decoded.files[name])}
    assert tensors["embed"] == tensors["head"] == decoded.tensors["embed"].data
    assert tensors["q"] + tensors["k"] + tensors["v"] == decoded.tensors["qkv"].data
    assert tensors["step"] == (7).to_bytes(8, "little")


def test_gguf_reads_the_file_that_comes_back_and_dequantizes_to_the_same(tmp_path):
    decoded = reference_decoder.decode(data_of("origin_gguf"))
    path = tmp_path / "model.gguf"
    path.write_bytes(decoded.files["model.gguf"])
    tensors = gguf.GGUFReader(path).tensors
    assert len(tensors) == len(decoded.tensors) == 16
    for tensor in tensors:
        weights = gguf.dequantize(tensor.data, tensor.tensor_type).astype("<f4")
        ours = np.frombuffer(decoded.tensors[tensor.name].data, "<f4").reshape(weights.shape)
        if tensor.name == "Q4_0":
            ours = ours[[0, 2, 1, 3]]
        # An IQ4 or MXFP4 of ggml makes 0 of -0.
        np.testing.assert_array_equal(ours, weights, err_msg=tensor.name)
        if tensor.name != "MXFP4.floats":
            assert ours.tobytes() == weights.tobytes(), tensor.name


@pytest.mark.parametrize("name", sorted(VALID_1_1))
def test_flipped_bits_are_an_error_or_change_nothing(name):
    whole = data_of(name)
    content = reference_decoder.decode(whole)
    every = len(whole) // 150 + 1
    for offset in range(0, len(whole), every):
        data = bytearray(whole)
        data[offset] ^= 1 << offset * 5 % 8
        try:
            damaged = reference_decoder.decode(bytes(data))
        except SpqRefError:
            continue
        assert damaged == content, offset


@pytest.mark.parametrize("name", sorted(VALID_1_1))
def test_prefixes_are_truncated(name):
    whole = data_of(name)
    for n_bytes in range(8, len(whole), len(whole) // 40 + 1):
        with pytest.raises(SpqRefError) as refused:
            reference_decoder.decode(whole[:n_bytes])
        assert refused.value.kind == "truncated"


def test_shards_have_one_content_and_make_files_together():
    names = [f"sources-{number:05}-of-00002" for number in (1, 2)]
    shards = [second_reader.File(data_of(name)) for name in names]
    records = [record for shard in shards for record in shard.tensors]
    digests = b"".join(
        bytes.fromhex(record["content"]) + record["name"].encode() + b"\0"
        for record in sorted(records, key=lambda record: record["name"])
    )
    assert {shard.index["content"] for shard in shards} == {sha256(digests)}
    parts = [shard.restored(number) for shard in shards for number in range(len(shard.tensors))]
    sources, data = shards[0].index["sources"], b""
    literals = shards[0].assets[sources["literals"]]
    for n, tensor, _ in sources["files"][0]["pieces"]:
        data, literals = data + literals[:n] + parts[tensor], literals[n:]
    assert {sources["files"][0]["name"]: sha256(data)} == VALID_1_1[names[0]]["files_of_set"]


def refusal(path, way: str) -> errors.FormatError | None:
    """What a path of the package says of a file; None where it finds nothing."""
    try:
        PATHS[way](path)
    except errors.FormatError as error:
        return error
    return None


@pytest.mark.parametrize("name", sorted(set(VALID_1_1) - set(NAMED)))
def test_package_restores_what_the_manifest_says(name):
    content, entry = READERS["product"](VECTORS_1_1 / "valid" / f"{name}.spq"), VALID_1_1[name]
    assert {key: sha256(data) for key, (_, _, data) in content.tensors.items()} == entry["tensors"]
    assets = {key: sha256(data) for key, data in content.assets.items()}
    assert assets.items() >= entry["assets"].items()  # literals of source files are an asset for it


@pytest.mark.parametrize(
    "name",
    ["sources_of_weights_alone", "sources_safetensors", "origin_arrays", "origin_gptq", "origin_gguf"],
)
def test_package_writes_the_files_that_the_manifest_says(name, tmp_path):
    report = spqfmt.unpack(
        VECTORS_1_1 / "valid" / f"{name}.spq", tmp_path / "out", as_="source", with_code=True
    )
    made = {key: sha256((tmp_path / "out" / key).read_bytes()) for key in report.written}
    assert made == VALID_1_1[name]["files"]
    with spqfmt.open(VECTORS_1_1 / "valid" / f"{name}.spq") as file:
        assert {key: sha256(data) for key, data in file.assets.items()} == VALID_1_1[name]["assets"]


def test_package_writes_the_files_of_shards(tmp_path):
    path = VECTORS_1_1 / "valid" / "sources.spq.index.json"
    report = spqfmt.unpack(path, tmp_path / "out", as_="source")
    made = {key: sha256((tmp_path / "out" / key).read_bytes()) for key in report.written}
    assert made == VALID_1_1["sources-00001-of-00002"]["files_of_set"]


@pytest.mark.parametrize("way", sorted(PATHS))
@pytest.mark.parametrize("name", sorted(set(VALID_1_1) - set(NAMED)))
def test_no_path_refuses_what_is_sound(name, way):
    path = VECTORS_1_1 / "valid" / f"{name}.spq"
    if name.startswith("sources-") and way in {"repack", "unpack"}:
        path = VECTORS_1_1 / "valid" / "sources.spq.index.json"  # one shard alone is no model
    if way == "unpack" and name in NOT_WHOLE_BYTES:
        with pytest.raises(errors.EncodeError, match="fill no whole bytes"):
            refusal(path, way)
        return
    assert refusal(path, way) is None


@pytest.mark.parametrize("way", sorted(PATHS))
@pytest.mark.parametrize("name", NAMED)
def test_of_schemes_that_are_not_known_the_elements_alone_are_refused(name, way):
    error = refusal(VECTORS_1_1 / "valid" / f"{name}.spq", way)
    if way in {"read", "rows", "unpack"}:
        assert isinstance(error, errors.UnsupportedError)
        found = re.search(f"{name}.spq: tensor '([a-z]+)': its scheme (.*) is not one of", str(error))
        assert found[1] in VALID_1_1[name]["refused"]
        assert found[2] == error.feature
    else:
        assert error is None


def test_the_rest_of_a_file_with_named_schemes_is_read(tmp_path):
    path = VECTORS_1_1 / "valid" / "named_scheme.spq"
    again, other = tmp_path / "again.spq", tmp_path / "other.spq"
    spqfmt.repack(path, again, codec="raw")
    entry = VALID_1_1["named_scheme"]
    for file_path in (path, again):
        decoded = reference_decoder.decode(file_path.read_bytes())
        assert sorted(decoded.refused) == entry["refused"]
        with spqfmt.open(file_path) as file:
            assert {n: sha256(file[n].read_bytes()) for n in entry["tensors"]} == entry["tensors"]
            for name in entry["refused"]:
                handle = file[name]
                for read in (handle.read, handle.read_bytes, partial(handle.read, slice(0, 1))):
                    with pytest.raises(errors.UnsupportedError, match="its scheme"):
                        read()
            assert file["lattice"].info.scheme == "example.e8-lattice/2"
            assert {stream.role for stream in file["lattice"].info.streams} == {"codebook", "outlier_gaps"}
    assert (
        reference_decoder.decode(path.read_bytes()).content
        == reference_decoder.decode(again.read_bytes()).content
    )
    report = diff_files(path, again, error=True)
    assert report.equal
    # Without digests, streams and parameters are compared; another parameter is another tensor.
    before, root, trailer = parts(path.read_bytes())
    for change in ({}, {"levels": 3}):
        root.pop("content", None)
        for tensor in root["tensors"]:
            tensor.pop("content", None)
        root["tensors"][0]["parameters"] |= change
        other.write_bytes(sealed(before, root, trailer))
        [lattice, *_] = [t for t in diff_files(other, again, error=True).tensors if t.name == "lattice"]
        assert lattice.difference == ("weights" if change else "equal")


@pytest.mark.parametrize("name", sorted(INVALID_1_1))
def test_every_path_of_the_package_refuses_what_is_broken(name):
    path = VECTORS_1_1 / "invalid" / f"{name}.spq"
    # Whoever asks for the digest of what is held learns that it is another.
    ways = {"content"} if name.startswith("content_") and INVALID_1_1[name]["kind"] == "checksum" else PATHS
    # Lengths of pieces are those of tensors, whose records are made where they are wanted.
    ways = (
        {"verify", "unpack"}
        if name in PIECES
        else {"unpack"}
        if name == "sources_sha256" or name.startswith(("arrays_", "gguf_"))
        else ways
    )
    for way in sorted(ways):
        if way == "unpack" and name in NOT_WHOLE_BYTES:
            with pytest.raises(errors.EncodeError, match="fill no whole bytes"):
                refusal(path, way)
            continue
        error = refusal(path, way)
        if error is None and way in PACKED and not concerns_packed(path, str(refusal(path, "verify"))):
            continue
        if name in {"named_crc", "named_same_as"} and isinstance(error, errors.UnsupportedError):
            continue  # elements of a sound tensor before it were asked for
        assert KINDS[type(error)] == INVALID_1_1[name]["kind"], way


@pytest.mark.parametrize("name", ["views", "transposed_stacks", "dense_order"])
def test_rows_of_rearranged_tensors_are_rows_of_the_whole(name):
    with spqfmt.open(VECTORS_1_1 / "valid" / f"{name}.spq") as file:
        for handle in file.values():
            whole = handle.read()
            if whole.ndim:
                rows = handle.read(slice(1, None))
                assert rows.shape == whole[1:].shape
                assert rows.contiguous().view(torch.uint8).equal(whole[1:].contiguous().view(torch.uint8))
