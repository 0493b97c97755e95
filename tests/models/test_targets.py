"""Where a checkpoint's tensors go does not depend on their order, and one that holds several parameters is for all."""

import itertools
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools" / "families"))

from probe import build, model_classes

from spqfmt.importers import open_source
from spqfmt.models.places import unmatched
from spqfmt.models.targets import Targets


def _built(family: str) -> Any:
    if family not in transformers.CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {family}")
    return build(model_classes(transformers.CONFIG_MAPPING[family])[0], torch.float32)


@pytest.mark.parametrize(
    "family", ["gpt2", "mixtral", "gte", "hrm_text", "kimi_k25", "molmo2_text", "tipsv2_vision_model"]
)
def test_a_family_s_own_checkpoint_lacks_nothing(family: str, tmp_path: Path) -> None:
    _built(family).save_pretrained(tmp_path)
    assert unmatched(open_source(tmp_path)) == ((), ())


def test_names_that_stand_for_others_are_told_apart_in_any_order() -> None:
    model = _built("kimi_k25")
    names = [f"vision_tower.encoder.blocks.0.mlp.fc{number}.weight" for number in (0, 1)]
    expected = [f"model.vision_tower.layers.0.mlp.fc{number}.weight" for number in (1, 2)]
    for given, asked in itertools.product(itertools.permutations(names), itertools.permutations(names)):
        targets = Targets(model, given)
        assert {name: targets.find(name)[0] for name in asked} == dict(zip(names, expected, strict=True))
