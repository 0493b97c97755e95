"""What becomes of a run of tools/gpu/gpu_check.py when sections die, hang or are wrong. These import no torch."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import gpu_check
import pytest
from gpu_lines import Line, Recorder, append, read_lines, rows_of
from gpu_report import section_states, shown, summary
from gpu_runner import CHILD, Section, run_sections

FAKES = """
import os, signal, sys, time
from gpu_lines import NoDeviceError, NotHereError, Recorder

def recorder(options):
    assert "torch" not in sys.modules
    return Recorder(options.lines, options.section)

def right(options):
    recorder(options).case("bits", lambda: True)

def wrong_bits(options):
    check = recorder(options)
    check.case("wrong", lambda: bytes([1, 2]) == bytes([1, 3]))
    check.case("raises", lambda: 1 // 0)
    check.case("behind", lambda: True)

def dies(options):
    check = recorder(options)
    check.case("first", lambda: True)
    check.case("fatal", lambda: os.kill(os.getpid(), signal.SIGSEGV))
    check.case("behind", lambda: True)

def dies_at_once(options):
    sys.exit("no such library")

def hangs(options):
    check = recorder(options)
    check.case("endless", lambda: time.sleep(60))
    check.case("behind", lambda: True)

def lacks_a_peer(options):
    def peer():
        raise NotHereError("it does not import")
    recorder(options).case("peer", peer)

def no_device(options):
    raise NoDeviceError("device 'cuda' cannot be used")
"""


def section(name: str, quiet_seconds: float = 5) -> Section:
    return Section(name, f"fakes:{name}", seconds=10, quiet_seconds=quiet_seconds)


@pytest.fixture(scope="module")
def fakes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fakes")
    (folder / "fakes.py").write_text(FAKES)
    return folder


@pytest.fixture
def lines(tmp_path: Path, fakes: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTHONPATH", str(fakes))
    return tmp_path / "lines.jsonl"


def run(lines: Path, *sections: Section, seconds: float = 30) -> list[Line]:
    append(lines, {"kind": "run", "sections": [each.name for each in sections]})
    run_sections(sections, lines, ["--folder", str(lines.parent)], seconds)
    return read_lines(lines)


def verdicts(found: list[Line]) -> dict[str, bool | None]:
    return {f"{row.section}: {row.what}": row.ok for row in rows_of(found)}


def test_wrong_bits_and_a_missing_peer_are_lines_and_the_next_section_runs(lines: Path) -> None:
    found = run(lines, section("wrong_bits"), section("lacks_a_peer"), section("right"))
    assert verdicts(found) == {
        "wrong_bits: wrong": False,
        "wrong_bits: raises": False,
        "wrong_bits: behind": True,
        "lacks_a_peer: peer": None,
        "right: bits": True,
    }
    assert {status for status, _ in section_states(found).values()} == {"done"}
    assert next(row.note for row in rows_of(found) if row.what == "raises").startswith("ZeroDivisionError: ")
    result = summary(found)
    assert (result["wrong"], result["complete"], result["ok"]) == (True, True, False)


def test_a_missing_peer_alone_is_nothing_wrong(lines: Path) -> None:
    result = summary(run(lines, section("lacks_a_peer"), section("right")))
    assert result["ok"]
    assert result["rows"][0]["note"] == "it does not import"


def test_a_section_that_dies_is_taken_up_behind_the_case_that_it_died_of(lines: Path) -> None:
    found = run(lines, section("dies"), section("dies_at_once"), section("right"))
    assert verdicts(found) == {
        "dies: first": True,
        "dies: fatal": False,
        "dies: behind": True,
        "right: bits": True,
    }
    states = section_states(found)
    assert states["dies"] == ("died", "ended by SIGSEGV at 'fatal'; the rest of it was run")
    assert states["dies_at_once"] == ("died", "exit code 1: no such library")
    assert [line for line in shown(found) if line.startswith("section ")] == [
        f"section {name}: died; {states[name][1]}" for name in ("dies", "dies_at_once")
    ]


def test_a_section_that_hangs_is_ended_and_goes_on_behind_it(lines: Path) -> None:
    found = run(lines, section("hangs", quiet_seconds=1), section("right"))
    assert verdicts(found) == {"hangs: endless": False, "hangs: behind": True, "right: bits": True}
    assert section_states(found)["hangs"] == (
        "hung",
        "ended by its time-out at 'endless'; the rest of it was run",
    )


def test_without_a_device_or_time_the_rest_is_told_not_to_have_run(lines: Path) -> None:
    found = run(lines, section("no_device"), section("right"))
    assert section_states(found) == {
        "no_device": ("died", "exit code 7: device 'cuda' cannot be used"),
        "right": ("not run", "there is no device"),
    }
    lines.unlink()
    found = run(lines, section("right"), seconds=0)
    assert section_states(found) == {"right": ("not run", "no time is left")}
    assert not summary(found)["ok"]


def test_a_report_of_a_run_that_was_cut_off_has_all_that_was_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "lines.jsonl", tmp_path / "out.json"
    append(path, {"kind": "run", "sections": ["smoke", "decode"]})
    append(path, {"kind": "begin", "section": "smoke"})
    Recorder(path, "smoke").case("bits", lambda: True)
    with path.open("a") as file:
        file.write('{"kind": "row", "section": "smo')  # a process was killed in the midst of a line
    Recorder(path, "smoke").figure("copy", 2e9)
    assert gpu_check.main(["--report", str(path), "--json", str(out)]) == 1
    result = json.loads(out.read_text())
    assert [row["what"] for row in result["rows"]] == ["bits"]
    assert {name: state["status"] for name, state in result["sections"].items()} == {
        "smoke": "cut off",
        "decode": "not run",
    }
    assert result["rates"]["copy"] == 2e9
    assert result["rates"]["assumed"]
    assert "NOT ALL WAS RUN" in capsys.readouterr().out


def test_rates_are_measured_only_where_a_gpu_gave_all_of_them(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    recorder = Recorder(path, "decode")
    for name in ("on_gpu", "copy", "rans", "move", "compute"):
        recorder.figure(name, True if name == "on_gpu" else 1e9)
    assert summary(read_lines(path))["rates"]["assumed"]
    recorder.figure("operation_s", 1e-5)
    assert not summary(read_lines(path))["rates"]["assumed"]


def test_a_section_whose_parent_was_killed_ends_by_itself(lines: Path) -> None:
    command = [sys.executable, str(CHILD), "fakes:hangs", "--section", "hangs", "--alarm", "1"]
    command += ["--lines", str(lines), "--folder", str(lines.parent)]
    assert subprocess.run(command, check=False, timeout=30).returncode == -signal.SIGALRM
