"""Programs in examples/, run as a user runs them."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import spqfmt
from spqfmt.container.model import open_model
from spqfmt.loaders.plan import plan_model

ROOT = Path(__file__).resolve().parents[2]
# What the installation, or `make native`, has left.
LIBRARIES = sorted(ROOT.glob("build/*/libspqfmt_kernels.a"), key=lambda path: path.stat().st_mtime)


def test_lora(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    packed = tmp_path / "m.spq"
    spqfmt.pack(tiny_folder("llama"), packed, method="rtn", bits=4, group_size=16)
    smallest = str(plan_model(packed).plan.smallest_bytes)
    command = [
        sys.executable,
        str(ROOT / "examples/lora.py"),
        str(packed),
        str(ROOT / "LICENSE"),
        str(tmp_path / "a"),
    ]
    done = subprocess.run(
        [*command, "--memory", smallest, "--steps", "12"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", done.stdout)]
    assert len(losses) == 13
    # The last is of the first step's tokens, with the adapter that was saved.
    assert losses[-1] < losses[0] - 0.05
    assert (tmp_path / "a/adapter_model.safetensors").stat().st_size < packed.stat().st_size


def test_ranks(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    """As torchrun starts it: two processes continue a text as one does."""
    packed = tmp_path / "m.spq"
    spqfmt.pack(tiny_folder("llama"), packed, method="rtn", bits=8, ranks=2)
    model, tokenizer = spqfmt.load_model(packed, packed=True)
    ids = tokenizer("One", return_tensors="pt").input_ids
    expected = tokenizer.decode(model.generate(ids, max_new_tokens=8, do_sample=False)[0])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(ROOT / "examples/ranks.py"), str(packed), "One", "--packed", "--tokens", "8"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    found = sorted(re.findall(r"^rank (\d) of 2: read (\d+) of (\d+) bytes, 0 .*?: (.*)$", done.stdout, re.M))
    assert [number for number, *_ in found] == ["0", "1"]
    for _, n_read, n_all, text in found:
        assert int(n_read) < 0.65 * int(n_all)
        assert text == repr(expected)


@pytest.mark.skipif(not LIBRARIES or shutil.which("c++") is None, reason="nothing was built here")
def test_core(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    program, packed, out = tmp_path / "decode", tmp_path / "m.spq", tmp_path / "codes.bin"
    core, name = ROOT / "examples/core", "model.layers.0.mlp.up_proj.weight"
    command = ["c++", "-std=c++17", f"-I{ROOT / 'spqfmt/kernels/native'}", str(core / "decode.cpp")]
    subprocess.run([*command, str(LIBRARIES[-1]), "-pthread", "-o", str(program)], check=True)
    spqfmt.pack(tiny_folder("llama"), packed, method="rtn", bits=8)
    listed = subprocess.run(
        [sys.executable, str(core / "chunks.py"), str(packed), name, "codes"], capture_output=True, check=True
    ).stdout

    def decode() -> subprocess.CompletedProcess[bytes]:
        command = [str(program), str(packed), str(out), "2"]
        return subprocess.run(command, input=listed, capture_output=True, check=False)

    done = decode()
    assert done.returncode == 0, done.stderr
    with open_model(packed) as model:
        tensor = model.tensors[name]
        expected = model.reader_of(name).read_elements(tensor, "codes").tobytes()
        first = tensor.by_role["codes"].chunks[0].planes[0]
    assert out.read_bytes() == expected
    assert re.fullmatch(rf"\d+ chunks, {len(expected)} bytes, by \w+\n", done.stdout.decode())
    data = bytearray(packed.read_bytes())
    data[first.offset + first.stored_bytes // 2] ^= 1
    packed.write_bytes(data)
    done = decode()
    assert (done.returncode, b"m.spq: a chunk of it is damaged: " in done.stderr) == (1, True)
