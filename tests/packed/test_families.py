"""Small models of families that differ in how they use their weights, without loss and in 4 bits, loaded each way."""

from pathlib import Path

import pytest
import transformers
from probe import model_classes, probe

# docs/families.md has the others: what mamba, deberta and others do with `weight`, merged experts, embeddings
# that two or three modules share.
FAMILIES = (
    "bamba", "clip", "deepseek_v3", "electra", "falcon_mamba", "gemma3n_text", "gemma4_text", "gpt2", "gpt_oss",
    "jamba", "kimi_linear", "llama4_text", "mamba", "mamba2", "mobilebert", "rwkv",
    "seamless_m4t_v2", "t5", "xmod",
)  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_computes_what_its_source_does(tmp_path: Path, family: str) -> None:
    model_class = model_classes(transformers.CONFIG_MAPPING[family])[0]
    result = probe(family, model_class, tmp_path)
    assert (result.decoded, result.packed, result.four_bits, result.note) == ("equal", "equal", "equal", "")
    assert result.n_packed
    assert result.ran[0] == model_class.__name__
