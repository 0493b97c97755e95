"""Signatures: who changes a file, its name or its signature is found out, with checksums that fit or not."""

import base64
import hashlib
import json
import os
import shutil
import zlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from spq_command import run
from test_resealed import parts, sealed

import spqfmt
from spqfmt.reading import signature
from spqfmt.reading.signature import sign, verify_signature

if "CI" not in os.environ:
    pytest.importorskip("cryptography")

from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

PRIVATE = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32))
KEY = PRIVATE.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
PUBLIC = PRIVATE.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
OTHER_PUBLIC = OTHER.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("signed")
    weights = {f"layers.{i}.weight": torch.full((8, 8), float(i)) for i in range(4)}
    save_file(weights, folder / "model.safetensors")
    spqfmt.pack(folder / "model.safetensors", folder / "m.spq", codec="raw")
    spqfmt.pack(folder / "model.safetensors", folder / "cut.spq", codec="raw", shard_size=600)
    return folder / "m.spq"


def test_a_signature_is_dsse_around_a_statement_of_in_toto(model: Path) -> None:
    made = sign(model, KEY)
    assert made == sign(model, KEY)
    envelope = json.loads(made)
    payload = base64.b64decode(envelope["payload"])
    kind = b"application/vnd.in-toto+json"
    assert envelope["payloadType"] == kind.decode()
    signed = b"DSSEv1 28 " + kind + b" " + str(len(payload)).encode() + b" " + payload
    PRIVATE.public_key().verify(base64.b64decode(envelope["signatures"][0]["sig"]), signed)
    statement = json.loads(payload)
    assert statement["subject"] == [
        {"name": "m.spq", "digest": {"sha256": hashlib.sha256(model.read_bytes()).hexdigest()}}
    ]
    with spqfmt.open(model) as file:
        assert statement["predicate"]["content"] == file.content
    assert statement["predicate"]["indexes"] == [model.read_bytes()[-96:-64].hex()]


def test_what_was_signed_is_found_good_with_keys_of_either_form(model: Path) -> None:
    ssh = PRIVATE.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    ssh_public = PRIVATE.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    for private in (KEY, ssh):
        for public in (PUBLIC, ssh_public):
            assert verify_signature(model, sign(model, private), public) == spqfmt.verify(model, content=True)


def test_another_key_signed(model: Path) -> None:
    with pytest.raises(spqfmt.SpqError, match="not signed by this key"):
        verify_signature(model, sign(model, KEY), OTHER_PUBLIC)


def test_every_flipped_bit_of_a_signature_is_noticed(model: Path) -> None:
    good = sign(model, KEY)
    payload = json.loads(good)["payload"]
    for at in range(0, len(good), 5):
        changed = bytearray(good)
        changed[at] ^= 1 << at % 7
        try:
            verify_signature(model, bytes(changed), PUBLIC)
        except spqfmt.SpqError:
            continue
        # What tells which key it was, white space and the like say nothing.
        envelope = json.loads(changed)
        assert base64.b64decode(envelope["payload"]) == base64.b64decode(payload), at


def forged(path: Path) -> bytes:
    """The file with other weights, under a checksum and a digest that fit."""
    before, index, trailer = parts(path.read_bytes())
    row = index["tensors"][0]["streams"][0]["chunks"][0]
    changed = bytearray(before)
    changed[64] ^= 1
    row[3] = zlib.crc32(changed[64 : 64 + row[1]])
    index.pop("sources", None)
    for record in (index, *index["tensors"]):
        record.pop("content", None)
    return sealed(bytes(changed), index, trailer)


def test_a_file_that_fits_its_checksums_is_not_the_one_that_was_signed(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.spq"
    path.write_bytes(forged(model))
    with pytest.raises(spqfmt.SpqError, match=r"m\.spq: not the file that was signed$"):
        verify_signature(path, sign(model, KEY), PUBLIC)


def test_the_same_weights_in_another_file_are_told(model: Path, tmp_path: Path) -> None:
    spqfmt.repack(model, tmp_path / "m.spq", codec="zstd")
    with pytest.raises(spqfmt.SpqError, match="not the file that was signed; its weights are those"):
        verify_signature(tmp_path / "m.spq", sign(model, KEY), PUBLIC)


def test_another_name_is_another_model(model: Path, tmp_path: Path) -> None:
    shutil.copy(model, tmp_path / "other.spq")
    with pytest.raises(spqfmt.SpqError, match=r"is of m\.spq, not of other\.spq"):
        verify_signature(tmp_path / "other.spq", sign(model, KEY), PUBLIC)


def test_the_command_replaces_signatures_alone(model: Path, tmp_path: Path) -> None:
    file, key = tmp_path / "m.spq", tmp_path / "key.pem"
    shutil.copy(model, file)
    key.write_bytes(KEY)
    for kept in (file, key):
        before = kept.read_bytes()
        done = run("sign", file, "--key", key, "--out", kept, "--force")
        assert done.code == 2
        assert "is no signature, which is all that --force replaces" in done.stderr
        assert kept.read_bytes() == before
    for options in ([], ["--force"]):
        assert run("sign", file, "--key", key, *options).code == 0
    assert run("sign", file, "--key", key).code == 2


def test_shards_are_signed_together(model: Path) -> None:
    index = model.with_name("cut.spq.index.json")
    made = sign(index, KEY)
    names = [one["name"] for one in json.loads(base64.b64decode(json.loads(made)["payload"]))["subject"]]
    assert names[:2] == ["cut.spq.index.json", f"cut-00001-of-{len(names) - 1:05}.spq"]
    assert verify_signature(index, made, PUBLIC) == spqfmt.verify(index, content=True)
    with pytest.raises(spqfmt.FormatError, match="one shard of a model"):
        sign(model.with_name(names[1]), KEY)


@pytest.mark.parametrize(
    "key",
    [
        b"",
        PUBLIC,
        PRIVATE.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")),
        ec.generate_private_key(ec.SECP256R1()).private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
        ),
    ],
    ids=["nothing", "public", "password", "another kind"],
)
def test_a_key_that_cannot_sign_is_refused(model: Path, key: bytes) -> None:
    with pytest.raises(spqfmt.OptionError, match="not a private key of ed25519"):
        sign(model, key)


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b'{"payload": 3}', b"[" * 99_999, b"\xff"])
def test_what_is_no_signature_is_refused(model: Path, text: bytes) -> None:
    with pytest.raises(spqfmt.SpqError, match="not a signature"):
        verify_signature(model, text, PUBLIC)


def test_a_signature_of_something_else(model: Path) -> None:
    payload = b'{"_type": "https://in-toto.io/Statement/v1", "predicateType": "of cheese"}'
    entry = {"sig": base64.b64encode(PRIVATE.sign(signature._signed(payload))).decode()}
    envelope = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": signature.PAYLOAD_TYPE,
        "signatures": [entry],
    }
    with pytest.raises(spqfmt.SpqError, match=r"says nothing of a \.spq file"):
        verify_signature(model, json.dumps(envelope).encode(), PUBLIC)


def test_the_commands(model: Path, tmp_path: Path) -> None:
    shutil.copy(model, tmp_path / "m.spq")
    (tmp_path / "key").write_bytes(KEY)
    (tmp_path / "key.pub").write_bytes(PUBLIC)
    path, key, public = tmp_path / "m.spq", tmp_path / "key", tmp_path / "key.pub"
    done = run("verify", path, "--key", public)
    assert done.code == 1
    assert "has no signature beside it" in done.stderr
    assert run("sign", path, "--key", key).code == 0
    assert run("sign", path, "--key", key).code == 2  # it is there already
    done = run("verify", path, "--key", public)
    assert done.code == 0
    assert f"sound, and signed by the key in {public}" in done.stderr
    (tmp_path / "m.spq").write_bytes(forged(model))
    done = run("verify", path, "--key", public)
    assert done.code == 1
    assert "not the file that was signed" in done.stderr
    done = run("verify", path, "--signature", f"{path}.sig")
    assert done.code == 2
    assert "--key" in done.stderr
    assert sorted(file.name for file in tmp_path.iterdir()) == ["key", "key.pub", "m.spq", "m.spq.sig"]
