"""--html and --png of the commands: a file is written, stdout stays for data."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from spq_command import run

import spqfmt
from spqfmt.bench.report import Report


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    tiny.build("llama", folder / "m", dtype=torch.bfloat16)
    spqfmt.pack(folder / "m", folder / "m.spq", method="rtn", bits=8)
    return folder / "m.spq"


def test_inspect_writes_page_and_picture_and_prints_no_table(model: Path, tmp_path: Path) -> None:
    page, picture = tmp_path / "m.html", tmp_path / "m.png"
    code, out, err = run("inspect", model, "--measure", "--html", page, "--png", picture)
    assert (code, out) == (0, "")
    assert err.splitlines()[-2].startswith(f"{page}: ")
    assert err.splitlines()[-1].startswith(f"{picture}: ")
    assert page.read_text("utf-8").startswith("<!doctype html>")
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_inspect_measures_what_was_chosen_and_shows_the_whole_file(model: Path, tmp_path: Path) -> None:
    page = tmp_path / "m.html"
    chosen = ("--tensor", "*down_proj*", "--measure")
    code, out, _ = run("inspect", model, *chosen, "--html", page, "--json")
    assert code == 0
    assert len(json.loads(out)["tensors"]) == 4
    data = json.loads(page.read_text("utf-8").split('id="data">')[1].split("</script>")[0])
    assert len(data["tensors"]["name"]) == 19
    assert {data["tensors"]["name"][int(i)] for i in data["measured"]} == {
        f"model.layers.{i}.mlp.down_proj.weight" for i in range(4)
    }


def test_a_picture_without_matplotlib_says_what_to_install(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, _, err = run("inspect", model, "--png", tmp_path / "m.png")
    assert code == 2
    assert err.splitlines()[-1] == "spqfmt: figures need matplotlib: pip install 'spqfmt[plots]'"


def test_plan_writes_a_page(llama: Path, tmp_path: Path) -> None:
    page = tmp_path / "plan.html"
    code, out, _ = run("plan", llama, "--memory", "2MiB", "--html", page)
    assert (code, out) == (0, "")
    assert "Planned for a ceiling of 2.1 MB." in page.read_text("utf-8")


def test_eval_writes_what_json_says(llama: Path, tmp_path: Path) -> None:
    text, page = tmp_path / "t.txt", tmp_path / "eval.html"
    text.write_text("a page for each result " * 4, "utf-8")
    code, out, _ = run("eval", llama, "--text", text, "--html", page, "--json")
    assert code == 0
    assert f'data-key="perplexity" value="{json.loads(out)["perplexity"]}"' in page.read_text("utf-8")


def test_bench_writes_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(*_: Any) -> Report:
        return Report({"processor": "any"}, 3, [], [], {"lz4": "not installed"})

    monkeypatch.setattr("spqfmt.cli.bench.run", nothing)
    code, out, _ = run("bench", "--html", tmp_path / "bench.html")
    assert (code, out) == (0, "")
    assert "not installed" in (tmp_path / "bench.html").read_text("utf-8")


@pytest.mark.parametrize("option", ["--html", "--png"])
@pytest.mark.parametrize("name", ["other.spq", "m.spq.index.json"])
def test_a_model_is_not_overwritten_by_a_page(model: Path, tmp_path: Path, option: str, name: str) -> None:
    (tmp_path / name).write_bytes(b"weights")
    code, out, err = run("inspect", model, option, tmp_path / name)
    assert (code, out) == (2, "")
    assert "named like a model" in err
    assert (tmp_path / name).read_bytes() == b"weights"


@pytest.mark.parametrize("command", ["inspect", "plan", "eval", "bench"])
def test_a_folder_that_is_not_there_is_said_before_the_work(
    command: str, tmp_path: Path, model: Path
) -> None:
    text = ("--text", model) if command == "eval" else ()
    code, out, err = run(command, model, *text, "--html", tmp_path / "none" / "m.html")
    assert (code, out) == (2, "")
    assert f"{tmp_path / 'none'}: no such folder" in err


def test_a_page_of_a_model_in_fp32_says_what_it_is_smaller_than(llama: Path, tmp_path: Path) -> None:
    tiny.build("llama", tmp_path / "f", dtype=torch.float32)
    spqfmt.pack(tmp_path / "f", tmp_path / "f.spq", method="rtn", bits=8)
    for file, more in ((llama, 1), (tmp_path / "f.spq", 2)):
        code, _, _ = run("inspect", file, "--html", tmp_path / "page.html")
        assert code == 0
        page = (tmp_path / "page.html").read_text("utf-8")
        totals = spqfmt.inspect(file).totals
        to_bf16 = f"{totals.bf16_bytes / file.stat().st_size:.2f} \u00d7"
        assert (f"<dt>Smaller than {'BF16' if more == 1 else 'the source'}</dt>") in page
        assert (f"; {to_bf16} smaller than BF16</dd>" in page) == (more == 2)
        assert totals.raw_bytes == pytest.approx(more * totals.bf16_bytes, rel=0.01)


@pytest.mark.parametrize("option", ["--html", "--png"])
def test_a_link_is_replaced_and_what_it_leads_to_is_left(model: Path, tmp_path: Path, option: str) -> None:
    target, out = tmp_path / "mine", tmp_path / "page"
    target.write_text("mine")
    out.symlink_to(target)
    assert run("inspect", model, option, out)[0] == 0
    assert not out.is_symlink()
    assert out.stat().st_size > 1000
    assert target.read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"mine", "page"}
