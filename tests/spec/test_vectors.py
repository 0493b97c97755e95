"""The frozen files, under both readers."""

import hashlib
import subprocess
import sys

import make_vectors
import pytest
import reference_decoder
from spec_support import (
    FORMAT_WORDS,
    INVALID,
    INVALID_1_1,
    KINDS,
    READERS,
    ROOT,
    VALID,
    VECTORS,
    RefusedError,
    rules,
    words,
)

import spqfmt

# Duties that are not a property of one file. test_shards.py has the rules of section 8.
NO_VECTOR = (
    "MUST, SHOULD and MAY are used as in RFC 2119.",
    "A reader MUST check the digest before it decodes the index",
    "A reader MUST NOT execute an asset.",
    "writes assets as files MUST write those alone that this section allows",
    "A reader MUST NOT refuse a file because it holds them.",
    "A reader MUST refuse files beyond these limits",
    "its length MUST NOT pass `max_index_raw_bytes`.",
    "A reader that opens the model through this file MUST check",
    "Memory claimed by a tensor that shares streams",  # the same rule as that of same_as in 3.2
    "it MUST report *unsupported* when it is asked for the tensor's elements",  # shown by a valid vector
)


@pytest.fixture(params=sorted(READERS))
def read(request):
    return READERS[request.param]


@pytest.mark.parametrize("name", sorted(VALID))
def test_valid_vector_restores_what_the_manifest_says(read, name):
    content = read(VECTORS / "valid" / f"{name}.spq")
    digests = {key: hashlib.sha256(data).hexdigest() for key, (_, _, data) in content.tensors.items()}
    assert digests == VALID[name]["tensors"]
    assets = {key: hashlib.sha256(data).hexdigest() for key, data in content.assets.items()}
    assert assets == VALID[name]["assets"]


@pytest.mark.every_backend
@pytest.mark.parametrize("name", sorted(VALID))
def test_both_readers_say_the_same_of_shapes_and_dtypes(name):
    path = VECTORS / "valid" / f"{name}.spq"
    assert READERS["product"](path) == READERS["reference"](path)


@pytest.mark.parametrize("name", sorted(INVALID))
def test_invalid_vector_gives_its_kind_of_error(read, name):
    with pytest.raises(RefusedError) as refused:
        read(VECTORS / "invalid" / f"{name}.spq")
    assert refused.value.kind == INVALID[name]["kind"], str(refused.value)


def test_every_kind_of_error_has_vectors():
    assert {entry["kind"] for entry in INVALID.values()} == set(KINDS.values())


@pytest.mark.parametrize("name", sorted(INVALID))
def test_broken_clause_stands_in_format(name):
    assert words(INVALID[name]["clause"]) in FORMAT_WORDS


def test_manifests_list_every_file():
    for folder, manifest in (("valid", VALID), ("invalid", INVALID)):
        assert {path.stem for path in (VECTORS / folder).glob("*.spq")} == set(manifest)
    for name, entry in VALID.items():
        assert (VECTORS / "valid" / f"{name}.spq").stat().st_size == entry["file_bytes"]


def test_shard_set_opens_as_one_model():
    with spqfmt.open(VECTORS / "valid" / "shards.spq.index.json") as model:
        assert list(model) == ["part.1", "part.2"]
        assert model.read("part.2").tolist() == [[2, 2], [2, 2]]
    spqfmt.verify(VECTORS / "valid" / "shards.spq.index.json")


def test_generator_still_makes_the_frozen_files():
    made = make_vectors.make()
    assert {str(path.relative_to(VECTORS)) for path in VECTORS.rglob("*alid/*")} == set(made)
    for path, data in made.items():
        # What zstd makes of the same bytes depends on the library's version; all other bytes are ours.
        if b"\x28\xb5\x2f\xfd" not in data and not path.endswith(".json"):
            assert (VECTORS / path).read_bytes() == data, path


def test_generator_refuses_to_overwrite(tmp_path):
    frozen = tmp_path / "valid" / "empty.spq"
    frozen.parent.mkdir()
    frozen.write_bytes(b"of an earlier version")
    command = [sys.executable, ROOT / "tools" / "generate" / "make_vectors.py", "--output", tmp_path]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 1
    assert frozen.read_bytes() == b"of an earlier version"
    assert subprocess.run([*command, "--force"], capture_output=True, check=False).returncode == 0
    assert frozen.read_bytes() == (VECTORS / "valid" / "empty.spq").read_bytes()


def test_reference_decoder_as_a_command(capsys):
    path = VECTORS / "valid" / "assets.spq"
    assert reference_decoder.main([str(path)]) == 0
    out = capsys.readouterr().out
    assert all(digest in out for digest in VALID["assets"]["assets"].values())
    assert reference_decoder.main([str(VECTORS / "invalid" / "crc_raw.spq")]) == 1
    assert "checksum" in capsys.readouterr().err
    assert reference_decoder.main([]) == 2


def test_every_rule_has_a_vector_that_breaks_it():
    """Each sentence with MUST is quoted, in part, by a vector's clause, or is excused by name."""
    clauses = [words(entry["clause"]) for entry in (*INVALID.values(), *INVALID_1_1.values())]
    missing = [
        rule
        for rule in rules()
        if not any(clause in rule or rule in clause for clause in clauses)
        and not any(excused in rule for excused in NO_VECTOR)
    ]
    assert missing == []
