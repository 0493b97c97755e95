"""Metadata of GGUF files that ask for another model than transformers has: none is made of them."""

import re
import warnings
from dataclasses import replace
from pathlib import Path

import gguf
import gguf_architectures
import numpy as np
import pytest
import tiny_gguf
import torch

import spqfmt
from spqfmt.errors import ImporterError, UnsupportedError
from spqfmt.importers import open_source
from spqfmt.importers._gguf_models import MODELS
from spqfmt.importers._gguf_reader import GgufHeader, read_header
from spqfmt.importers._quiet import quiet_transformers
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
    ("qwen35", "ssm.inner_size", 3, "qwen35.ssm.inner_size is 3, no multiple of ssm.time_step_rank 6"),
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


def test_a_layer_of_no_kind_and_one_of_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = SourceFile(written(tmp_path, "nemotron_h"))
    header = read_header(file)
    [kind] = [one for one in header.tensors if one.name in {"blk.0.ssm_in.weight", "blk.0.attn_q.weight"}]
    left = replace(header, tensors=tuple(one for one in header.tensors if one is not kind))
    found = reason(monkeypatch, (file, left), key="x", value=1)
    assert found.startswith("nemotron_h: block 0 has none of blk.0.attn_q.weight, blk.0.ssm_in.weight, ")
    more = replace(header, tensors=(*header.tensors, replace(kind, name="blk.0.ffn_up.weight")))
    found = reason(monkeypatch, (file, more), key="x", value=1)
    assert found.startswith(
        f"nemotron_h: {kind.name} and blk.0.ffn_up.weight are of different kinds of layers"
    )


def test_advice_about_layers_without_elements_is_for_nobody() -> None:
    with pytest.warns(UserWarning, match="zero-element"):
        torch.nn.Linear(0, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with quiet_transformers():
            torch.nn.Linear(0, 2)


def test_calibration_of_a_file_without_a_vocabulary(tmp_path: Path) -> None:
    """What to do is not what helps beside safetensors."""
    source = written(tmp_path, "qwen3moe")
    why = r"GGUF file's tokenizer \(it has no vocabulary\); pack the Hugging Face folder that it was made of"
    with pytest.raises(ImporterError, match=why):
        spqfmt.pack(source, tmp_path / "m.spq", method="gptq")
    assert not (tmp_path / "m.spq").exists()


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


_CONTRADICTED: list[tuple[str, str, object, str]] = [
    ("llama", "block_count", 1 << 31, "llama.block_count is 2147483648, but there are tensors of 2 blocks"),
    ("llama", "block_count", 1, "llama.block_count is 1, but there are tensors of 2 blocks"),
    ("llama", "embedding_length", 32, "llama.embedding_length is 32, but token_embd.weight has rows of 64"),
    (
        "llama",
        "attention.head_count_kv",
        2,
        "tensor blk.0.attn_k.weight has the shape [32, 64], which is not",
    ),
    ("llama", "attention.head_count", 1, "tensor blk.0.attn_q.weight has the shape [64, 64], which is not"),
    ("llama", "feed_forward_length", 64, "tensor blk.0.ffn_gate.weight has the shape [96, 64], which is not"),
    (
        "llama",
        "attention.causal",
        False,
        "llama.attention.causal is False, which transformers' model has not",
    ),
    ("qwen2", "attention.head_count_kv", None, "tensor blk.0.attn_k.weight has the shape [32, 64]"),
    ("qwen2", "attention.head_count", 3, "tensor blk.0.attn_q.weight has the shape [64, 64]"),
    ("qwen3", "attention.key_length", 32, "tensor blk.0.attn_q.weight has the shape [128, 64]"),
    ("gemma2", "feed_forward_length", 64, "tensor blk.0.ffn_gate.weight has the shape [96, 64]"),
    ("gpt2", "attention.head_count", 3, "tensor blk.0.attn_qkv.weight has the shape [192, 64]"),
    ("gpt2", "feed_forward_length", 64, "tensor blk.0.ffn_up.weight has the shape [96, 64]"),
    ("gpt2", "context_length", 64, "tensor position_embd.weight has the shape [128, 64]"),
]


@pytest.fixture(scope="module")
def of_tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[SourceFile, GgufHeader]]:
    """A file of each architecture that stands in a table here, and what its header says."""
    folder, found = tmp_path_factory.mktemp("tables"), {}
    for name in MODELS.keys() & {*tiny_gguf.NAMES}:
        tiny_gguf.write(name, folder / f"{name}.gguf")
        found[name] = (SourceFile(folder / f"{name}.gguf"), read_header(SourceFile(folder / f"{name}.gguf")))
    return found


@pytest.mark.parametrize(("name", "key", "value", "message"), _CONTRADICTED)
def test_metadata_that_the_tensors_of_a_table_contradict(
    of_tables: dict[str, tuple[SourceFile, GgufHeader]],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    key: str,
    value: object,
    message: str,
) -> None:
    assert reason(monkeypatch, of_tables[name], key=key, value=value).startswith(message)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        (
            "llama",
            "blk.1.attn_v.weight",
            "it has no tensor for model.layers.1.self_attn.v_proj.weight of Llama",
        ),
        (
            "gemma2",
            "blk.0.post_ffw_norm.weight",
            "it has no tensor for model.layers.0.post_feedforward_layern",
        ),
        ("gpt2", "position_embd.weight", "it has no tensor for transformer.wpe.weight of GPT2LMHeadModel"),
    ],
)
def test_tensors_that_a_table_has_more(
    of_tables: dict[str, tuple[SourceFile, GgufHeader]],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    tensor: str,
    message: str,
) -> None:
    file, header = of_tables[name]
    left = replace(header, tensors=tuple(one for one in header.tensors if one.name != tensor))
    assert reason(monkeypatch, (file, left), key="x", value=1).startswith(message)


def test_what_contradicts_itself_is_packed_and_not_run(tmp_path: Path) -> None:
    """The pack says why, as `run` does, and the file comes back."""
    source, packed = tmp_path / "m.gguf", tmp_path / "m.spq"

    def edit(writer: gguf.GGUFWriter) -> None:
        writer.kv_data[0]["llama.attention.head_count_kv"].value = 2

    tiny_gguf.write("llama", source, edit=edit)
    why = "tensor blk.0.attn_k.weight has the shape [32, 64], which is not that of its metadata"
    assert why in spqfmt.pack(source, packed).left_out["config.json"]
    with pytest.raises(UnsupportedError, match=re.escape(why)) as refused:
        spqfmt.load_model(packed)
    assert "\n" not in str(refused.value)
    assert spqfmt.unpack(packed, tmp_path / "out").identical
    assert (tmp_path / "out" / "m.gguf").read_bytes() == source.read_bytes()
