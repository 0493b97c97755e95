"""Run rows of the bench: every configuration in a process of its own, and the latency model beside."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
import transformers

import spqfmt
from spqfmt.bench.latency import Latency
from spqfmt.bench.report import Report
from spqfmt.bench.tokens import configurations, measure
from spqfmt.errors import BackendError
from spqfmt.loaders.speed import Workload

WORKLOADS = (Workload("batch 2", 2, steps=2), Workload("prompt 9", 1, prompt_tokens=9))


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Many small layers, nine weights of ten zero: all chunks and the buffers are less than all of them decoded."""
    folder = tmp_path_factory.mktemp("sparse")
    config = transformers.LlamaConfig(**tiny._LLAMA | {"num_hidden_layers": 16}, tie_word_embeddings=True)
    with torch.random.fork_rng(devices=[]), tiny.quiet():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config).bfloat16()
        for parameter in model.parameters():
            parameter.data *= torch.rand(parameter.shape) < 0.1
        model.save_pretrained(folder)
    spqfmt.pack(folder, folder / "m.spq", method="rtn")
    return folder / "m.spq"


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configurations, "SHARES", ())
    monkeypatch.setattr(configurations, "EVERY", (2,))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_latency_adds_up_or_overlaps() -> None:
    latency = Latency(10, 30, 20, 4)
    assert latency.serial_ms == 60
    assert latency.overlapped_ms == 30 + 40 / 4
    assert Latency(0, 0, 20, 0).overlapped_ms == 20


@pytest.mark.usefixtures("few")
def test_rows_of_a_small_model(sparse: Path, tmp_path: Path) -> None:
    rows = measure.measure_runs(sparse, tmp_path, rounds=2, told=lambda _: None, workloads=WORKLOADS)
    names = ["BF16 transformers", "decoded", "every:2", "compressed", "disk"]
    assert [row.configuration for row in rows] == 2 * names
    assert [row.workload for row in rows] == 5 * ["batch 2"] + 5 * ["prompt 9"]
    for row in rows:
        assert 0 < row.rate.low <= row.rate.median <= row.rate.high
        assert row.peak_bytes > row.weights_bytes
    held = {row.configuration: row.weights_bytes for row in rows}
    # Codes of low entropy are held narrow, where all of their chunks are compressed.
    assert held["disk"] < held["compressed"] < held["decoded"] < held["every:2"] < held["BF16 transformers"]
    expected = {row.configuration: row.latency for row in rows[:5]}
    assert expected["BF16 transformers"] is None
    parts = {name: latency.parts for name, latency in expected.items() if latency is not None}
    assert 0 == parts["decoded"] < parts["every:2"] < parts["compressed"] == parts["disk"]
    loads = {name: latency.load_ms for name, latency in expected.items() if latency is not None}
    assert 0 == loads["decoded"] == loads["compressed"] < loads["disk"]
    report = Report({}, 2, [], [], run=rows).to_json()["run"]
    assert isinstance(report, list)
    assert report[1]["expected"]["decode_ms"] == 0
    assert report[4]["tokens_s_range"][0] <= report[4]["tokens_s"]


def test_a_process_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"one.*missing\.spq"):
        measure._Child(configurations.Configuration("one", tmp_path / "missing.spq"))


def test_the_plot_has_a_panel_for_each_workload(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra `plots` is not installed")
    names = ["BF16 transformers", "decoded", "75% of decoded", "every:2", "compressed", "disk"]
    expected = {"serial_tokens_s": 3.0, "overlapped_tokens_s": 5.0}
    rows = [
        {
            "configuration": name,
            "workload": workload,
            "weights_bytes": (6 - number) * 1e7,
            "tokens_s": 9.0 - number,
            "tokens_s_range": [8.5 - number, 9.5 - number],
            "expected": expected if number else None,
        }
        for workload in ("batch 1", "prompt 512")
        for number, name in enumerate(names)
    ]
    results = tmp_path / "run.json"
    results.write_text(json.dumps({"run": rows}))
    tool = Path(__file__).resolve().parents[2] / "tools" / "bench" / "plot_run.py"
    subprocess.run([sys.executable, str(tool), str(results), str(tmp_path / "run.png")], check=True)
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")
    results.write_text(json.dumps({"run": []}))
    done = subprocess.run(
        [sys.executable, str(tool), str(results), str(tmp_path / "no.png")],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "no run rows" in done.stderr
