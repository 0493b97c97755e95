"""FORMAT.md section 8: what the package refuses in a set of shards. The reference decoder reads single files."""

import json
import shutil

import pytest
from spec_support import VECTORS
from spq_vectors.build import File
from spq_vectors.valid import dense

import spqfmt
from spqfmt.errors import CorruptError, FormatError, UnsupportedError

INDEX = json.loads((VECTORS / "valid" / "shards.spq.index.json").read_text(encoding="utf-8"))
FIRST, SECOND = INDEX["shards"]


@pytest.fixture
def model(tmp_path):
    for entry in INDEX["shards"]:
        shutil.copy(VECTORS / "valid" / entry["file"], tmp_path)
    path = tmp_path / "shards.spq.index.json"

    def write(**changes):
        path.write_text(json.dumps({**INDEX, **changes}), encoding="utf-8")
        return path

    return write


def test_set_is_read(model):
    with spqfmt.open(model()) as file:
        assert set(file) == {"part.1", "part.2"}


@pytest.mark.parametrize(
    "changes",
    [
        {"format": "spq"},
        {"shards": []},
        {"shards": [SECOND, FIRST]},
        {"shards": [FIRST]},
        {"shards": [FIRST, FIRST]},
        {"shards": [{**FIRST, "digest": "0" * 64}, SECOND]},
        {"shards": [{**FIRST, "digest": FIRST["digest"].upper()}, SECOND]},
        {"shards": [FIRST, {**SECOND, "file_bytes": SECOND["file_bytes"] + 1}]},
        {"shards": [{**FIRST, "file": f"./{FIRST['file']}"}, SECOND]},
        {"shards": [{**FIRST, "file": f"../{FIRST['file']}"}, SECOND]},
        {"shards": [{**FIRST, "file": 1}, SECOND]},
        {"shards": [{key: FIRST[key] for key in ("file", "digest")}, SECOND]},
        {"shards": {"0": FIRST}},
        {"shards": [1, 2]},
        {"version": "1"},
        {"version": True},
        {"x": 1.5},
    ],
    ids=str,
)
def test_index_that_does_not_fit_is_refused(model, changes):
    with pytest.raises(CorruptError), spqfmt.open(model(**changes)):
        pass


def test_newer_index_is_unsupported(model):
    with pytest.raises(UnsupportedError), spqfmt.open(model(version=2)):
        pass


def test_exchanged_shard_is_refused(model):
    path = model()
    shutil.copy(path.with_name(FIRST["file"]), path.with_name(SECOND["file"]))
    with pytest.raises(FormatError), spqfmt.open(path):
        pass


def test_shard_cut_short_is_refused(model):
    path = model()
    second = path.with_name(SECOND["file"])
    second.write_bytes(second.read_bytes()[:-1])
    with pytest.raises(FormatError), spqfmt.open(path):
        pass


def test_tensor_name_in_two_shards_is_refused(model):
    path = model()
    entries = []
    for number, entry in enumerate(INDEX["shards"], start=1):
        file = File(
            [("all", [dense("same", [1], "u8", [1])])], extra={"shard": {"number": number, "count": 2}}
        )
        data = file.build()
        path.with_name(entry["file"]).write_bytes(data)
        entries.append({"file": entry["file"], "file_bytes": len(data), "digest": data[-96:-64].hex()})
    with pytest.raises(CorruptError), spqfmt.open(model(shards=entries)):
        pass


def test_missing_shard_is_the_system_s_error(model):
    path = model()
    path.with_name(SECOND["file"]).unlink()
    with pytest.raises(FileNotFoundError), spqfmt.open(path):
        pass
