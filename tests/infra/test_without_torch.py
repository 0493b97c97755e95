"""An environment that only looks at files: without torch, transformers and what comes with them."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools" / "models"))
import tiny

import spqfmt
from spqfmt.errors import _REQUIRED

ROOT = Path(__file__).resolve().parents[2]
ABSENT = ("torch", "transformers", "tokenizers", "safetensors")
QUANTIZED = "model.layers.0.mlp.up_proj.weight"

# All commands in one process, which has none of ABSENT. Gives of each its exit code and the last line of stderr.
CHILD = f"""
import contextlib, io, json, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {ABSENT!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
import numpy as np
import spqfmt
from spqfmt.cli.main import _run

said = {{}}
for line in sys.argv[2:]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = _run(line.split())
    said[line] = [code, err.getvalue().strip().splitlines()[-1:]]
for name in ("pack", "load_model"):
    try:
        getattr(spqfmt, name)
    except ModuleNotFoundError as error:
        said[f"spqfmt.{{name}}"] = str(error)
arrays = {{}}
for file in ("llama.spq", "odd.spq"):
    with spqfmt.open(file) as f:
        arrays |= {{f"{{file}} {{name}}": f.read_numpy(name) for name in f}}
        if file == "llama.spq":
            arrays["rows"] = f.read_numpy({QUANTIZED!r}, slice(3, 9))
            arrays["exact"] = f.read_numpy({QUANTIZED!r}, dtype=np.float32)
            try:
                f.read({QUANTIZED!r})
            except ModuleNotFoundError as error:
                said["read"] = str(error)
np.savez(sys.argv[1], **arrays)
print(json.dumps(said))
"""

WORK = [
    "inspect llama.spq", "inspect llama.spq --measure --json", "inspect llama.spq --html page.html",
    "verify llama.spq --content", "diff llama.spq llama.spq", "repack llama.spq again.spq --codec zstd",
    "plan llama.spq --memory 2MiB", "unpack lossless.spq back", "unpack llama.spq kept --keep-packed",
]  # fmt: skip
NEED_TORCH = [
    "plan gpt2.spq", "unpack llama.spq dense", "run llama.spq --prompt a", "eval llama.spq --text llama/config.json",
    "chat llama.spq",
]  # fmt: skip
NEED_MORE = ["pack llama new.spq", "inspect llama.spq --reference llama", "unpack llama.spq new --as gptq"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("without")
    with tiny.quiet():
        for name in ("llama", "gpt2"):
            tiny.build(name, folder / name)
            spqfmt.pack(folder / name, folder / f"{name}.spq", method="rtn", bits=4)
    spqfmt.pack(folder / "llama", folder / "lossless.spq")
    odd = {
        "half": torch.tensor([[1.5, -2.0], [3.25, 65504.0]], dtype=torch.float16),
        "brain": torch.tensor([[1.5, -2.0], [3.140625, 1e38]], dtype=torch.bfloat16),
        "eight": torch.tensor([[0.5, -448.0], [1.25, 2.0]]).to(torch.float8_e4m3fn),
        "truth": torch.tensor([True, False, True]),
        "whole": torch.tensor([1, -(2**40)]),
        "one": torch.tensor(2.5, dtype=torch.bfloat16),
    }
    (folder / "odd").mkdir()
    save_file(odd, folder / "odd" / "model.safetensors")
    (folder / "odd" / "config.json").write_text("{}")
    spqfmt.pack(folder / "odd", folder / "odd.spq")
    return folder


@pytest.fixture(scope="module")
def said(folder: Path) -> dict[str, Any]:
    command = [sys.executable, "-P", "-c", CHILD, "arrays.npz", *WORK, *NEED_TORCH, *NEED_MORE]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)  # type: ignore[no-any-return]


@pytest.mark.parametrize("line", WORK)
def test_what_only_looks_works(said: dict[str, Any], line: str) -> None:
    assert said[line][0] == 0, said[line]


def test_files_come_back(said: dict[str, Any], folder: Path) -> None:
    for file in (folder / "llama").iterdir():
        assert (folder / "back" / file.name).read_bytes() == file.read_bytes()
    assert (folder / "kept" / "llama.spq").read_bytes() == (folder / "llama.spq").read_bytes()
    assert not (folder / "dense").exists()
    assert not (folder / "new.spq").exists()


@pytest.mark.parametrize("line", [*NEED_TORCH, *NEED_MORE])
def test_what_needs_more_names_it(said: dict[str, Any], line: str) -> None:
    code, [last] = said[line]
    assert code == 2
    needed = "torch" if line in NEED_TORCH else rf"({'|'.join(ABSENT)})"
    assert re.fullmatch(
        rf"spqfmt: this needs {needed}, which is not installed here: `pip install spqfmt` .*", last
    )


def test_python_names_it_too(said: dict[str, Any]) -> None:
    for name in ("pack", "load_model"):
        assert re.match(rf"spqfmt\.{name} needs ({'|'.join(ABSENT)}), which is not", said[f"spqfmt.{name}"])
    assert "read_numpy gives arrays" in said["read"]


def test_arrays_are_what_torch_gives(said: dict[str, Any], folder: Path) -> None:
    arrays = np.load(folder / "arrays.npz")
    for file in ("llama.spq", "odd.spq"):
        with spqfmt.open(folder / file) as f:
            for name, handle in f.items():
                value = f.read(name)
                wide = handle.dtype in {"bf16", "f8_e4m3"}
                expected = value.float().numpy() if wide else value.numpy()
                found = arrays[f"{file} {name}"]
                assert (found.dtype, found.shape) == (expected.dtype, expected.shape), name
                assert np.array_equal(found, expected), name
                assert np.array_equal(f.read_numpy(name), expected), name
    with spqfmt.open(folder / "llama.spq") as f:
        assert np.array_equal(arrays["rows"], f.read(QUANTIZED, slice(3, 9)).float().numpy())
        assert np.array_equal(arrays["exact"], f.read(QUANTIZED, dtype=torch.float32).numpy())
    assert load_file(folder / "odd" / "model.safetensors")["one"].item() == arrays["odd.spq one"] == 2.5


def test_the_documented_command_installs_all_but_what_is_absent() -> None:
    stated = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    packages = {re.split("[<>=]", requirement)[0] for requirement in stated}
    command = re.search(
        r"pip install ([\w ]+) && pip install --no-deps \. ", (ROOT / "README.md").read_text()
    )
    assert command is not None
    assert set(command[1].split()) == packages - set(ABSENT)
    assert packages - {"click"} == _REQUIRED
