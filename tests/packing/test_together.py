"""Processes that pack one model: the files of one process, each reads its part, and all end together in one line."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

import spqfmt
from spqfmt.errors import OptionError
from spqfmt.importers.registry import open_source
from spqfmt.packing.options import pack_options
from spqfmt.packing.plan import plan_pack
from spqfmt.packing.resume import check_alike
from spqfmt.packing.shards import shard_starts
from spqfmt.processes import Alone, shares_of

SCRIPT = Path(__file__).with_name("together.py")
CASES = (
    "lossless of 1", "lossless of 2", "lossless of 4", "one file of 3", "rtn of 2", "rows of 2", "keep of 3",
    "more than shards",
)  # fmt: skip
BY_BLOCKS = (
    "gptq of 2", "gptq of 4", "spqr of 3", "jsq of 2", "ecq of 2", "best of 4", "size of 3",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the script has worked."""
    folder = tmp_path_factory.mktemp("together")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder)],
        capture_output=True,
        text=True,
        check=False,
        timeout=400,
        env={
            "PYTHONPATH": ":".join(filter(None, sys.path)),
            "PATH": os.environ["PATH"],
            "OMP_NUM_THREADS": "1",
        },
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Any]:
    told: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return told


def files(folder: Path, stem: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob(f"{stem}*")}


@pytest.mark.parametrize("name", CASES)
def test_the_bytes_do_not_depend_on_the_number_of_processes(
    folder: Path, found: dict[str, Any], name: str
) -> None:
    assert [told["code"] for told in found["cases"][name]] == [0] * len(found["cases"][name])
    stem = name.replace(" ", "_")
    by_one = files(folder / "plain", stem)
    assert len(by_one) > (1 if name == "more than shards" else 2)
    assert files(folder / "out", stem) == by_one
    spqfmt.verify(folder / "out" / f"{stem}.spq.index.json", content=True)
    # The first process alone shows anything.
    assert found["cases"][name][0]["said"].startswith(str(folder / "out" / stem))
    assert {told["said"] + told["shown"] for told in found["cases"][name][1:]} <= {""}


@pytest.mark.parametrize("name", BY_BLOCKS)
def test_calibrated_bytes_do_not_depend_on_the_number_of_processes(
    folder: Path, found: dict[str, Any], name: str
) -> None:
    told = found["cases"][name]
    assert [of["code"] for of in told] == [0] * len(told), lines(told)
    stem = name.replace(" ", "_")
    made = files(folder / "out", stem)
    assert made == files(folder / "plain", stem) != {}
    assert not [name for name in made if name.endswith(".resume")]
    assert told[0]["said"].startswith(str(folder / "out" / stem))
    assert {of["said"] + of["shown"] for of in told[1:]} <= {""}
    # Each is given its own blocks' matrices, and those of the first, whose calls all of them look at.
    for number, of in enumerate(told[1:], 1):
        read = {int(b) for what, _ in of["read"] for b in re.findall(r"layers\.(\d+)\..*proj", what)}
        # Gradients come back through all blocks, in the last process.
        is_last = number + 1 == len(told)
        share = range(5) if name == "best of 4" and is_last else shares_of(5, len(told))[number]
        assert read - {0} == set(share) - {0} or name == "size of 3"


@pytest.mark.parametrize("name", ["gptq of 2", "ecq of 2"])
def test_a_process_that_dies_leaves_blocks_to_go_on_with(
    folder: Path, found: dict[str, Any], name: str
) -> None:
    told = found["blocks"][name]
    [line] = lines(told["told"])
    assert line.endswith("of 5 blocks, --resume goes on there")
    n_left = len([name for name in told["left"] if re.fullmatch(r"m\.spq\.resume/block-\d{5}\.spq", name)])
    assert 2 <= n_left < 5
    assert [of["code"] for of in told["resumed"]] == [0] * len(told["resumed"])
    assert told["in the end"] == ["m.spq"]
    made = (folder / name.split(maxsplit=1)[0] / "m.spq").read_bytes()
    assert made == (folder / "plain" / f"{name.replace(' ', '_')}.spq").read_bytes()


@pytest.mark.parametrize("name", CASES[1:3])
def test_each_process_reads_its_own_tensors(folder: Path, found: dict[str, Any], name: str) -> None:
    model = open_source(folder / "llama")
    of_each = [
        {what: n for what, n in told["read"] if what.startswith("tensor ")} for told in found["cases"][name]
    ]
    assert all(of_each)
    names = [what for read in of_each for what in read]
    assert sorted(names) == sorted(f"tensor {tensor.name}" for tensor in model.tensors)
    assert sum(n for read in of_each for n in read.values()) == plan_pack(model, pack_options()).raw_bytes
    # Headers and small files are everybody's.
    others = [sum(n for what, n in told["read"] if what == "it") for told in found["cases"][name]]
    assert max(others) < 100_000


REFUSALS = {
    "one file": "several processes write shards: give --shard-size, such as 2GiB",
    "partial": "--partial goes by all chunks of a model",
    "no method": "unknown method 'nonsense'",
}


def lines(told: list[Any]) -> list[str]:
    return [line for of in told if of for line in of["said"].splitlines() if line]


@pytest.mark.parametrize("name", REFUSALS)
def test_what_is_refused_is_told_once(folder: Path, found: dict[str, Any], name: str) -> None:
    told = found["refused"][name]
    assert [of["code"] for of in told] == [2, 2]
    [line] = lines(told)
    assert line.startswith(f"spqfmt: {REFUSALS[name]}")
    assert not files(folder / "out", "refused")


def test_a_dry_run_shows_the_plan_once(folder: Path, found: dict[str, Any]) -> None:
    first, second = found["dry"]
    assert (first["code"], second["code"]) == (0, 0)
    assert "model.layers.7.mlp.down_proj.weight" in first["shown"]
    assert second["shown"] == ""
    assert not files(folder / "out", "dry")


def test_a_process_that_dies_ends_all_with_one_line(found: dict[str, Any]) -> None:
    told = found["dies"]["told"]
    assert told[1] is None
    assert [told[0]["code"], told[2]["code"]] == [1, 1]
    [line] = lines(told)
    assert line.startswith("spqfmt: another process has ended without a word; ")
    # Whoever tells may come before another has written its last one.
    assert re.search(r"m\.spq\.resume holds [789] of 10 shards, --resume goes on there$", line)


LEFT = """
import atexit, signal, sys, threading, time
from spqfmt import processes
from spqfmt.cli import main
atexit.register(print, "Python has ended")
def run(arguments):
    # What torchrun does to those that wait, when another one has died.
    seconds = float(sys.argv[1])
    if seconds:
        threading.Timer(0.3, signal.raise_signal, [signal.SIGINT]).start()
    try:
        object.__new__(processes._Joined)._wait(lambda: time.sleep(seconds))
    except KeyboardInterrupt:
        pass
    print("told")
    return 7
main._run = run
main.main()
"""


@pytest.mark.parametrize(("seconds", "said"), [("20", "told\n"), ("0", "told\nPython has ended\n")])
def test_a_process_that_still_waits_ends_at_once(seconds: str, said: str) -> None:
    """Python would end under a thread that is in torch's library, which then aborts with a line of its own."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", LEFT, seconds], capture_output=True, text=True, check=False, timeout=15
    )
    assert (done.returncode, done.stdout, done.stderr) == (7, said, "")


ENDED = """
import signal
from spqfmt import processes
one = object.__new__(processes._Joined)
one.check = lambda: None
try:
    one._wait(lambda: 1 / 0)
except processes.EndedError:
    # What torchrun does to the others of one that has died, perhaps before they have said so.
    signal.raise_signal(signal.SIGTERM)
    print("told")
"""


def test_what_one_has_to_say_of_another_is_not_interrupted() -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-c", ENDED], capture_output=True, text=True, check=False, timeout=15
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "told\n", "")


def test_an_interrupt_of_one_ends_all_with_one_line(found: dict[str, Any]) -> None:
    told = found["interrupted"]["told"]
    assert [of["code"] for of in told] == [130, 1, 1]
    [line] = lines(told)
    assert line.endswith("shards, --resume goes on there")


def test_a_tensor_that_cannot_be_packed_ends_all_with_one_line(found: dict[str, Any]) -> None:
    told = found["fails"]["told"]
    assert [of["code"] for of in told] == [1, 1, 1]
    [line] = lines(told)
    assert "holds NaN or Inf and cannot be quantized" in line
    assert not [name for name in found["fails"]["left"] if name.startswith("m-") or name.endswith(".part")]


@pytest.mark.parametrize("how", ["dies", "interrupted"])
def test_a_resume_goes_on_with_what_is_left(folder: Path, found: dict[str, Any], how: str) -> None:
    """With another number of processes; what was damaged meanwhile is made again."""
    told = found[how]
    assert {name.partition("/")[0] for name in told["left"]} == {"m.spq.resume"}
    assert lines(told["without a word"])[0].endswith("--resume goes on there, --force starts over")
    assert "is of a pack with other codec; give the same to resume" in lines(told["others"])[0]
    assert len(lines(told["without a word"])) == len(lines(told["others"])) == 1
    assert told["damaged"].endswith("shard-00001.spq")
    assert [of["code"] for of in told["resumed"]] == [0, 0]
    expected = files(folder / "plain", "lossless_of_2")
    made = files(folder / how, "m")
    assert [made[name] for name in sorted(made)][:-1] == [expected[name] for name in sorted(expected)][:-1]
    assert sorted(made) == told["in the end"]
    n_read = sum(what.startswith("tensor ") for of in told["resumed"] for what, _ in of["read"])
    assert 0 < n_read < 75
    spqfmt.verify(folder / how / "m.spq.index.json", content=True)


def test_a_source_that_was_changed_meanwhile_is_refused(found: dict[str, Any]) -> None:
    [line] = lines(found["changed"])
    assert "m.spq.resume is of a pack with other source" in line


class _Said(Alone):
    """Processes of which each has said its own already."""

    def __init__(self, *said: dict[str, object]) -> None:
        super().__init__()
        self._said = said

    def exchange(self, value: Any) -> list[Any]:
        return [*self._said]


def test_processes_that_would_pack_otherwise_are_named() -> None:
    first = {"method": "gptq", "compute_dtype": "torch.float32", "samples": 4}
    check_alike(first, _Said(first, dict(first)))
    others = _Said(first, dict(first), first | {"compute_dtype": "torch.bfloat16", "samples": 5})
    with pytest.raises(
        OptionError, match="process 2 would pack with other compute dtype, samples than process 0"
    ):
        check_alike(first, others)


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({}, 250_000),
        ({"method": "rtn", "bits": 3}, 70_000),
        ({"method": "rtn", "bits": 4, "group_size": 16, "codec": "raw"}, 80_000),
        ({"method": "rtn", "granularity": "tensor", "codec": "raw"}, 90_000),
        ({"method": "gptq", "samples": 2, "seq_len": 16}, 90_000),
    ],
    ids=str,
)
def test_no_shard_is_larger_than_was_asked_for(
    tiny_folder: Callable[[str], Path], tmp_path: Path, options: dict[str, Any], size: int
) -> None:
    source = tiny_folder("llama")
    report = spqfmt.pack(source, tmp_path / "m.spq", shard_size=size, **options)
    sizes = [path.stat().st_size for path in report.files[:-1]]
    assert len(sizes) > 1
    assert max(sizes) <= size


def test_the_cuts_follow_from_names_and_shapes_alone(tmp_path: Path) -> None:
    options = pack_options(method="rtn", bits=4, group_size=16, shard_size="40kB")
    cuts = set()
    for seed in (1, 2):
        tiny.build("llama", tmp_path / f"{seed}", dtype=torch.bfloat16, seed=seed)
        model = open_source(tmp_path / f"{seed}")
        cuts.add(shard_starts(model, plan_pack(model, options), options))
    [starts] = cuts
    assert len(starts) > 2
