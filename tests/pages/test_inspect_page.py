"""The page of a file in a real browser: what it shows is what the report says, and everybody can use it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import files
import pytest
from browser import Browser
from selenium.webdriver import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select

from spqfmt.container.model import open_model
from spqfmt.pages.inspect import inspect_page
from spqfmt.reading.report import Distance, FileReport, Measured, inspect_file
from spqfmt.residency.cpu import plan_residency
from spqfmt.residency.from_index import inventory_from_index
from spqfmt.residency.rates import Rates

PHONE = 360


@pytest.fixture(scope="module")
def report(model: Path) -> FileReport:
    return inspect_file(model)


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [PHONE, 1200])
def test_the_page_opens_without_complaints_or_requests(
    browser: Browser, page: Path, width: int, dark: bool
) -> None:
    browser.open(page, width, dark=dark)
    assert browser.complaints() == []
    assert browser.requests() == [page.as_uri()]
    assert (
        browser.run("return document.querySelectorAll('#treemap svg g[role=option]').length") > files.N_LAYERS
    )


def test_nothing_is_wider_than_a_phone(browser: Browser, page: Path) -> None:
    browser.open(page, PHONE)
    assert browser.run("return document.documentElement.scrollWidth") == PHONE


def test_the_totals_are_those_of_json(browser: Browser, page: Path, report: FileReport) -> None:
    browser.open(page)
    shown = browser.run(
        "return Object.fromEntries([...document.querySelectorAll('data')].map(d => [d.dataset.key, d.value]))"
    )
    said = json.loads(json.dumps(report.to_json()))
    totals: dict[str, Any] = said["totals"] | {"file_bytes": said["file_bytes"]}
    parts = {f"parts.{key}": n for key, n in totals.pop("parts").items() if n}
    assert {key: float(value) for key, value in shown.items() if not key.startswith("parts.")} == {
        key: totals[key]
        for key in ("file_bytes", "ratio", "raw_bytes", "bits_per_weight", "entropy_bits_per_weight")
    }
    assert {key: int(value) for key, value in shown.items() if key.startswith("parts.")} == parts
    assert sum(parts.values()) == said["file_bytes"]


def test_the_areas_of_the_treemap_add_up_to_the_file(
    browser: Browser, page: Path, report: FileReport
) -> None:
    browser.open(page)
    for grouping in ("by-projection", "by-layer"):
        browser.run("document.getElementById(arguments[0]).click()", grouping)
        bytes_of_tiles = browser.run("return d3.selectAll('#treemap .tile').data().map(d => d.value)")
        assert sum(bytes_of_tiles) == report.file_bytes


def test_the_table_says_what_the_report_says(browser: Browser, page: Path, report: FileReport) -> None:
    browser.open(page)
    rows = browser.run(
        "return [...document.querySelectorAll('#table tbody tr')].map(r => [...r.cells].map(c => c.textContent))"
    )
    assert [row[0] for row in rows] == [t.name for t in report.tensors]
    for row, tensor in zip(rows, report.tensors, strict=True):
        assert row[3].replace("\u202f", "") == (str(tensor.stored_bytes) if tensor.stored_bytes else "")
        assert row[4] == (f"{tensor.bits_per_weight:.3f}" if tensor.n_weights else "")


@pytest.mark.parametrize(
    ("text", "found"),
    [("down_proj", files.N_LAYERS), ("layers.2.", 4), ("layers.?.*norm", 4), ("nowhere", 0)],
)
def test_search_finds_names_and_patterns(browser: Browser, page: Path, text: str, found: int) -> None:
    browser.open(page)
    browser.driver.find_element(By.ID, "search").send_keys(text)
    assert browser.run("return document.querySelectorAll('#table tbody tr').length") == found
    assert browser.text("#found").startswith(f"{found} of 19 tensors")


def test_columns_sort_both_ways_from_the_keyboard(browser: Browser, page: Path, report: FileReport) -> None:
    browser.open(page)
    stored = sorted((t.stored_bytes for t in report.tensors), reverse=True)
    head = browser.driver.find_element(By.XPATH, "//table[@id='table']//th[.='bytes']")
    for expected, said in ((stored, "descending"), (stored[::-1], "ascending")):
        head.find_element(By.TAG_NAME, "button").send_keys(Keys.ENTER)
        assert head.get_attribute("aria-sort") == said
        assert browser.run("return d3.selectAll('#table tbody tr').data().map(t => t.stored)") == expected


def test_arrow_keys_walk_through_the_treemap_and_enter_chooses(browser: Browser, page: Path) -> None:
    browser.open(page)
    treemap = browser.driver.find_element(By.CSS_SELECTOR, "#treemap svg")
    browser.run("arguments[0].focus()", treemap)
    first = browser.text("#treemap-status")
    assert first.startswith("model.embed_tokens.weight: ")
    ActionChains(browser.driver).send_keys(Keys.ARROW_RIGHT).perform()
    second = browser.text("#treemap-status")
    assert second != first
    active = browser.run(
        "return document.getElementById(arguments[0].getAttribute('aria-activedescendant'))", treemap
    )
    assert active.get_attribute("aria-label") == second
    ActionChains(browser.driver).send_keys(Keys.ENTER).perform()
    chosen = Select(browser.driver.find_element(By.ID, "tensor")).first_selected_option.text
    assert second.startswith(f"{chosen}: ")
    assert browser.text("#tensor-facts dd") == chosen


def test_tab_reaches_every_control_in_order(browser: Browser, page: Path) -> None:
    browser.open(page)
    seen = []
    for _ in range(12):
        ActionChains(browser.driver).send_keys(Keys.TAB).perform()
        seen.append(
            browser.run(
                "const e = document.activeElement; return e.id || e.parentElement.id || e.textContent"
            )
        )
    order = ["by-layer", "treemap", "projection", "tensor", "ceiling", "search", "tensor"]
    assert seen == ["To the table of tensors", *order[:-1], *seen[7:]]
    assert seen[7] == "tensor"  # the first column's head


def test_a_chosen_tensor_shows_its_own_histogram_and_outliers(
    browser: Browser, page: Path, model: Path
) -> None:
    from spqfmt.reading.measure import measure_file

    measured = measure_file(model, inspect_file(model))
    name = "model.layers.1.mlp.down_proj.weight"
    tensor = next(t for t in measured.tensors if t.name == name)
    assert tensor.measured is not None
    assert tensor.measured.histogram is not None
    assert tensor.measured.outlier_map is not None
    browser.open(page)
    Select(browser.driver.find_element(By.ID, "tensor")).select_by_visible_text(name)
    assert browser.run("return d3.selectAll('#histogram rect').data()") == list(
        tensor.measured.histogram.counts
    )
    label = browser.run("return document.querySelector('#outliers svg').getAttribute('aria-label')")
    most = max(map(max, tensor.measured.outlier_map.counts))
    assert label.endswith(f"at most {most} in one")
    Select(browser.driver.find_element(By.ID, "tensor")).select_by_visible_text("model.norm.weight")
    assert browser.run("return document.getElementById('outliers').hidden")


def test_errors_against_a_reference_are_a_column_that_sorts(
    browser: Browser, report: FileReport, model: Path, rates: Rates, tmp_path: Path
) -> None:
    errors = {
        "model.norm.weight": Distance(0.25, 0.1, 2.0),
        "model.embed_tokens.weight": Distance(0.5, 0.1, 3.0),
    }
    errors["lm_head.weight"] = Distance(None, None, None)
    tensors = [
        replace(t, measured=Measured(None, None, errors[t.name]) if t.name in errors else None)
        for t in report.tensors
    ]
    page = tmp_path / "errors.html"
    page.write_text(inspect_page(replace(report, tensors=tuple(tensors)), model, rates), "utf-8")
    browser.open(page)
    browser.driver.find_element(By.XPATH, "//table[@id='table']//th[.='error']/button").click()
    shown = browser.run(
        "return [...document.querySelectorAll('#table tbody tr')].slice(0, 2).map(r => r.lastChild.textContent)"
    )
    assert shown == ["50.000 %", "25.000 %"]
    for name, said in (
        ("model.norm.weight", "25.000 % of the reference, largest 2.00"),
        ("lm_head.weight", "\u2013 of the reference, largest \u2013"),
    ):
        Select(browser.driver.find_element(By.ID, "tensor")).select_by_visible_text(name)
        assert browser.text("#tensor-facts").endswith(said)
    assert browser.complaints() == []


def test_the_slider_plans_as_the_planner_does(
    browser: Browser, page: Path, model: Path, rates: Rates
) -> None:
    with open_model(model) as opened:
        inventory = inventory_from_index(opened.readers)
    browser.open(page)
    kinds = set()
    for position in range(0, 1001, 40):
        ceiling, plan = browser.run(
            """const slider = document.getElementById("ceiling");
            slider.value = arguments[0];
            slider.dispatchEvent(new Event("input"));
            const { ceiling, plan } = d3.select("#residency-section").datum();
            return [ceiling, plan];""",
            position,
        )
        expected = plan_residency(inventory, rates, ceiling)
        residencies = [part.residency for part in expected.parts]
        assert plan["residencies"] == residencies
        assert plan["heldBytes"] == expected.held_bytes
        assert plan["serial"] == pytest.approx(expected.serial_ms)
        assert plan["overlapped"] == pytest.approx(expected.overlapped_ms)
        kinds |= set(residencies)
    assert {"decoded", "disk"} <= kinds


def test_the_slider_moves_by_keys_and_says_its_value(browser: Browser, page: Path) -> None:
    browser.open(page)
    slider = browser.driver.find_element(By.ID, "ceiling")
    before = browser.text("#ceiling-shown"), browser.text("#plan-overlapped")
    slider.send_keys(Keys.HOME)
    assert (
        slider.get_attribute("aria-valuetext")
        == browser.text("#ceiling-shown")
        == browser.text("#plan-smallest")
    )
    assert (browser.text("#ceiling-shown"), browser.text("#plan-overlapped")) != before


def test_every_control_and_drawing_has_a_name_for_screen_readers(browser: Browser, page: Path) -> None:
    browser.open(page)
    tree = browser.command("Accessibility.getFullAXTree")["nodes"]
    wanted = {
        "button",
        "slider",
        "searchbox",
        "combobox",
        "radio",
        "image",
        "listbox",
        "option",
        "table",
        "region",
    }
    seen = set()
    for node in tree:
        role = node.get("role", {}).get("value")
        if role in wanted and not node.get("ignored"):
            seen.add(role)
            assert node.get("name", {}).get("value"), node
    assert seen >= wanted - {"region"}
    without = (
        "return [...document.querySelectorAll('input, select')].filter(e => !e.labels.length).map(e => e.id)"
    )
    assert browser.run(without) == []


def test_names_from_the_file_are_text(browser: Browser, hostile: Path) -> None:
    browser.open(hostile)
    assert browser.complaints() == []
    assert browser.requests() == [hostile.as_uri()]
    assert browser.text("h1") == "<b onclick=alert(2)>&.spq"
    names = browser.run(
        "return [...document.querySelectorAll('#table button.choose')].map(b => b.textContent)"
    )
    assert files.HOSTILE in names
    assert (
        browser.run("return document.querySelectorAll('img, b, script').length") == 2
    )  # the data and our own
    Select(browser.driver.find_element(By.ID, "tensor")).select_by_value(str(names.index(files.HOSTILE)))
    assert browser.text("#tensor-facts dd") == files.HOSTILE


def test_injected_script_and_style_do_not_run(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.run(
        """const script = document.createElement("script");
        script.textContent = "window.owned = true";
        document.body.append(script);
        const handlers = "<img src=x onerror='window.owned = true'><b onclick='window.owned = true'>";
        document.body.insertAdjacentHTML("beforeend", handlers);
        document.querySelector("b").click();"""
    )
    assert browser.run("return window.owned === undefined")
    refused = [message for message in browser.complaints() if "Content Security Policy" in message]
    assert len(refused) >= 3  # the script, the image, its handler


@pytest.mark.parametrize("dark", [False, True])
def test_every_text_stands_out_from_its_ground(browser: Browser, page: Path, dark: bool) -> None:
    browser.open(page, dark=dark)
    contrasts = browser.contrasts()
    assert len(contrasts) > 100
    assert {key: round(c, 2) for key, c in contrasts.items() if c < 4.5} == {}
    background = browser.run("return getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(20, 23, 27)" if dark else "rgb(255, 255, 255)")


def test_print_is_light_and_without_controls(browser: Browser, page: Path, tmp_path: Path) -> None:
    browser.open(page, dark=True)
    browser.medium("print", dark=True)
    assert browser.run("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    for control in ("#search", "#tensor", "#ceiling", "#by-layer"):
        assert (
            browser.run("return document.querySelector(arguments[0]).getClientRects().length", control) == 0
        )
    browser.print(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
