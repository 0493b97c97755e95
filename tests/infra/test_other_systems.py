"""Systems that lack what Linux has (locks, preadv, forks, ...): files are read and written there.

Such a system was never at hand; this takes away here what Windows has not.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import spqfmt

VECTORS = Path(__file__).resolve().parents[2] / "spec" / "vectors" / "valid"
MODULES = ("fcntl", "resource", "termios", "readline", "pwd", "grp")
NAMES = {
    "os": (
        "preadv", "posix_fadvise", "register_at_fork", "fork", "sched_getaffinity", "getloadavg", "O_DIRECTORY",
        "O_NOFOLLOW",
    ),
    "mmap": ("MAP_PRIVATE", "MAP_ANONYMOUS", "MADV_HUGEPAGE"),
}  # fmt: skip
CHILD = f"""
import contextlib, io, json, mmap, os, sys, ctypes
import numpy as np, tempfile, shutil, random  # what they use of a system is their own

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name in {MODULES!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
for name in {MODULES!r}:
    sys.modules.pop(name, None)
for module, names in {NAMES!r}.items():
    for name in names:
        delattr(sys.modules[module], name)
import spqfmt
from spqfmt.cli.main import _run

said = {{}}
for line in sys.argv[2:]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = _run(line.split())
    said[line] = [code, err.getvalue()[-300:]]
with spqfmt.open("model.spq") as f:
    np.savez(sys.argv[1], **{{name: f.read_numpy(name) for name in f}})
print(json.dumps(said))
"""
LINES = [
    "inspect model.spq", "inspect model.spq --measure --json", "inspect model.spq --html page.html",
    "verify model.spq --content",
    "diff model.spq model.spq", "repack model.spq again.spq --codec zstd", "diff model.spq again.spq",
    "unpack model.spq back", "verify broken.spq",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vector whose source's files come back, sound and with a bit turned."""
    folder = tmp_path_factory.mktemp("elsewhere")
    [source] = [
        path for path in VECTORS.parent.rglob("valid/*.spq") if path.name == "sources_safetensors.spq"
    ]
    data = bytearray(source.read_bytes())
    (folder / "model.spq").write_bytes(data)
    data[len(data) // 3] ^= 16
    (folder / "broken.spq").write_bytes(data)
    return folder


@pytest.fixture(scope="module")
def said(folder: Path) -> dict[str, Any]:
    command = [sys.executable, "-P", "-c", CHILD, "arrays.npz", *LINES]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)  # type: ignore[no-any-return]


@pytest.mark.parametrize("line", LINES)
def test_commands_that_read_work(said: dict[str, Any], line: str) -> None:
    assert said[line][0] == ("broken" in line), said[line]


def test_nothing_is_left_over_and_arrays_are_the_same(said: dict[str, Any], folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {
        "model.spq", "broken.spq", "again.spq", "back", "page.html", "arrays.npz",
    }  # fmt: skip
    arrays = np.load(folder / "arrays.npz")
    with spqfmt.open(folder / "model.spq") as f:
        assert list(f) == list(arrays)
        for name in f:
            assert np.array_equal(f.read_numpy(name), arrays[name]), name
