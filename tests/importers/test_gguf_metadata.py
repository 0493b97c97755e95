"""Metadata of GGUF files that ask for another model than transformers has: none is made of them."""

from dataclasses import replace
from pathlib import Path

import gguf
import gguf_architectures
import numpy as np
import pytest
import tiny_gguf

from spqfmt.importers import open_source
from spqfmt.importers._gguf_reader import GgufHeader, read_header
from spqfmt.importers._source_file import SourceFile


def written(folder: Path, name: str, **options: object) -> Path:
    """A small model of this architecture, as a GGUF file."""
    gguf_architectures.write(name, folder / f"{name}.gguf", **options)  # type: ignore[arg-type]
    return folder / f"{name}.gguf"


_ANOTHER_MODEL: list[tuple[str, str, object, str]] = [
    (
        "gemma4",
        "attention.sliding_window_pattern",
        [True, False, True, False, True, True],
        "transformers has no gemma4_text of layers in this order",
    ),
    ("gemma4", "rope.scaling.type", "yarn", "the metadata lacks gemma4.rope.scaling.factor"),
    ("gemma4", "rope.dimension_count", 16, "gemma4.rope.dimension_count is not the 32 columns"),
    ("mistral3", "rope.scaling.type", [1], "rotary scaling '[1]' is not known"),
    ("mistral3", "rope.freq_base", -1.0, "mistral3.rope.freq_base is -1.0, not a number above 0"),
    ("mistral3", "attention.temperature_scale", 0.1, "mistral3.attention.temperature_scale without YaRN"),
    ("mistral3", "attention.head_count_kv", [2, 2, 2, 2], "mistral3.attention.head_count_kv is [2, 2, 2, 2]"),
    ("mistral3", "attention.head_count_kv", None, "tensor blk.0.attn_k.weight has the shape"),
    ("ministral3", "rope.scaling.attn_factor", 2.0, "mistral3.rope.scaling.attn_factor is 2.0"),
    ("qwen35", "attention.causal", False, "qwen35.attention.causal is False"),
    (
        "qwen35",
        "attention.layer_norm_rms_epsilon",
        float("nan"),
        "qwen35.attention.layer_norm_rms_epsilon is nan",
    ),
    (
        "qwen35",
        "attention.layer_norm_rms_epsilon",
        None,
        "the metadata lacks qwen35.attention.layer_norm_rms",
    ),
    ("qwen35", "rope.dimension_sections", [11, 0, 0, 0], "qwen35.rope.dimension_sections has 1 sizes"),
    ("qwen35", "rope.dimension_sections", ["a"], "qwen35.rope.dimension_sections is no list"),
    ("qwen35moe", "expert_used_count", 1 << 31, "qwen35moe.expert_used_count is 2147483648"),
    ("glm4moe", "expert_gating_func", 1, "glm4moe.expert_gating_func is 1"),
    ("glm4moe", "expert_group_count", 4, "glm4moe.expert_group_count is 4"),
    ("ernie4_5-moe", "expert_weights_scale", 2.5, "ernie4_5-moe.expert_weights_scale is 2.5"),
    (
        "lfm2moe",
        "attention.head_count_kv",
        ["a", "b", "c", "d"],
        "lfm2moe.attention.head_count_kv is no number",
    ),
    ("granitehybrid", "rope.scaling.finetuned", "no", "granitehybrid.rope.scaling.finetuned is no, neither"),
    ("deepseek2", "attention.temperature_scale", 0.1, "deepseek2.attention.temperature_scale is 0.1, which"),
    ("deepseek2", "expert_weights_norm", True, "deepseek2.expert_weights_norm is true with a softmax"),
    ("deepseek2", "expert_weights_norm", "no", "deepseek2.expert_weights_norm is no, neither true nor false"),
    ("deepseek2", "expert_gating_func", [2], "deepseek2.expert_gating_func is [2], which"),
    (
        "deepseek2",
        "attention.layer_norm_rms_epsilon",
        -1e-6,
        "deepseek2.attention.layer_norm_rms_epsilon is -1e-06",
    ),
    (
        "granitehybrid",
        "ssm.group_count",
        4,
        "granitehybrid.ssm.group_count is 4, but blk.0.ssm_norm.weight has 2",
    ),
    ("deepseek2", "attention.kv_lora_rank", None, "the metadata lacks deepseek2.attention.kv_lora_rank"),
]


@pytest.fixture(scope="module")
def headers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[SourceFile, GgufHeader]]:
    """A file of each of these architectures, and what its header says."""
    folder, found = tmp_path_factory.mktemp("sources"), {}
    for name in {name for name, *_ in _ANOTHER_MODEL}:
        file = SourceFile(written(folder, name))
        found[name] = (file, read_header(file))
    return found


def reason(
    monkeypatch: pytest.MonkeyPatch, of: tuple[SourceFile, GgufHeader], *, key: str, value: object
) -> str:
    """Why there is no model of a file whose metadata have this value, or none where it is None."""
    file, header = of
    metadata = {**header.metadata, f"{header.metadata['general.architecture']}.{key}": value}
    said = {one: found for one, found in metadata.items() if found is not None}
    monkeypatch.setattr(
        "spqfmt.importers.gguf.read_parts", lambda path: ((file,), replace(header, metadata=said))
    )
    return open_source(file.path).left_out.get("config.json", "")


@pytest.mark.parametrize(("name", "key", "value", "message"), _ANOTHER_MODEL)
def test_metadata_of_another_model_than_transformers_has(
    headers: dict[str, tuple[SourceFile, GgufHeader]],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    key: str,
    value: object,
    message: str,
) -> None:
    """No other model is made of it in silence, and nothing of a number that the file has not earned."""
    assert reason(monkeypatch, headers[name], key=key, value=value).startswith(message)


@pytest.mark.parametrize(
    ("name", "tensor", "values", "message"),
    [
        (
            "mistral3",
            "rope_freqs.weight",
            np.full(8, 4.0, np.float32),
            "tensor rope_freqs.weight is not part of",
        ),
        ("llama4", "blk.2147483646.x.weight", np.ones(4, np.float32), "there are tensors of 5 blocks"),
    ],
)
def test_tensors_of_another_model(
    tmp_path: Path, name: str, tensor: str, values: np.ndarray, message: str
) -> None:
    def edit(writer: gguf.GGUFWriter) -> None:
        writer.add_tensor(tensor, values)
        if "2147483646" in tensor:
            writer.kv_data[0][f"{name}.block_count"].value = 2147483647

    assert open_source(written(tmp_path, name, edit=edit)).left_out["config.json"].startswith(message)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("block_count", 1 << 31, "llama.block_count is 2147483648, which is more than its tensors"),
        ("attention.causal", False, "llama.attention.causal is False, which transformers' model has not"),
    ],
)
def test_models_that_need_no_library_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, value: object, message: str
) -> None:
    path = tmp_path / "m.gguf"
    tiny_gguf.write("llama", path)
    file = SourceFile(path)
    assert reason(monkeypatch, (file, read_header(file)), key=key, value=value).startswith(message)
