"""A pack that was interrupted goes on at the block where it stood, with the same file in the end."""

import errno
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from calibration_models import TEXT

import spqfmt
from spqfmt.calibration.trials import EngineTrials
from spqfmt.cli.failures import explain
from spqfmt.errors import OptionError
from spqfmt.progress import Silent
from spqfmt.quantize.calibrated import Block, Result
from spqfmt.quantize.spqr import METHOD

SETTINGS: dict[str, Any] = {"method": "spqr", "bits": 3, "samples": 4, "seq_len": 32, "calibration": TEXT}


class Interrupting(Silent):
    """Raises like Ctrl-C when a stage begins."""

    def __init__(self, at: str) -> None:
        self._at = at

    def stage(self, text: str) -> None:
        if text == self._at:
            raise KeyboardInterrupt


class AfterSearch(Silent):
    """Raises like Ctrl-C when a stage begins after the last of a search."""

    def __init__(self, at: str) -> None:
        self._at, self._searched = at, False

    def stage(self, text: str) -> None:
        self._searched |= text == "search is done"
        if self._searched and text == self._at:
            raise KeyboardInterrupt


class FullDisk(Silent):
    """Raises as a write to a full disk does, when a stage begins."""

    def __init__(self, at: str, number: int) -> None:
        self._at, self._number = at, number

    def stage(self, text: str) -> None:
        if text == self._at:
            raise OSError(self._number, os.strerror(self._number))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG])
@pytest.mark.parametrize(
    ("block", "left"),
    [(0, "nothing was left behind"), (1, "m.spq.resume holds 1 of 2 blocks, --resume goes on there")],
)
def test_a_disk_that_is_full_is_said_with_what_was_left(
    folder: Callable[[str], Path], tmp_path: Path, *, number: int, block: int, left: str
) -> None:
    with pytest.raises(OSError) as caught:  # noqa: PT011 - its number is what is asked for
        spqfmt.pack(
            folder("llama"),
            tmp_path / "m.spq",
            progress=FullDisk(f"model.layers.{block}: quantizing", number),
            **SETTINGS,
        )
    assert caught.value.errno == number
    explained = explain(caught.value)
    assert explained is not None
    assert left in explained[0]
    assert (tmp_path / "m.spq.resume").exists() is ("--resume" in left)
    if block:
        assert "nothing was left" not in explained[0]
        spqfmt.pack(folder("llama"), tmp_path / "m.spq", resume=True, **SETTINGS)


@pytest.fixture
def interrupted(folder: Callable[[str], Path], tmp_path: Path) -> Path:
    """The name of a file whose pack was interrupted in its second block."""
    out = tmp_path / "m.spq"
    with pytest.raises(
        KeyboardInterrupt, match=r"m\.spq\.resume holds 1 of 2 blocks, --resume goes on there"
    ):
        spqfmt.pack(folder("llama"), out, progress=Interrupting("model.layers.1: quantizing"), **SETTINGS)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.spq.resume"]
    return out


JSQ: dict[str, Any] = SETTINGS | {"method": "jsq", "bits": 8, "search_steps": 2, "search_samples": 1}


@pytest.fixture
def searches(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The perplexities that a search asks for from now on."""
    tried: list[float] = []
    original = EngineTrials.perplexity

    def note(self: EngineTrials, *args: Any, **kwargs: Any) -> float:
        tried.append(original(self, *args, **kwargs))
        return tried[-1]

    monkeypatch.setattr(EngineTrials, "perplexity", note)
    return tried


@pytest.mark.parametrize("block", [0, 1])
def test_a_search_is_not_made_twice(
    block: int, folder: Callable[[str], Path], tmp_path: Path, searches: list[float]
) -> None:
    out, whole = tmp_path / "m.spq", tmp_path / "whole.spq"
    held = r"resume holds the search" + (" and 1 of 2 blocks" if block else "") + ", --resume"
    with pytest.raises(KeyboardInterrupt, match=held):
        spqfmt.pack(folder("llama"), out, progress=AfterSearch(f"model.layers.{block}: quantizing"), **JSQ)
    assert len(searches) == 4  # the start, two steps, no editing
    spqfmt.pack(folder("llama"), out, resume=True, **JSQ)
    assert len(searches) == 4
    spqfmt.pack(folder("llama"), whole, **JSQ)
    assert len(searches) == 8
    assert out.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.spq", "whole.spq"]


@pytest.mark.parametrize("damaged", ["{", '{"a": "b"}', '{"a": NaN}'])
def test_a_damaged_search_is_made_again(
    damaged: str, folder: Callable[[str], Path], tmp_path: Path, searches: list[float]
) -> None:
    out = tmp_path / "m.spq"
    with pytest.raises(KeyboardInterrupt):
        spqfmt.pack(folder("llama"), out, progress=AfterSearch("model.layers.0: quantizing"), **JSQ)
    (tmp_path / "m.spq.resume" / "search.json").write_text(damaged, "utf-8")
    spqfmt.pack(folder("llama"), out, resume=True, **JSQ)
    assert len(searches) == 8


@pytest.fixture
def quantized(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the blocks that are quantized from now on."""
    names: list[str] = []
    original = type(METHOD).quantize_block

    def note(self: Any, block: Block, options: Any) -> Mapping[str, Result]:
        names.append(block.name)
        return original(self, block, options)

    monkeypatch.setattr(type(METHOD), "quantize_block", note)
    return names


def test_a_resumed_pack_gives_the_same_bytes(
    interrupted: Path, folder: Callable[[str], Path], quantized: list[str]
) -> None:
    spqfmt.pack(folder("llama"), interrupted, resume=True, **SETTINGS)
    assert quantized == ["model.layers.1"]
    assert [path.name for path in interrupted.parent.iterdir()] == ["m.spq"]
    whole = interrupted.with_name("whole.spq")
    spqfmt.pack(folder("llama"), whole, **SETTINGS)
    assert whole.read_bytes() == interrupted.read_bytes()


def test_what_is_there_is_not_passed_over_in_silence(
    interrupted: Path, folder: Callable[[str], Path], quantized: list[str]
) -> None:
    with pytest.raises(OptionError, match="--resume goes on there, --force starts over"):
        spqfmt.pack(folder("llama"), interrupted, **SETTINGS)
    spqfmt.pack(folder("llama"), interrupted, force=True, **SETTINGS)
    assert quantized == ["model.layers.0", "model.layers.1"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"bits": 4}, "method options"),
        ({"method": "gptq"}, "method, method options"),
        ({"samples": 5}, "samples"),
        ({"seed": 1}, "seed"),
        ({"sequential": False}, "sequential"),
    ],
)
def test_other_options_are_refused(
    change: dict[str, Any], said: str, interrupted: Path, folder: Callable[[str], Path]
) -> None:
    with pytest.raises(OptionError, match=f"is of a pack with other {said}; give the same"):
        spqfmt.pack(folder("llama"), interrupted, resume=True, **(SETTINGS | change))
    assert interrupted.with_name("m.spq.resume").exists()


def test_another_model_is_refused(interrupted: Path, folder: Callable[[str], Path]) -> None:
    with pytest.raises(OptionError, match="other source"):
        spqfmt.pack(folder("mistral"), interrupted, resume=True, **SETTINGS)


def test_changed_weights_are_refused(
    interrupted: Path, folder: Callable[[str], Path], tmp_path: Path
) -> None:
    import shutil

    copy = shutil.copytree(folder("llama"), tmp_path / "copy")
    file = copy / "model.safetensors"
    data = bytearray(file.read_bytes())
    # The last bytes belong to the last tensor by name; those of the first block lie before.
    data[len(data) // 3] ^= 1
    file.write_bytes(data)
    with pytest.raises(OptionError, match="are not those of the interrupted pack"):
        spqfmt.pack(copy, interrupted, resume=True, **SETTINGS)


def test_a_damaged_block_is_quantized_again(
    interrupted: Path, folder: Callable[[str], Path], quantized: list[str]
) -> None:
    block = interrupted.with_name("m.spq.resume") / "block-00000.spq"
    data = bytearray(block.read_bytes())
    data[200] ^= 1
    block.write_bytes(data)
    spqfmt.pack(folder("llama"), interrupted, resume=True, **SETTINGS)
    assert quantized == ["model.layers.0", "model.layers.1"]
    spqfmt.verify(interrupted)


def test_a_damaged_description_is_refused(interrupted: Path, folder: Callable[[str], Path]) -> None:
    interrupted.with_name("m.spq.resume").joinpath("pack.json").write_text("{", "utf-8")
    with pytest.raises(OptionError, match=r"no sound pack\.json in it"):
        spqfmt.pack(folder("llama"), interrupted, resume=True, **SETTINGS)


def test_an_interruption_before_the_first_block_leaves_nothing(
    folder: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt, match="nothing was left behind"):
        spqfmt.pack(
            folder("llama"),
            tmp_path / "m.spq",
            progress=Interrupting("model.layers.0: quantizing"),
            **SETTINGS,
        )
    assert not list(tmp_path.iterdir())


def test_nothing_to_resume_is_said(folder: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="nothing to resume"):
        spqfmt.pack(folder("llama"), tmp_path / "m.spq", resume=True, **SETTINGS)
    with pytest.raises(OptionError, match="method rtn packs in one go"):
        spqfmt.pack(folder("llama"), tmp_path / "m.spq", resume=True, method="rtn")
    assert not list(tmp_path.iterdir())


class _SecondPack(Silent):
    """Packs into the same file when the first pack is at its second block."""

    def __init__(self, source: Path, out: Path, **options: Any) -> None:
        self._source, self._out, self._options = source, out, options
        self.said: list[str] = []

    def stage(self, text: str) -> None:
        if text == "model.layers.1: quantizing":
            with pytest.raises(OptionError) as caught:
                spqfmt.pack(self._source, self._out, **SETTINGS, **self._options)
            self.said.append(str(caught.value))


@pytest.mark.parametrize("options", [{}, {"force": True}, {"resume": True}], ids=str)
def test_a_pack_that_another_process_is_working_on_is_not_called_interrupted(
    options: dict[str, Any], folder: Callable[[str], Path], tmp_path: Path
) -> None:
    out = tmp_path / "m.spq"
    second = _SecondPack(folder("llama"), out, **options)
    spqfmt.pack(folder("llama"), out, progress=second, **SETTINGS)
    assert second.said == [
        f"{out}: another process is packing it now; wait until it is done, or give another name"
    ]
    spqfmt.verify(out)
    assert [path.name for path in tmp_path.iterdir()] == ["m.spq"]


HOLD_AND_DIE = """
import os, signal, sys
from pathlib import Path
from spqfmt.packing.resume import ResumeFolder
with ResumeFolder(Path(sys.argv[1]), resume=False, force=False) as folder:
    folder.begin({"some": "pack"})
    (folder.path / ".block-00000.spq.0123abcd.part").write_bytes(b"half a block")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_process_that_was_killed_before_its_first_block_is_in_nobody_s_way(
    folder: Callable[[str], Path], tmp_path: Path
) -> None:
    out = tmp_path / "m.spq"
    done = subprocess.run([sys.executable, "-c", HOLD_AND_DIE, str(out)], check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "m.spq.resume" / "lock").exists()
    with pytest.raises(OptionError, match="holds nothing to resume"):
        spqfmt.pack(folder("llama"), out, resume=True, **SETTINGS)
    assert not list(tmp_path.iterdir())
    subprocess.run([sys.executable, "-c", HOLD_AND_DIE, str(out)], check=False, timeout=120)
    spqfmt.pack(folder("llama"), out, **SETTINGS)
    assert [path.name for path in tmp_path.iterdir()] == ["m.spq"]


def test_what_an_interrupted_pack_left_is_said_before_a_long_survey(
    interrupted: Path, folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def survey(*_: object) -> None:
        raise AssertionError("the survey was begun")

    monkeypatch.setattr("spqfmt.packing.fit.survey.fit", survey)
    with pytest.raises(OptionError, match="--resume goes on there, --force starts over"):
        spqfmt.pack(folder("llama"), interrupted, fit=70_000, samples=4, seq_len=32, calibration=TEXT)


@pytest.mark.parametrize("how", [{}, {"resume": True}, {"force": True}])
@pytest.mark.parametrize(
    "name", ["notes.txt", "block-1.spq", "pack.json.bak", "block-00007.spq/mine", "link"]
)
def test_what_is_not_of_a_pack_is_never_removed(
    interrupted: Path, folder: Callable[[str], Path], how: dict[str, bool], name: str
) -> None:
    at = interrupted.with_name("m.spq.resume")
    if name == "link":
        (at / "block-00007.spq").symlink_to(folder("llama") / "config.json")
    else:
        (at / name).parent.mkdir(exist_ok=True)
        (at / name).write_text("mine")
    before = {path: path.lstat().st_ino for path in at.rglob("*")}
    other = at / ("block-00007.spq" if name == "link" else name.partition("/")[0])
    with pytest.raises(OptionError, match=re.escape(f"{other}: not of an interrupted pack")):
        spqfmt.pack(folder("llama"), interrupted, **SETTINGS, **how)
    assert {path: path.lstat().st_ino for path in at.rglob("*")} == before


@pytest.mark.parametrize("kind", ["file", "link", "dangling"])
def test_a_name_that_is_taken_by_something_else(
    tmp_path: Path, folder: Callable[[str], Path], kind: str
) -> None:
    at = tmp_path / "m.spq.resume"
    if kind == "file":
        at.write_text("mine")
    else:
        at.symlink_to(tmp_path / "elsewhere")
    if kind == "link":
        (tmp_path / "elsewhere").mkdir()
    with pytest.raises(OptionError, match="not a folder of an interrupted pack"):
        spqfmt.pack(folder("llama"), tmp_path / "m.spq", force=True, **SETTINGS)
    assert os.path.lexists(at)
    assert not (tmp_path / "m.spq").exists()


def test_what_comes_into_the_folder_meanwhile_stays(tmp_path: Path, folder: Callable[[str], Path]) -> None:
    at = tmp_path / "m.spq.resume"

    class Adding(Silent):
        def stage(self, text: str) -> None:
            (at / "notes.txt").write_text("mine")

    spqfmt.pack(folder("llama"), tmp_path / "m.spq", progress=Adding(), **SETTINGS)
    assert [path.name for path in at.iterdir()] == ["notes.txt"]
