"""The frozen files on every path that reads chunks: broken ones are refused, sound ones are not."""

import re
from pathlib import Path

import pytest
from paths import PATHS, packable_names
from spec_support import INVALID, KINDS, VALID, VECTORS

import spqfmt
from spqfmt import errors
from spqfmt.asset_names import as_files

PACKED = ("decoded", "compressed", "device")
"""Paths that read the tensors that a model may keep packed, and nothing else."""


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
