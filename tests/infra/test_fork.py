"""A forked child works, whatever its parent has done before: as multiprocessing and DataLoader workers fork."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

import spqfmt
from spqfmt.loaders.plan import plan_model

SECONDS = 400


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose tensors have several chunks, and products and pieces that several threads share."""
    folder = tmp_path_factory.mktemp("forked")
    config = transformers.LlamaConfig(
        vocab_size=264,
        hidden_size=512,
        intermediate_size=2100,
        num_hidden_layers=2,
        num_attention_heads=8,
        max_position_embeddings=128,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config)
    model.bfloat16().save_pretrained(folder / "source")
    spqfmt.pack(folder / "source", folder / "model.spq", method="rtn")
    (folder / "ceiling").write_text(str(plan_model(folder / "model.spq").plan.smallest_bytes))
    return folder


def lines_of(way: str, folder: Path) -> list[str]:
    script = Path(__file__).with_name("forked.py")
    # Four threads, also where there are fewer processors.
    command = ["env", "OMP_NUM_THREADS=4", sys.executable, "-P", str(script), way, str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


@pytest.mark.parametrize(
    ("way", "n_works"),
    [("one_after_the_other", 13), ("while_others_work", 6), ("without_a_team", 13), ("workers", 2)],
)
def test_a_forked_child_does_what_its_parent_has_done(way: str, n_works: int, folder: Path) -> None:
    lines = lines_of(way, folder)
    assert [line for line in lines if not line.endswith(" ok")] == []
    assert len(lines) == n_works
