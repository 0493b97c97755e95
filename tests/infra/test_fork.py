"""A forked child works, whatever its parent has done before: as multiprocessing and DataLoader workers fork."""

import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest
import torch
import transformers

import spqfmt
from spqfmt.cached import cached_property
from spqfmt.loaders.plan import plan_model

SECONDS = 600


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


def test_a_forked_child_does_what_its_parent_has_done(folder: Path) -> None:
    script = Path(__file__).with_name("forked.py")
    # More threads than processors, too.
    command = ["env", "SPQFMT_THREADS=4", sys.executable, "-P", str(script), str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=SECONDS)
    lines = result.stdout.splitlines()
    assert [line for line in lines if not line.endswith(" ok")] == []
    assert result.returncode == 0, result.stderr
    assert Counter(line.partition(":")[0] for line in lines) == {
        "one_after_the_other": 13,
        "while_others_work": 6,
        "without_more_threads": 10,
        "workers": 2,
        "without_a_team": 4,
    }


class _Slow:
    begun, may_end = threading.Event(), threading.Event()

    @cached_property
    def value(self) -> int:
        self.begun.set()
        self.may_end.wait(SECONDS)
        return 7


def test_a_child_forked_while_a_property_is_computed_computes_it() -> None:
    other = threading.Thread(target=lambda: _Slow().value)
    other.start()
    _Slow.begun.wait(SECONDS)
    child = os.fork()
    if child == 0:
        signal.alarm(10)
        _Slow.may_end = threading.Event()
        _Slow.may_end.set()
        os._exit(_Slow().value)
    _, status = os.waitpid(child, 0)
    _Slow.may_end.set()
    other.join()
    assert os.waitstatus_to_exitcode(status) == 7
