"""`spqfmt plan` and `run` for a device, on the command line."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from click.testing import CliRunner
from device_support import RATES, loaded_onto_device

import spqfmt
from spqfmt import loaders
from spqfmt.cli.main import cli
from spqfmt.errors import BackendError, OptionError


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    tiny.build("llama", folder, dtype=torch.bfloat16)
    spqfmt.pack(folder, folder / "m.spq", method="rtn")
    return folder / "m.spq"


def plan(model: Path, *arguments: str) -> Any:
    return CliRunner().invoke(
        cli, ["plan", str(model), "--device", "cuda", *arguments], catch_exceptions=False
    )


def test_a_plan_for_a_device_needs_none(model: Path) -> None:
    result = plan(model, "--memory", "8GiB", "--host-memory", "16GiB")
    assert result.exit_code == 0
    assert "ASSUMED rates of rtx4090" in result.stdout
    found = json.loads(plan(model, "--memory", "8GiB", "--json").stdout)
    assert {layer["residency"] for layer in found["layers"]} == {"decoded"}
    assert found["rates"]["assumed"] is True
    assert found["held_bytes"] <= 8 << 30
    assert found["lookups"] == []  # where all has room, rows are looked up on the device


def test_rates_come_from_a_file_or_a_name(model: Path, tmp_path: Path) -> None:
    measured = asdict(RATES) | {"name": "mine", "assumed": False}
    (tmp_path / "rates.json").write_text(json.dumps(measured))
    assert "measured rates of mine" in plan(model, "--device-rates", str(tmp_path / "rates.json")).stdout
    assert "ASSUMED rates of h100" in plan(model, "--device-rates", "h100").stdout


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, "neither a readable JSON file nor one of rtx4060"),
        ({"copy": 0}, "copy is 0"),
        ({"copy": "fast"}, "copy is not a number"),
        ({"more": 1}, "an object with the keys"),
        ({"assumed": "no"}, "assumed is true or false"),
    ],
)
def test_rates_that_are_none(
    model: Path, tmp_path: Path, change: dict[str, object] | None, message: str
) -> None:
    if change is not None:
        (tmp_path / "rates.json").write_text(json.dumps(asdict(RATES) | change))
    with pytest.raises(OptionError, match=message):
        plan(model, "--device-rates", str(tmp_path / "rates.json"))


def test_options_of_a_device_are_refused_on_the_cpu(model: Path) -> None:
    result = CliRunner().invoke(cli, ["plan", str(model), "--host-memory", "1GiB"])
    assert result.exit_code == 2
    assert "go with --device cuda" in result.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_run_without_cuda_says_so(model: Path) -> None:
    arguments = ["run", str(model), "--prompt", "a", "--device", "cuda", "--memory", "1GiB"]
    with pytest.raises(BackendError, match="device 'cuda' cannot be used"):
        CliRunner().invoke(cli, arguments, catch_exceptions=False)


def test_graphs_that_do_not_go_are_told_in_one_line(model: Path) -> None:
    arguments = ["run", str(model), "--prompt", "a", "--raw", "--max-new-tokens", "2", "--graphs"]
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    words = "spqfmt: tokens are computed without a graph: its weights are not packed on a GPU\n"
    assert result.stderr.count(words) == 1
    quiet = CliRunner().invoke(cli, [*arguments, "--quiet"], catch_exceptions=False)
    assert (quiet.stdout, quiet.stderr) == (result.stdout, "")


def test_answers_are_the_same_with_graphs(model: Path) -> None:
    _, tokenizer = spqfmt.load_model(model)
    loaded, device = loaded_onto_device(model, None, None)
    settings = {"max_new_tokens": 7, "chat": False}
    expected = loaders.generate(loaded, tokenizer, "some text", **settings)
    device.trace.clear()
    found = loaders.generate(loaded, tokenizer, "some text", **settings, graphs=True)
    assert (found.text, found.n_new_tokens, found.finish) == (expected.text, 7, "length")
    assert [done.label for done in device.trace].count("a graph") == 4
    assert loaders.generate(loaded, tokenizer, "some text", **settings).text == expected.text
