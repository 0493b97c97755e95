"""The ceiling under a hard limit of the operating system, and the same tokens at every ceiling."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
import transformers

import spqfmt
from spqfmt.errors import MemoryBudgetError
from spqfmt.loaders.plan import plan_model

TOOL = Path(__file__).resolve().parents[2] / "tools" / "bench" / "ceilings.py"


N_LAYERS = 12


def build(folder: Path, hidden: int, intermediate: int) -> Path:
    config = transformers.LlamaConfig(
        **tiny._LLAMA
        | {"hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": N_LAYERS},
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]), tiny.quiet():
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config).bfloat16()
        model.save_pretrained(folder)
        tiny.byte_tokenizer().save_pretrained(folder)
    spqfmt.pack(folder, folder / "m.spq", method="rtn")
    return folder / "m.spq"


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 26 MB of INT8 codes in small layers: buffers are small beside it."""
    return build(tmp_path_factory.mktemp("deep"), 448, 1216)


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="RLIMIT_DATA counts private pages on Linux only"
)
def test_weights_stay_under_the_ceiling(deep: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(TOOL), str(deep), "--tokens", "64", "--json"],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    runs, decoded = found["runs"], found["decoded_bytes"]
    assert [run["ceiling"] for run in runs] == [int(decoded * share) for share in (1.1, 0.75, 0.5, 0.25)]
    assert found["smallest_bytes"] < runs[-1]["ceiling"]
    assert all(run["held"] <= run["ceiling"] for run in runs)
    assert all(len(run["tokens"]) == 16 + 64 and run["tokens"] == runs[0]["tokens"] for run in runs)
    assert runs[0]["in"] == ["decoded"]
    assert runs[-1]["in"] != ["decoded"]
    # What the limit is worth: the same model, all decoded, does not fit under the last one.
    assert found["whole_fits"] is False


def test_below_the_smallest_ceiling_no_weights_are_read(deep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smallest = plan_model(deep, dtype="bfloat16").plan.smallest_bytes

    def refuse(*_: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr("spqfmt.loaders.packed.store.Store.load", refuse)
    monkeypatch.setattr("spqfmt.container.reader.Reader.read_elements", refuse)
    with pytest.raises(MemoryBudgetError, match=f"at least .*{smallest} bytes") as caught:
        spqfmt.load_model(deep, dtype="bfloat16", memory=smallest - 1)
    assert caught.value.smallest_bytes == smallest
