"""The pages of plan, eval and bench."""

import re
from pathlib import Path

import pytest
import tiny
import torch
from browser import Browser
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

import spqfmt
from spqfmt.bench.latency import Latency
from spqfmt.bench.report import Report
from spqfmt.bench.rows import CodecRow, LoadRow, Rate, RunRow
from spqfmt.loaders.plan import ModelPlan, plan_model
from spqfmt.pages.bench import bench_page
from spqfmt.pages.evaluation import eval_page
from spqfmt.pages.plan import plan_page
from spqfmt.residency.rates import Rates

MARKUP = "<i>a & b</i>"


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory, rates: Rates) -> ModelPlan:
    folder = tmp_path_factory.mktemp("plan")
    tiny.build("llama_tied", folder / "m", dtype=torch.bfloat16)
    spqfmt.pack(folder / "m", folder / "m.spq", method="rtn", bits=8)
    whole = plan_model(folder / "m.spq", rates=rates).plan
    middle = (whole.smallest_bytes + whole.held_bytes) // 2
    return plan_model(folder / "m.spq", memory=middle, rates=rates)


@pytest.fixture(scope="module")
def plan_file(planned: ModelPlan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plan") / "plan.html"
    path.write_text(plan_page(planned, MARKUP), "utf-8")
    return path


def test_the_plan_opens_at_the_ceiling_that_was_asked_for(
    browser: Browser, plan_file: Path, planned: ModelPlan
) -> None:
    browser.open(plan_file)
    assert browser.complaints() == []
    assert browser.requests() == [plan_file.as_uri()]
    shown = browser.run("return d3.select('#residency-section').datum()")
    assert shown["ceiling"] == planned.plan.memory_bytes
    assert shown["plan"]["residencies"] == [part.residency for part in planned.plan.parts]
    assert shown["plan"]["heldBytes"] == planned.plan.held_bytes
    assert browser.text("h1") == MARKUP
    browser.driver.find_element(By.ID, "ceiling").send_keys(Keys.END)
    assert set(browser.run("return d3.select('#residency-section').datum()")["plan"]["residencies"]) == {
        "decoded"
    }


def test_the_plan_fits_a_phone_and_its_layers_add_up(
    browser: Browser, plan_file: Path, planned: ModelPlan
) -> None:
    browser.open(plan_file, 360)
    assert browser.run("return document.documentElement.scrollWidth") == 360
    times = browser.run(
        "return [...document.querySelectorAll('tbody td:last-child')].map(c => +c.textContent)"
    )
    assert sum(times) == pytest.approx(planned.plan.serial_ms, abs=0.005 * len(times))


def rate(median: float) -> Rate:
    return Rate(median, median * 0.9, median * 1.1)


@pytest.fixture(scope="module")
def bench_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    coders = [("rans", "avx512", 2950.4), ("zstd", "level 1", 1530.0), ("memcpy", MARKUP, 9000.0)]
    codecs = [
        CodecRow(data, codec, path, 65536, 1, "", rate(r / 2), rate(r), 6.125, 6.1)
        for data in ("int8", "int4") for codec, path, r in coders
    ]  # fmt: skip
    load = [
        LoadRow("int8", name, "cold", 2, 10**8, rate(2000.0)) for name in ("spq", "safetensors", "raw bytes")
    ]
    ours = RunRow(
        "m", "compressed", "64 tokens", rate(40.25), 9, 10**8, 10**7, 35.5, 41.5, Latency(1.0, 2.0, 3.0, 4)
    )
    theirs = RunRow("m", "BF16 transformers", "64 tokens", rate(80.5), 9, 10**9, 10**8, None, None, None)
    missing = {"zipnn": "not installed"}
    report = Report({"processor": "any", "packages": {}}, 7, codecs, load, missing, [theirs, ours])
    path = tmp_path_factory.mktemp("bench") / "bench.html"
    path.write_text(bench_page(report, "Bench"), "utf-8")
    return path


@pytest.mark.parametrize("width", [360, 1200])
def test_the_bench_shows_every_row_and_fits_a_phone(browser: Browser, bench_file: Path, width: int) -> None:
    browser.open(bench_file, width)
    assert browser.complaints() == []
    assert browser.requests() == [bench_file.as_uri()]
    assert browser.run("return document.documentElement.scrollWidth") == width
    rows = browser.run("return [...document.querySelectorAll('tbody tr')].map(r => r.cells[0].textContent)")
    runs = ["BF16 transformers", "compressed"]
    coders = ["rans avx512 64 KiB", "zstd level 1 64 KiB", f"memcpy {MARKUP} 64 KiB"]
    assert sorted(rows) == sorted([*coders, *coders, "spq", "safetensors", "raw bytes", *runs])
    assert browser.run("return [...document.querySelectorAll('tr.ours th')].map(t => t.textContent)") == [
        "rans avx512 64 KiB", "rans avx512 64 KiB", "spq", "compressed"
    ]  # fmt: skip
    assert browser.text("main dl.facts").split() == ["zipnnnot", "installed"]


def test_bars_are_as_long_as_rates_and_a_copy_has_none(bench_file: Path) -> None:
    text = bench_file.read_text("utf-8")
    widths = [float(w) for w in re.findall(r'-fill" width="([\d.]+)"', text)]
    # By table: fastest first, each row with encode and decode; then both files.
    one = [0.0, 0.0, 100.0, 100.0, *[pytest.approx(100 * 1530 / 2950.4, abs=0.01)] * 2]
    assert widths == [*one, *one, 100.0, 100.0, 0.0, 100.0, 50.0]


def test_an_evaluation_says_what_json_says(browser: Browser, tmp_path: Path) -> None:
    result = {"perplexity": 21.234375, "kl": 0.0125, "tokens": 20480, "stride": 512}
    page = tmp_path / "eval.html"
    page.write_text(eval_page(result, MARKUP, [("text", MARKUP)]), "utf-8")
    browser.open(page, 360)
    assert browser.complaints() == []
    shown = browser.run(
        "return Object.fromEntries([...document.querySelectorAll('data')].map(d => [d.dataset.key, +d.value]))"
    )
    assert shown == result
    assert browser.run("return document.documentElement.scrollWidth") == 360
    assert browser.text("header .summary dd") == MARKUP


def test_an_infinite_perplexity_and_no_reference_are_said() -> None:
    page = eval_page({"perplexity": None, "kl": None, "tokens": 9, "stride": 3}, "m.spq", [])
    assert "∞" in page
    assert "no reference was given" in page
    assert "None" not in page


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 1200])
def test_texts_of_every_page_stand_out_from_their_ground(
    browser: Browser, plan_file: Path, bench_file: Path, width: int, dark: bool
) -> None:
    for page in (plan_file, bench_file):
        browser.open(page, width, dark=dark)
        contrasts = browser.contrasts()
        assert len(contrasts) > 20
        assert {key: round(c, 2) for key, c in contrasts.items() if c < 4.5} == {}
