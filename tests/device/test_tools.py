"""The simulation's table stands in the documentation; the check of a GPU finds what is wrong and nothing else."""

import json
from pathlib import Path
from typing import Any

import gpu_check
import gpu_decode
import gpu_graphs
import gpu_kernels
import gpu_machine
import gpu_model
import gpu_section
import pytest
import simulate_gpu
import torch
from gpu_lines import Options, append
from gpu_machine import Check

from spqfmt.kernels.torch_device.kernels import TorchKernels
from spqfmt.loaders.device import DeviceWeights, SimulatedDevice
from spqfmt.residency.device_rates import read_rates

TINY = gpu_machine.Sizes(1 << 13, 64, 1, 64, 4, 1, 1)


def test_the_rates_in_the_documentation_are_those_that_are_assumed() -> None:
    text = simulate_gpu.DOCUMENT.read_text(encoding="utf-8")
    assert simulate_gpu.rates_table() in text
    assert simulate_gpu.blocks_table() in text
    assert simulate_gpu.graphs_table() in text


@pytest.mark.parametrize(
    ("card", "shape", "codes", "host"),
    [(0, 0, 3, simulate_gpu.HOST), (0, 1, 1, simulate_gpu.SMALL_HOST), (1, 1, 3, simulate_gpu.HOST)],
)
def test_rows_in_the_documentation_are_what_the_simulation_gives(
    card: int, shape: int, codes: int, host: int
) -> None:
    chosen = simulate_gpu.SHAPES[shape], simulate_gpu.CODES[codes]
    row = simulate_gpu._row(*simulate_gpu.CARDS[card], *chosen, host)
    assert f"\n{row}\n" in simulate_gpu.DOCUMENT.read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_whole_table_in_the_documentation_is_what_the_simulation_gives() -> None:
    text = simulate_gpu.DOCUMENT.read_text(encoding="utf-8")
    assert simulate_gpu.filled(text) == text


def test_the_simulation_is_never_faster_than_its_busiest_stream() -> None:
    _, rates, memory = simulate_gpu.CARDS[0]
    planned = simulate_gpu.plan(
        simulate_gpu.SHAPES[0], simulate_gpu.CODES[3], rates, memory, simulate_gpu.HOST, compressed=True
    )
    found = simulate_gpu.predict(planned, simulate_gpu.SHAPES[0])
    assert max(planned.stages) * 0.999 <= found.seconds <= 1.1 * max(planned.stages)
    assert found.host_seconds < found.seconds
    assert found.warps > 128  # more than a part has
    assert planned.held_bytes <= memory
    assert planned.on_host.rates.name == "rtx4060"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, small_parts: None) -> None:
    monkeypatch.setattr(gpu_machine, "SMALL", TINY)
    monkeypatch.setattr(gpu_decode, "BLOCK_LOG2", (12, 16))


def wrong_rows(check: Check) -> list[str]:
    return [row.what for row in check.rows if row.ok is False]


def test_the_check_runs_through_on_the_cpu_and_says_that_it_is_no_gpu(
    small: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines, files = tmp_path / "lines.jsonl", [str(tmp_path / "gpu.json"), str(tmp_path / "rates.json")]
    append(lines, {"kind": "run", "sections": [section.name for section in gpu_check.SECTIONS]})
    for section in gpu_check.SECTIONS:  # each in this process, which is faster than one of its own
        append(lines, {"kind": "begin", "section": section.name})
        options = ["--section", section.name, "--lines", str(lines), "--folder", str(tmp_path)]
        assert gpu_section.main([section.target, *options, "--device", "simulated"]) == 0
        append(lines, {"kind": "end", "section": section.name, "status": "done", "note": ""})
    assert gpu_check.main(["--report", str(lines), "--json", files[0], "--rates", files[1]]) == 0
    shown = capsys.readouterr().out
    assert "NOT a GPU" in shown
    assert "all right" in shown
    result = json.loads(Path(files[0]).read_text())
    assert result["measured_on_gpu"] is False
    rows = {f"{row['section']}: {row['what']}": row for row in result["rows"]}
    assert {
        "smoke: one chunk",
        "decode: rans, 4 KiB a launch, blocks of 4096 bytes",
        "decode: rans, 8 KiB a launch, blocks of 65536 bytes",
        "decode: high bytes beside low ones",
        "decode: zstd by nvCOMP",
        "model: least on both: peak device memory",
        "graphs: decoded: as graphs",
        "plan: least on both: predicted",
        "peers: bitsandbytes NF4, 1 tokens",
    } <= rows.keys()
    assert {row["section"] for row in result["rows"]} == {section.name for section in gpu_check.SECTIONS}
    assert rows["model: least on both"]["note"].startswith("decoded 0.0 MiB")
    assert all(row["what"] in shown for row in result["rows"])
    rates = read_rates(files[1])
    assert rates.assumed
    # The codes of so small a model are not worth a ring of buffers: its parts are never compressed on the device.
    alone = rows["decode: rans, 4 KiB a launch, blocks of 65536 bytes"]["value"]
    assert rates.rans == pytest.approx(1e9 * alone)
    assert rows["decode: pipeline, parts host"]["value"] > 0


class _WrongByOneBit(TorchKernels):
    def _dequantize(self, codes: Any, matrix: Any, channels: range, out: torch.Tensor, first: int) -> None:
        super()._dequantize(codes, matrix, channels, out, first)
        out.view(-1)[-1] += 1


class _BlindToDamage(TorchKernels):
    def _prepare_decode(self, stored: Any, plan: Any, out: Any, tables: Any, error: torch.Tensor) -> Any:
        decode = super()._prepare_decode(stored, plan, out, tables, error)
        return lambda: (decode(), error.zero_())


def test_a_kernel_that_is_wrong_is_found() -> None:
    check = Check(torch.device("cpu"), _WrongByOneBit(), TINY)
    gpu_kernels.check_kernels(check)
    wrong = wrong_rows(check)
    assert len(wrong) == sum(row.what.startswith("dequantize") for row in check.rows) > 20
    assert all(what.startswith("dequantize") for what in wrong)


def test_a_decoder_that_tells_no_damage_is_found() -> None:
    check = Check(torch.device("cpu"), _BlindToDamage(), TINY)
    gpu_kernels.check_kernels(check)
    assert wrong_rows(check) == ["decode of a damaged chunk is refused"]


def test_a_ceiling_that_is_passed_is_found(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = Options(section="", lines=tmp_path / "lines", folder=tmp_path, device="simulated")
    model = gpu_model.model_file(options, TINY)
    honest = SimulatedDevice.allocated_bytes
    monkeypatch.setattr(
        SimulatedDevice,
        "allocated_bytes",
        property(lambda self: honest.fget(self) + (1 << 20)),  # type: ignore[attr-defined]
    )
    check = Check(torch.device("cpu"), TorchKernels(), TINY)
    gpu_model.check_model(check, model)
    assert wrong_rows(check) == [row.what for row in check.rows if "peak" in row.what]


def test_a_graph_that_does_other_things_is_found(
    small: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = Options(section="", lines=tmp_path / "lines", folder=tmp_path, device="simulated")
    model = gpu_model.model_file(options, TINY)
    check = Check(torch.device("cpu"), TorchKernels(), TINY)
    gpu_graphs.check_state(check, model, "decoded")
    assert wrong_rows(check) == []
    monkeypatch.setattr(DeviceWeights, "replay", lambda *_: None)
    gpu_graphs.check_state(check, model, "decoded")
    assert wrong_rows(check) == ["decoded: as graphs"]
    assert "gave other bits" in check.rows[-1].note


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_the_check_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.main(["--lines", str(tmp_path / "lines.jsonl")]) == 1
    shown = capsys.readouterr().out
    assert "device 'cuda' cannot be used" in shown
    assert "section peers: not run; there is no device" in shown
