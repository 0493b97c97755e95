"""What a calibrated pack would take: measured in parts, which count as often as the pack does them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from spqfmt.calibration import glance
from spqfmt.errors import SpqError
from spqfmt.importers import open_source
from spqfmt.packing.options import pack_options
from spqfmt.packing.plan import plan_pack
from spqfmt.packing.projection import Projection, project
from spqfmt.quantize import costs
from tests.spq_command import run

LENGTH = 32


def projected(folder: Path, **given: object) -> Projection | None:
    model = open_source(folder)
    options = pack_options(**given).for_source(model)  # type: ignore[arg-type]  # as the command gives them
    return project(model, plan_pack(model, options), options)


@pytest.fixture(autouse=True)
def of_small_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    """What noise is quantized for is not looked at here, but for its being measured."""
    monkeypatch.setattr(costs, "ROWS", (4, 16))
    monkeypatch.setattr(costs, "COLUMNS", (32, 64))


@pytest.fixture
def a_second_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is measured takes a second."""

    def least(call: Callable[[], object]) -> float:
        call()
        return 1.0

    for module in (costs, glance):
        monkeypatch.setattr(module, "least_seconds", least)


@pytest.mark.usefixtures("a_second_each")
@pytest.mark.parametrize(
    ("given", "runs"),
    [
        # Inputs, then outputs.
        ({"method": "gptq", "bits": 4, "samples": 6}, 2 * 6),
        # The survey before looks at 16 samples at most.
        ({"method": "ecq", "bits": 4, "samples": 6, "effort": "fast"}, 2 * 6 + 2 * 6),
        ({"method": "ecq", "bits": 4, "samples": 40, "effort": "fast"}, 2 * 40 + 2 * 16),
        # There and back, for 8 samples.
        (
            {"method": "ecq", "bits": 4, "samples": 40, "effort": "fast", "gradients": True},
            2 * 40 + 2 * 16 + 4 * 8,
        ),
        # Four inputs in a block, for each of which both versions are run to where it is.
        ({"method": "ecq", "bits": 4, "samples": 6}, 6 * (2 + 4 + 1) + 2 * 6),
    ],
)
def test_blocks_are_run_as_often_as_the_pack_runs_them(
    tiny_folder: Callable[[str], Path], given: dict[str, object], runs: float
) -> None:
    found = projected(tiny_folder("llama"), seq_len=LENGTH, **given)
    assert found is not None
    n_blocks = 2
    assert found.running_seconds == pytest.approx(n_blocks * runs)
    assert found.quantizing_seconds > 0
    assert found.seconds == found.running_seconds + found.quantizing_seconds


def test_what_is_measured_grows_with_the_work(tiny_folder: Callable[[str], Path]) -> None:
    few, many = (
        projected(tiny_folder("llama"), method="gptq", bits=4, samples=n, seq_len=LENGTH)
        for n in (1, 100_000)
    )
    assert few is not None
    assert many is not None
    assert many.running_seconds > 100 * few.running_seconds
    hidden = 99_999 * LENGTH * 64 * 4
    # What a batch computes grows too, until it is full.
    assert many.peak_bytes - few.peak_bytes == pytest.approx(hidden, rel=0.05)


@pytest.mark.parametrize(
    "given",
    [
        {"method": "lossless"},
        {"method": "rtn", "bits": 4},
        {"method": "ecq", "bits": 4.0, "no_calibration": True},
        {"method": "jsq"},
    ],
)
def test_others_are_not_projected(tiny_folder: Callable[[str], Path], given: dict[str, object]) -> None:
    assert projected(tiny_folder("llama"), **given) is None


def test_dry_run_tells_and_refuses_what_the_pack_would(
    tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    words = ("--method", "gptq", "--bits", "4", "--samples", "2", "--seq-len", str(LENGTH), "--dry-run")
    done = run("pack", tiny_folder("llama"), tmp_path / "m.spq", *words)
    assert "to run the model on 2 samples" in done.stdout
    bare = tmp_path / "bare"
    bare.mkdir()
    for file in tiny_folder("llama").iterdir():
        if "token" not in file.name:
            (bare / file.name).symlink_to(file)
    refused = run("pack", bare, tmp_path / "m.spq", *words)
    assert refused.code != 0
    assert "calibration needs the model's tokenizer" in refused.stderr
    with pytest.raises(SpqError, match="tokenizer"):
        projected(bare, method="gptq", bits=4)


@pytest.mark.usefixtures("a_second_each")
def test_embeddings_that_are_not_the_budget_s_are_not_counted(tiny_folder: Callable[[str], Path]) -> None:
    by_budget, rounded = (
        projected(tiny_folder("llama"), method="ecq", bits=4, samples=2, seq_len=LENGTH, **more)
        for more in ({}, {"embedding_bits": 8})
    )
    assert by_budget is not None
    assert rounded is not None
    assert by_budget.quantizing_seconds > rounded.quantizing_seconds
