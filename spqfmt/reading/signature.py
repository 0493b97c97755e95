"""Signatures beside a model: who holds a key says that these are the bytes and the weights.

A signature is a DSSE envelope around an in-toto statement, as sigstore's signing of models has them: its subjects are
the model's files with their SHA-256, and what it says of them are the digest of each file's index and the content
digest of the model (FORMAT.md 2.2 and 3.5). The key is one of ed25519; `cryptography` is imported only here.
"""

import base64
import binascii
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spqfmt.container.model import OpenModel, open_model
from spqfmt.container.strict_json import dump, parse
from spqfmt.errors import FormatError, OptionError, SpqError
from spqfmt.progress import Progress, Silent
from spqfmt.reading.verify import verify_file

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SUFFIX = ".sig"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
_STATEMENT = "https://in-toto.io/Statement/v1"
_PREDICATE = "urn:spqfmt:signature:1"
_MOST_BYTES = 1 << 26
"""A signature is never larger: that of a model of 99,999 shards has some 20 MB."""
_READ_BYTES = 1 << 20


def signature_path(path: Path) -> Path:
    """Return where the signature of a model lies: m.spq -> m.spq.sig."""
    return path.with_name(path.name + SUFFIX)


def sign(path: str | os.PathLike[str], key: bytes, progress: Progress | None = None) -> bytes:
    """Return the signature of a model that was checked to its last byte, by a private key (PEM or OpenSSH).

    Raises OptionError for what is no such key, FormatError for a file that is not sound.
    """
    private = _private_key(key)
    path = Path(path)
    payload = dump(_statement(path, progress or Silent()))
    public = private.public_key().public_bytes_raw()
    entry = {"keyid": hashlib.sha256(public).hexdigest(), "sig": _base64(private.sign(_signed(payload)))}
    return dump({"payload": _base64(payload), "payloadType": PAYLOAD_TYPE, "signatures": [entry]}) + b"\n"


def is_signature(path: Path) -> bool:
    """Whether a file has the form of what `sign` makes, whoever signed."""
    with path.open("rb") as file:
        data = file.read(_MOST_BYTES + 1)
    try:
        return len(data) <= _MOST_BYTES and json.loads(data)["payloadType"] == PAYLOAD_TYPE
    except (ValueError, KeyError, TypeError, RecursionError):
        return False


def verify_signature(
    path: str | os.PathLike[str], signature: bytes, key: bytes, progress: Progress | None = None
) -> str:
    """Check a model to its last byte and that the holder of the key signed it; return its content digest.

    `key` is the public key, PEM or OpenSSH. Raises SpqError where the signature is another key's or of other files,
    OptionError for what is no key, FormatError for a file that is not sound.
    """
    public = _public_key(key)
    path = Path(path)
    payload = _payload(signature, public)
    # The files are looked at only when the key's holder has said something.
    said, found = parse(payload), _statement(path, progress or Silent())
    if said == found:
        return str(found["predicate"]["content"])
    if said.get("_type") != _STATEMENT or said.get("predicateType") != _PREDICATE:
        raise SpqError("the signature is good, and says nothing of a .spq file")
    predicate = said.get("predicate")
    same = isinstance(predicate, dict) and predicate.get("content") == found["predicate"]["content"]
    names = [_names(one) for one in (said, found)]
    if names[0] != names[1]:
        raise SpqError(f"the signature is of {_some(names[0])}, not of {_some(names[1])}")
    beside = "; its weights are those that were signed" if same else ""
    raise SpqError(f"{path}: not the file that was signed{beside}")


def _names(statement: Mapping[str, Any]) -> list[str]:
    subjects = statement.get("subject")
    found = (
        [one.get("name") for one in subjects if isinstance(one, dict)] if isinstance(subjects, list) else []
    )
    return [str(name) for name in found]


def _some(names: list[str]) -> str:
    return f"{names[0]} and {len(names) - 1} more files" if len(names) > 1 else (names or ["nothing"])[0]


def _statement(path: Path, progress: Progress) -> dict[str, Any]:
    """What a signature says of a model that was read whole.

    Checksums of chunks are easily forged, so the bytes count, not the index's word for them.
    """
    content = verify_file(path, progress, content=True)
    with open_model(path) as model:
        if not model.is_whole:
            raise FormatError(f"{path}: one shard of a model; sign the model, by its .spq.index.json")
        subjects = [{"name": _name(file), "digest": {"sha256": _sha256(file)}} for file in _files(model)]
        indexes = [reader.trailer.digest.hex() for reader in model.readers]
    return {
        "_type": _STATEMENT,
        "subject": subjects,
        "predicateType": _PREDICATE,
        "predicate": {"content": content, "indexes": indexes},
    }


def _files(model: OpenModel) -> list[Path]:
    shards = [reader.path for reader in model.readers]
    return shards if model.path == shards[0] else [model.path, *shards]


def _name(file: Path) -> str:
    """Return a file's name; bytes that are no UTF-8 as \\xff."""
    return os.fsencode(file.name).decode(errors="backslashreplace")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while data := file.read(_READ_BYTES):
            digest.update(data)
    return digest.hexdigest()


def _signed(payload: bytes) -> bytes:
    """Return what is signed of a payload: DSSE's encoding of it with its type."""
    return b"DSSEv1 %d %s %d %s" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(payload), payload)


def _payload(signature: bytes, public: "Ed25519PublicKey") -> bytes:
    """Return what the key's holder has signed."""
    from cryptography.exceptions import InvalidSignature

    if len(signature) > _MOST_BYTES:
        raise SpqError("larger than any signature")
    try:
        envelope = json.loads(signature)
        payload = base64.b64decode(envelope["payload"], validate=True)
        signatures = [base64.b64decode(one["sig"], validate=True) for one in envelope["signatures"]]
        is_ours = envelope["payloadType"] == PAYLOAD_TYPE
    except (ValueError, KeyError, TypeError, RecursionError, binascii.Error):
        raise SpqError("not a signature that `spqfmt sign` makes") from None
    for one in signatures if is_ours else ():
        try:
            public.verify(one, _signed(payload))
        except InvalidSignature:
            continue
        return payload
    raise SpqError("not signed by this key")


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _private_key(data: bytes) -> "Ed25519PrivateKey":
    serialization, ed25519 = _library()
    for load in (serialization.load_pem_private_key, serialization.load_ssh_private_key):
        key = _loaded(load, data, password=None)
        if isinstance(key, ed25519.Ed25519PrivateKey):
            return key
    raise OptionError("--key is not a private key of ed25519 without a password, in PEM or as OpenSSH has it")


def _public_key(data: bytes) -> "Ed25519PublicKey":
    serialization, ed25519 = _library()
    for load in (serialization.load_pem_public_key, serialization.load_ssh_public_key):
        key = _loaded(load, data)
        if isinstance(key, ed25519.Ed25519PublicKey):
            return key
    raise OptionError("--key is not a public key of ed25519, in PEM or as OpenSSH has it")


def _loaded(load: Any, data: bytes, **options: Any) -> object:
    from cryptography.exceptions import UnsupportedAlgorithm

    try:
        return load(data, **options)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return None


def _library() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError:
        raise OptionError("signatures need the package cryptography: pip install 'spqfmt[sign]'") from None
    return serialization, ed25519
