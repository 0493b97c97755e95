"""What a config may say of a quantizer by mistake: taken, or refused in one line."""

from pathlib import Path
from typing import Any

import packed_words
import pytest
import torch
from coded import Arrays, write_arrays

from spqfmt.errors import ImporterError
from spqfmt.importers import open_source

AT = "model.layers.0.mlp.up_proj"
ODD = [None, -3, 0, 1.5, True, "", "x", [], ["x"], {}, {"x": {}}, {"x": 4}, [{"x": 4}], 1 << 80, "\u2028"]
_NUMBERS = packed_words.grid(torch.randn(32, 64), torch.arange(64) // 32, 4, symmetric=True)
SOURCES: dict[str, tuple[dict[str, Any], Arrays, tuple[str, ...]]] = {
    "gptq": (
        {"quant_method": "gptq", "bits": 4, "group_size": 32},
        packed_words.gptq_arrays(
            AT, _NUMBERS[2], *_NUMBERS[:2], bits=4, of_column=torch.arange(64, dtype=torch.int32) // 32
        ),
        (
            "bits",
            "group_size",
            "checkpoint_format",
            "dynamic",
            "meta",
            "quant_method",
            "format",
            "config_groups",
        ),
    ),
    "awq": (
        {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"},
        packed_words.awq_arrays(AT, _NUMBERS[2], *_NUMBERS[:2]),
        ("bits", "group_size", "version", "checkpoint_format", "quant_method", "format"),
    ),
}


def outcome(folder: Path) -> set[str]:
    """The tensors of a source as weights; the error, should there be one, has to be of one line."""
    try:
        return {tensor.name for tensor in open_source(folder).as_weights().tensors}
    except ImporterError as error:
        return set() if len(str(error).splitlines()) == 1 else {str(error)}


@pytest.mark.parametrize(("kind", "key"), [(kind, key) for kind in SOURCES for key in SOURCES[kind][2]])
def test_odd_values_are_taken_or_refused(tmp_path: Path, kind: str, key: str) -> None:
    config, arrays, _ = SOURCES[kind]
    for k, value in enumerate(ODD):
        folder = write_arrays(tmp_path / str(k), {"quantization_config": config | {key: value}}, arrays)
        assert outcome(folder) in (set(), {f"{AT}.weight"}, set(arrays)), value
