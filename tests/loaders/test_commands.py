"""`spqfmt run` and `spqfmt eval` as commands."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import spq_command
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

import spqfmt
from spqfmt.cli.eval import eval_
from spqfmt.cli.pack import pack
from spqfmt.cli.run import run
from spqfmt.loaders import encode_text, evaluate, generate, load_model

TEXT = "The quick brown fox jumps over the lazy dog. " * 6


@pytest.fixture
def packed(tmp_path: Path, tiny_folder: Callable[[str], Path]) -> Path:
    spqfmt.pack(tiny_folder("llama"), tmp_path / "m.spq")
    return tmp_path / "m.spq"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path / "text.txt"


def test_run_writes_the_text_to_stdout_and_facts_to_stderr(packed: Path) -> None:
    result = CliRunner().invoke(run, [str(packed), "--prompt", "Hello", "--max-new-tokens", "6"])
    assert result.exit_code == 0, result.output
    expected = generate(*load_model(packed), "Hello", max_new_tokens=6)
    assert result.stdout == expected.text + "\n"
    for fact in ("load ", "prompt 5 tokens", "6 new tokens at", "peak memory", "MiB"):
        assert fact in result.stderr


def test_tensors_without_a_place_are_told_once_by_pack_and_by_run(
    tmp_path: Path, tiny_folder: Callable[[str], Path]
) -> None:
    folder = Path(shutil.copytree(tiny_folder("llama"), tmp_path / "source"))
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"mtp.fc.weight": torch.ones(8, 8)}, folder / "model.safetensors")
    file = str(tmp_path / "m.spq")
    result = CliRunner().invoke(pack, [str(folder), file])
    assert result.exit_code == 0, result.output
    assert "in the file, but LlamaForCausalLM has no place for: mtp.fc.weight\n" in result.stderr
    result = CliRunner().invoke(pack, [str(folder), file, "--force", "--json"])
    assert json.loads(result.stdout)["unused"] == ["mtp.fc.weight"]
    told = f"spqfmt: {file}: not used, LlamaForCausalLM has no place for them: mtp.fc.weight\n"
    for quiet in ([], ["--quiet"]):
        result = CliRunner().invoke(run, [file, "--prompt", "Hello", "--max-new-tokens", "1", *quiet])
        assert result.exit_code == 0, result.output
        assert result.stderr.count(told) == (not quiet)


def test_eval_json_is_one_object(packed: Path, text: Path, tiny_folder: Callable[[str], Path]) -> None:
    arguments = [str(packed), "--text", str(text), "--reference", str(tiny_folder("llama")), "--json"]
    result = CliRunner().invoke(
        eval_, [*arguments, "--window", "64", "--stride", "32", "--max-tokens", "100"]
    )
    assert result.exit_code == 0, result.output
    model, tokenizer = load_model(packed, dtype=torch.float32)
    expected = evaluate(model, encode_text(tokenizer, TEXT), window=64, stride=32, max_tokens=100)
    assert json.loads(result.stdout) == {
        "perplexity": expected.perplexity,
        "kl": 0.0,
        "tokens": 99,
        "stride": 32,
        "bos": None,
    }


def test_eval_takes_a_source_and_says_it_in_words(text: Path, tiny_folder: Callable[[str], Path]) -> None:
    arguments = [
        str(tiny_folder("llama")),
        "--text",
        str(text),
        "--reference",
        str(tiny_folder("llama_tied")),
    ]
    result = CliRunner().invoke(eval_, arguments)
    assert result.exit_code == 0, result.output
    assert "perplexity " in result.stdout
    assert "nats a token" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--window", "999"], "window 999: this model takes 2 to 128 tokens"),
        (["--window", "16", "--stride", "17"], "stride 17"),
        (["--stride", "0"], "0 is not in the range"),
    ],
)
def test_wrong_settings_are_wrong_use(packed: Path, text: Path, arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(eval_, [str(packed), "--text", str(text), *arguments])
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_text_that_is_not_utf8(packed: Path, text: Path) -> None:
    text.write_bytes(b"\xff\xfe\x00")
    done = spq_command.run("eval", packed, "--text", text)
    assert done.code == 2
    assert "not UTF-8" in done.stderr


def test_help_imports_no_torch() -> None:
    code = "import sys; import spqfmt.cli.run, spqfmt.cli.eval; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
