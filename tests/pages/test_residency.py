"""The plan on a page is from the index alone: for plain decoders it is the loader's own."""

from pathlib import Path

import pytest
import tiny
import torch

import spqfmt
from spqfmt.container.model import open_model
from spqfmt.loaders.plan import plan_model
from spqfmt.residency.cpu import plan_residency
from spqfmt.residency.from_index import inventory_from_index
from spqfmt.residency.rates import Rates


@pytest.mark.parametrize("name", ["llama", "llama_tied", "qwen3", "gpt2"])
def test_a_plain_decoder_is_planned_as_its_class_would_be(name: str, tmp_path: Path, rates: Rates) -> None:
    tiny.build(name, tmp_path / "m", dtype=torch.bfloat16)
    path = tmp_path / "m.spq"
    spqfmt.pack(tmp_path / "m", path, method="rtn", bits=8)
    with open_model(path) as model:
        inventory = inventory_from_index(model.readers)
    smallest = plan_residency(inventory, rates, None).smallest_bytes
    for memory in (None, smallest, smallest + 30_000):
        assert plan_model(path, memory=memory, rates=rates).plan.to_json() == (
            plan_residency(inventory, rates, memory).to_json()
        )
