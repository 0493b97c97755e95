"""`spqfmt plan` and `spqfmt run --memory`: output, exit codes, one line for an error."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from spq_command import run

import spqfmt


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Callable[[str], Path]) -> Path:
    path = tmp_path_factory.mktemp("commands") / "m.spq"
    spqfmt.pack(tiny_folder("llama_tied"), path, method="rtn")
    return path


def test_plan_as_json(model: Path) -> None:
    code, out, _ = run("plan", str(model), "--memory", "1MiB", "--json", "--tokens", "100")
    plan = json.loads(out)
    assert code == 0
    assert plan["memory_bytes"] == 1 << 20
    assert plan["held_bytes"] <= plan["memory_bytes"]
    assert {layer["residency"] for layer in plan["layers"]} == {"decoded"}
    assert plan["on_top"]["n_tokens"] == 100
    # 2 layers, 2 key-value heads of 16, keys and values in BF16
    assert plan["on_top"]["kv_cache_bytes"] == 2 * 2 * 2 * 16 * 100 * 2


def test_plan_as_a_table(model: Path) -> None:
    code, out, _ = run("plan", str(model))
    assert code == 0
    assert "model.layers.1" in out
    assert "no ceiling" in out
    assert "smallest ceiling" in out


def test_too_low_a_ceiling_is_one_line_that_names_the_smallest(model: Path) -> None:
    _, out, _ = run("plan", str(model), "--json")
    smallest = json.loads(out)["smallest_bytes"]
    for arguments in (("plan", str(model)), ("run", str(model), "--prompt", "x")):
        code, out, err = run(*arguments, "--memory", str(smallest - 1))
        assert code == 1
        assert not out
        assert f"({smallest} bytes)" in err
        assert err.count("\n") == 1


def test_run_under_a_ceiling_says_the_same(model: Path) -> None:
    arguments = ("run", str(model), "--prompt", "abc", "--max-new-tokens", "5")
    code, whole, err = run(*arguments, "--memory", "1GiB")
    assert code == 0
    assert "tokens/s" in err
    _, out, _ = run("plan", str(model), "--json")
    code, least, _ = run(*arguments, "--memory", str(json.loads(out)["smallest_bytes"]))
    assert code == 0
    assert least == whole


@pytest.mark.parametrize("command", [("plan",), ("run", "--prompt", "x")])
def test_a_ceiling_that_is_no_size_is_wrong_use(model: Path, command: tuple[str, ...]) -> None:
    code, _, err = run(command[0], str(model), *command[1:], "--memory", "much")
    assert code == 2
    assert "not a size" in err
