"""The frozen files on every path that reads chunks: broken ones are refused, sound ones are not."""

import re
from pathlib import Path

import pytest
from paths import PATHS, packable_names
from spec_support import INVALID, KINDS, VALID, VECTORS
from test_resealed import parts, sealed

import spqfmt
from spqfmt import errors
from spqfmt.asset_names import as_files
from spqfmt.wire import REQUIRED_FEATURES

PACKED = ("decoded", "compressed", "device")
"""Paths that read the tensors that a model may keep packed, and nothing else."""
BROKEN_CHUNKS = [name for name in sorted(INVALID) if re.match(r"rans_|zstd_|crc_ra", name)]
"""Their one tensor is a row of bytes, which no model keeps packed: `as_codes` makes one of it that is."""


def kind_of(path: Path, way: str) -> str | None:
    """The kind of error that a path ends in; None where it finds nothing."""
    try:
        PATHS[way](path)
    except errors.FormatError as error:
        return KINDS[type(error)]
    return None


@pytest.mark.parametrize("way", sorted(PATHS))
@pytest.mark.parametrize("name", sorted(INVALID))
def test_every_path_refuses_what_is_broken(name: str, way: str) -> None:
    path = VECTORS / "invalid" / f"{name}.spq"
    with pytest.raises(errors.FormatError) as refused:
        spqfmt.verify(path)
    if way in PACKED and not concerns_packed(path, str(refused.value)):
        pytest.skip("the rule that it breaks is about what no model keeps packed")
    if way in {"rows", "measure"} and "asset" in str(refused.value):
        pytest.skip("this path reads no assets")
    asset = re.search(r"asset '([^']+)'", str(refused.value))
    if way == "unpack" and name == "crc_asset" and asset and not as_files([asset[1]]):
        pytest.skip("an asset of this name is not written, and not read")
    if way != "verify" and "padding is not zero" in str(refused.value):
        pytest.skip("only verify looks at bytes that belong to nothing")
    assert kind_of(path, way) == INVALID[name]["kind"]


def as_codes(data: bytes) -> bytes:
    """The same stored chunks as the codes of a matrix."""
    before, index, trailer = parts(data)
    (tensor,) = index["tensors"]
    (stream,) = tensor["streams"]
    (n,) = tensor["shape"]
    stream |= {"role": "codes", "dtype": "i8"}
    tensor |= {"shape": [2, n // 2], "dtype": "f32", "scheme": "uniform"}
    tensor["parameters"] = {"orientation": "rows", "step": 0x3F000000}
    required = int.from_bytes(trailer[64:72], "little") | 1 << REQUIRED_FEATURES["uniform"]
    return sealed(before, index, trailer[:64] + required.to_bytes(8, "little") + trailer[72:])


@pytest.mark.parametrize("way", ["verify", *PACKED])
@pytest.mark.parametrize("name", BROKEN_CHUNKS)
def test_packed_paths_refuse_chunks_that_are_broken(name: str, way: str, tmp_path: Path) -> None:
    path = tmp_path / "codes.spq"
    path.write_bytes(as_codes((VECTORS / "invalid" / f"{name}.spq").read_bytes()))
    assert packable_names(path) == {"weight"}
    assert kind_of(path, way) == INVALID[name]["kind"]


def concerns_packed(path: Path, message: str) -> bool:
    """Whether a file that opens is broken in a tensor that may be packed; one that does not open concerns all."""
    found = re.search(r"tensor '([^']+)'", message)
    try:
        names = packable_names(path)
    except errors.FormatError:
        return True
    return found is not None and found[1] in names


@pytest.mark.parametrize("way", sorted(PATHS))
@pytest.mark.parametrize("name", sorted(VALID))
def test_no_path_refuses_what_is_sound(name: str, way: str) -> None:
    path = VECTORS / "valid" / f"{name}.spq"
    if name.startswith("shards-") and way in {"repack", "unpack"}:
        path = VECTORS / "valid" / "shards.spq.index.json"  # one shard alone is no model
    assert kind_of(path, way) is None
