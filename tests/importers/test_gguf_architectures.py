"""GGUF files of many architectures: packed, they compute what the model computes that was written, and come back."""

import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import gguf_architectures
import gguf_small_models
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import spqfmt
from spqfmt.calibration.model import ModelShell
from spqfmt.container.reader import Reader
from spqfmt.errors import ImporterError, UnusedTensorsWarning
from spqfmt.importers import open_source
from spqfmt.importers._gguf_architectures import ARCHITECTURES
from spqfmt.importers._gguf_changes import Change
from spqfmt.importers._gguf_reader import read_header
from spqfmt.importers._source_file import SourceFile
from spqfmt.loaders.packed.modules import PackedLinear
from spqfmt.loaders.packed.rows_apart import PackedRows
from spqfmt.loaders.tensors import open_stored
from spqfmt.models.stacked_heads import find_wholes
from spqfmt.packing.dequantized import as_packed
from spqfmt.packing.options import pack_options
from spqfmt.packing.sources import LITERALS

TOKENS = torch.tensor([[(i * 37 + 11) % gguf_small_models.VOCABULARY for i in range(40)]])


def write(folder: Path, name: str, **options: object) -> tuple[Path, torch.Tensor]:
    """The file, and the logits of the model that it is."""
    file = folder / f"{name}.gguf"
    model = gguf_architectures.write(name, file, **options)  # type: ignore[arg-type]
    with torch.inference_mode():
        return file, computed(model)


def computed(model: Any) -> torch.Tensor:
    """The logits of the tokens, or of the first of them after all."""
    more = {"decoder_input_ids": TOKENS[:, :12]} if model.config.is_encoder_decoder else {}
    logits: torch.Tensor = model(TOKENS, **more).logits
    return logits


def logits(path: Path, **options: object) -> torch.Tensor:
    model, _ = spqfmt.load_model(path, dtype="float32", **(options or {"packed": False}))  # type: ignore[arg-type]
    with torch.inference_mode():
        return computed(model)


def same(found: torch.Tensor, expected: torch.Tensor) -> bool:
    assert expected.std() > 0.05, "logits that hardly differ would prove nothing"
    return bool((found - expected).abs().max() < 1e-4 * expected.std())


def packed(source: Path, **options: object) -> Path:
    """The file, after what it was made of has come back, of tensors but for a header."""
    path = source.with_suffix(".spq")
    assert not spqfmt.pack(source, path, force=True, **options).left_out  # type: ignore[arg-type]
    spqfmt.verify(path, content=True)
    out = source.with_name("out")
    assert spqfmt.unpack(path, out).identical
    assert (out / source.name).read_bytes() == source.read_bytes()
    return path


@pytest.mark.parametrize("name", gguf_small_models.MODELS)
def test_a_packed_file_computes_what_its_model_does(tmp_path: Path, name: str) -> None:
    source, expected = write(tmp_path, name, quantize="Q8_0")
    path = packed(source)
    n_blocks = sum(tensor.form == "Q8_0" for tensor in read_header(SourceFile(source)).tensors)
    with Reader(path) as reader:
        n_coded = sum(record.scheme == "grouped" for record in reader.index.tensors)
        [n_literals] = [asset.stream.n for asset in reader.index.assets if asset.name == LITERALS]
    assert n_coded >= n_blocks / 2 > 1  # two may have become one
    assert n_literals < min(t.offset for t in read_header(SourceFile(source)).tensors) + 20_000
    assert same(logits(path, packed=False), expected)


@pytest.mark.parametrize(
    "name", ["gpt-oss", "llama4", "granitemoe", "falcon_groups", "mamba", "qwen35", "qwen3next"]
)
def test_a_file_of_floats_too(tmp_path: Path, name: str) -> None:
    """Tensors of several in the file, whose elements lie in several places."""
    source, expected = write(tmp_path, name)
    path = packed(source)
    with Reader(path) as reader:
        [n_literals] = [asset.stream.n for asset in reader.index.assets if asset.name == LITERALS]
    assert n_literals < min(t.offset for t in read_header(SourceFile(source)).tensors) + 20_000
    assert same(logits(path), expected)
    assert same(logits(source), expected)


def test_experts_of_mxfp4(tmp_path: Path) -> None:
    source, expected = write(tmp_path, "gpt-oss", quantize="MXFP4")
    path = packed(source)
    with spqfmt.open(path) as file:
        name = "model.layers.1.mlp.experts.gate_up_proj"
        assert file[name].info.scheme == "grouped"
        assert file[name].shape == (4, 64, 192)
        assert file[name].dtype == "bf16"
        assert json.loads(file.assets["config.json"])["dtype"] == "bfloat16"
    assert same(logits(path), expected)


@pytest.mark.parametrize(
    "name",
    [
        "gemma3",
        "phi3",
        "qwen3moe",
        "mixtral",
        "llama4",
        "gpt-oss",
        "qwen35",
        "qwen35moe",
        "gemma4",
        "gemma4_experts",
        "deepseek3",
        "nemotron_h_moe",
        "qwen3next",
        "t5",
    ],
)
def test_packed_and_under_a_ceiling(tmp_path: Path, name: str) -> None:
    source, expected = write(tmp_path, name, quantize="Q4_0")
    path = packed(source)
    for options in ({"packed": True}, {"memory": "3MiB"}):
        found = logits(path, **options)
        assert (found - expected).abs().max() < 1e-3 * expected.std()


def test_blocks_of_several_groups_whose_columns_lie_otherwise(tmp_path: Path) -> None:
    """Value heads of 32 columns, in blocks of 256: the columns of a head are of one block in the file alone."""
    source, expected = write(tmp_path, "qwen35_wide", quantize="TQ2_0")
    path = packed(source)
    with Reader(path) as reader:
        [record, *_] = [r for r in reader.index.tensors if r.name.endswith("linear_attn.out_proj.weight")]
        assert "permutation" in record.by_role
        assert record.parameters["group_size"] == 256
    for options in ({"packed": False}, {"packed": True}, {"memory": "3MiB"}):
        found = logits(path, **options)
        assert (found - expected).abs().max() < 1e-3 * expected.std()


def test_layers_that_guess_tokens_ahead_are_kept_aside(tmp_path: Path) -> None:
    def with_next(writer: gguf.GGUFWriter) -> None:
        writer.kv_data[0]["qwen35.block_count"].value = 5
        writer.add_nextn_predict_layers(1)
        for name in ("attn_q", "nextn.eh_proj"):
            writer.add_tensor(f"blk.4.{name}.weight", np.ones((4, 64), np.float32))

    source, expected = write(tmp_path, "qwen35", edit=with_next)
    path = packed(source)
    assert same(logits(path), expected)
    with spqfmt.open(path) as file:
        assert file["mtp.blk.4.nextn.eh_proj.weight"].shape == (4, 64)


def test_keys_of_layers_that_use_those_of_others_are_kept_aside(tmp_path: Path) -> None:
    """As some converters write them: the model has no place for them, and no need."""
    extra = np.ones((64, 64), np.float32)
    source, expected = write(
        tmp_path, "gemma4", edit=lambda writer: writer.add_tensor("blk.5.attn_k.weight", extra)
    )
    path = packed(source)
    assert same(logits(path), expected)
    with spqfmt.open(path) as file:
        assert file["model.layers.5.self_attn.k_proj.weight"].shape == (64, 64)


def test_gate_and_up_of_experts_in_two_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = gguf_small_models.MODELS["gemma4_experts"]

    def in_two(name: str, value: np.ndarray) -> list[tuple[str, np.ndarray]]:
        halves = small.split(name, value)
        if "experts.gate_up_proj" not in name:
            return halves
        layer = name.split(".")[2]
        parts = np.split(value, 2, axis=1)
        return [(f"blk.{layer}.ffn_{half}_exps.weight", parts[k]) for k, half in enumerate(("gate", "up"))]

    two = {**gguf_small_models.MODELS, "gemma4_experts": replace(small, split=in_two)}
    monkeypatch.setattr(gguf_architectures, "MODELS", two)
    source, expected = write(tmp_path, "gemma4_experts", quantize="Q8_0")
    assert "blk.0.ffn_up_exps.weight" in {t.name for t in read_header(SourceFile(source)).tensors}
    assert same(logits(packed(source), packed=False), expected)


def test_values_of_a_model_are_those_of_its_codes(tmp_path: Path) -> None:
    source, _ = write(tmp_path, "llama4", quantize="Q4_1")
    path = packed(source)
    other = tmp_path / "values.spq"
    spqfmt.pack(source, other, dequantize=True)
    with spqfmt.open(path) as kept, spqfmt.open(other) as values:
        assert set(kept) == set(values)
        for name in kept:
            assert torch.equal(kept.read(name), values.read(name)), name


def test_keys_and_values_of_a_latent_vector_are_one_matrix_everywhere(tmp_path: Path) -> None:
    """Where they lie apart in the file: in plain weights, for calibration, and not in other programs' layouts."""
    source, expected = write(tmp_path, "deepseek2", quantize="Q8_0")
    path, plain = packed(source), tmp_path / "plain"
    halves = "model.layers.0.self_attn.k_b_proj.weight", "model.layers.0.self_attn.v_b_proj.weight"
    with spqfmt.open(path) as file:
        assert [(file[half].shape, file[half].info.scheme) for half in halves] == [
            ((4, 32, 32), "grouped"),
            ((4, 64, 32), "grouped"),
        ]
    spqfmt.unpack(path, plain, as_="dense")
    model = transformers.AutoModelForCausalLM.from_pretrained(plain, dtype="float32")
    with torch.inference_mode():
        assert (model(TOKENS).logits - expected).abs().max() < 0.05 * expected.std()  # values are f16 there
    apart = {name for name in model.state_dict() if name.endswith("kv_b_proj.weight")}
    for form in ("gptq", "compressed-tensors"):
        report = spqfmt.unpack(path, tmp_path / form, as_=form)
        assert {name for name, why in report.plain.items() if "apart" in why} == apart
        served = load_file(tmp_path / form / "model.safetensors")
        plain_values = load_file(plain / "model.safetensors")
        assert all(torch.equal(served[name], plain_values[name]) for name in apart)


@pytest.mark.parametrize(
    ("name", "quantize"), [("deepseek2", "Q8_0"), ("qwen3next", "Q8_0"), ("deepseek3", "")]
)
def test_a_method_quantizes_the_matrix_whose_rows_lie_apart(tmp_path: Path, name: str, quantize: str) -> None:
    source, _ = write(tmp_path, name, quantize=quantize)
    path, values = tmp_path / "m.spq", tmp_path / "values.spq"
    report = spqfmt.pack(source, path, method="rtn", bits=8, group_size=32, dequantize=bool(quantize))
    spqfmt.pack(source, values, dequantize=bool(quantize))
    ours, _ = spqfmt.load_model(path, dtype="float32", packed=True)
    kept, _ = spqfmt.load_model(values, dtype="float32", packed=False)
    found = [key for key in kept.state_dict() if key.endswith(("kv_b_proj.weight", "in_proj_qkvz.weight"))]
    assert found
    for key in found:
        with spqfmt.open(path) as file:
            assert file[key].info.scheme == "grouped"
            assert (file.read(key).float() - kept.state_dict()[key]).abs().max() < 0.02
    assert {type(ours.get_submodule(key.removesuffix(".weight"))) for key in found} == {PackedLinear}
    assert not report.left_dense.keys() & {*found}
    exported = spqfmt.unpack(path, tmp_path / "served", as_="compressed-tensors")
    assert set(exported.plain) == {"model.embed_tokens.weight", "lm_head.weight"}


def test_calibration_puts_keys_and_values_together(tmp_path: Path) -> None:
    source, _ = write(tmp_path, "deepseek2")
    shell = ModelShell(as_packed(open_source(source), pack_options(method="gptq")), dtype=torch.float32)
    attention = "model.layers.0.self_attn"
    shell.fill(shell.tensors_of(attention))
    ours = shell.model.get_submodule(attention).kv_b_proj.weight
    theirs, _ = spqfmt.load_model(source, dtype="float32")
    assert torch.equal(ours, theirs.get_submodule(attention).kv_b_proj.weight)


def test_keys_and_values_of_a_latent_vector_in_one_matrix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As llama.cpp's converter had them before, with the sizes of a head under the usual keys."""

    def before(writer: gguf.GGUFWriter) -> None:
        said = writer.kv_data[0]
        for kind in ("key", "value"):
            said[f"deepseek2.attention.{kind}_length"].value = said.pop(
                f"deepseek2.attention.{kind}_length_mla"
            ).value

    small = replace(
        gguf_small_models.MODELS["deepseek2"], change=lambda n, v, c: v, split=lambda n, v: [(n, v)]
    )
    monkeypatch.setattr(gguf_architectures, "MODELS", {"deepseek2": small})
    source, expected = write(tmp_path, "deepseek2", quantize="Q8_0", edit=before)
    path = packed(source)
    with spqfmt.open(path) as file:
        assert file["model.layers.0.self_attn.kv_b_proj.weight"].info.scheme == "grouped"
    assert same(logits(path), expected)


def test_keys_and_values_beside_their_matrix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As llama.cpp does: the parts are what is computed with, whatever the matrix says, which is kept too."""
    small = gguf_small_models.MODELS["deepseek2"]

    def both(name: str, value: np.ndarray) -> list[tuple[str, np.ndarray]]:
        whole = [(name, value.reshape(-1, value.shape[-1]) + 1)] if name.endswith("kv_b_proj.weight") else []
        return [*small.split(name, value), *whole]

    monkeypatch.setattr(gguf_architectures, "MODELS", {"deepseek2": replace(small, split=both)})
    source, expected = write(tmp_path, "deepseek2")
    path = packed(source)
    with spqfmt.open(path) as file:
        assert file["model.layers.0.attn_kv_b.weight"].shape == (384, 32)
    for of, options in ((source, {}), (path, {"packed": True})):
        with pytest.warns(UnusedTensorsWarning, match=r"model\.layers\.0\.attn_kv_b\.weight"):
            assert same(logits(of, **options), expected)


def test_rows_that_lie_apart_stay_packed(tmp_path: Path) -> None:
    source, expected = write(tmp_path, "qwen3next", quantize="Q4_0")
    path = packed(source)
    model, _ = spqfmt.load_model(path, dtype="float32", packed=True)
    layer = "model.layers.0.linear_attn.in_proj_qkvz"
    parts = dict(model.get_submodule(layer).named_children())
    assert {name: type(part) for name, part in parts.items()} == {
        f"in_proj_{kind}": PackedRows for kind in "qkvz"
    }
    assert not list(model.get_submodule(layer).parameters())
    model.save_pretrained(tmp_path / "saved")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype="float32")
    with torch.inference_mode():
        assert same(again(TOKENS).logits, expected)


def test_rows_of_a_mixed_tensor_that_nothing_is_made_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = gguf_small_models.MODELS["qwen3next"]

    def longer(name: str, value: np.ndarray) -> list[tuple[str, np.ndarray]]:
        return [
            (part, np.concatenate([own, own[:32]]) if part == "blk.0.attn_qkv.weight" else own)
            for part, own in small.split(name, value)
        ]

    monkeypatch.setattr(gguf_architectures, "MODELS", {"qwen3next": replace(small, split=longer)})
    source, _ = write(tmp_path, "qwen3next")
    without_a_model(
        source, tmp_path, "tensor blk.0.attn_qkv.weight has 352 rows, which are not those of its metadata"
    )


def test_halves_that_do_not_go_together_are_left() -> None:
    shapes = {
        "a.k_b_proj.weight": (4, 32, 32),
        "a.v_b_proj.weight": (4, 64, 16),
        "b.k_b_proj.weight": (4, 32, 32),
    }
    assert find_wholes(shapes.items()) == {}
    assert find_wholes([*shapes.items(), ("b.v_b_proj.weight", (4, 64, 32))]) == {
        "b.kv_b_proj.weight": ("b.k_b_proj.weight", "b.v_b_proj.weight")
    }


def test_names_of_stacks_in_other_sources_are_their_own(tmp_path: Path) -> None:
    """What is no GGUF file of a known architecture may call anything so: nothing is put together there."""
    stacks = {"a.k_b_proj.weight": torch.randn(2, 4, 3), "a.v_b_proj.weight": torch.randn(2, 5, 4)}
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "config.json").write_text('{"model_type": "nobody"}')
    save_file(stacks, tmp_path / "folder" / "model.safetensors", metadata={"format": "pt"})
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "nobody")
    for name, stack in stacks.items():
        writer.add_tensor(name, stack.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    for source in (tmp_path / "folder", tmp_path / "m.gguf"):
        packed, out = tmp_path / "m.spq", tmp_path / f"{source.name}.out"
        spqfmt.pack(source, packed, force=True)
        spqfmt.unpack(packed, out, as_="dense")
        found = load_file(out / "model.safetensors")
        assert {name: tuple(stack.shape) for name, stack in found.items()} == {
            name: tuple(stack.shape) for name, stack in stacks.items()
        }
        for opened in (source, packed):
            with open_stored(opened) as stored:
                assert set(stored.tensors) == set(stacks)


def test_every_architecture_is_written_by_the_tool() -> None:
    of = {
        "mixtral": "llama",
        "ministral3": "mistral3",
        "granitehybrid_dense": "granitehybrid",
        "deepseek3": "deepseek2",
        "umt5": "t5",
    }
    written = {small.architecture for small in gguf_small_models.MODELS.values()}
    assert {of.get(name, name) for name in ARCHITECTURES} | {"qwen2vl", "qwen3vl"} == written


Edit = Callable[[gguf.GGUFWriter], None]


def says(key: str, value: object) -> Edit:
    def edit(writer: gguf.GGUFWriter) -> None:
        writer.kv_data[0][key].value = value

    return edit


@pytest.mark.parametrize(
    ("name", "key", "value", "message"),
    [
        ("gemma3", "gemma3.block_count", 3, "gemma3.block_count is 3, but there are tensors of 4 blocks"),
        (
            "phi3",
            "phi3.embedding_length",
            32,
            "phi3.embedding_length is 32, but token_embd.weight has rows of 64",
        ),
        (
            "qwen3moe",
            "qwen3moe.expert_count",
            5,
            "qwen3moe.expert_count is 5, but there are tensors of 4 experts",
        ),
        ("qwen3moe", "qwen3moe.attention.head_count", 0, "qwen3moe.attention.head_count is 0, not a count"),
        (
            "gemma3",
            "gemma3.attention.head_count",
            8,
            "tensor blk.0.attn_q.weight has the shape [128, 64], which is not",
        ),
        (
            "bloom",
            "bloom.attention.head_count",
            5,
            "transformers makes no model of its metadata: `hidden_size` must",
        ),
        ("falcon", "falcon.attention.head_count_kv", 3, "tensor blk.0.attn_qkv.weight has"),
        ("gpt-oss", "gpt-oss.expert_used_count", 0, "gpt-oss.expert_used_count is 0, not a count"),
        (
            "lfm2",
            "lfm2.attention.head_count_kv",
            [2, 0],
            "lfm2.attention.head_count_kv is no number for each layer",
        ),
        (
            "gemma4",
            "gemma4.attention.sliding_window_pattern",
            [True, False],
            "gemma4.attention.sliding_window_pattern is no number for each layer",
        ),
        (
            "gemma4",
            "gemma4.attention.shared_kv_layers",
            6,
            "gemma4: its metadata are not those of layers of two kinds",
        ),
        (
            "deepseek2",
            "deepseek2.rope.dimension_count",
            48,
            "deepseek2.rope.dimension_count is 48, but a head's keys have 48 columns",
        ),
        (
            "deepseek2",
            "deepseek2.attention.kv_lora_rank",
            16,
            "tensor blk.0.attn_k_b.weight has the shape",
        ),
        ("deepseek2", "deepseek2.expert_gating_func", 3, "deepseek2.expert_gating_func is 3, which"),
        (
            "deepseek3",
            "deepseek2.expert_group_count",
            3,
            "deepseek2.expert_group_count is 3, which does not go",
        ),
        (
            "deepseek3",
            "deepseek2.attention.value_length_mla",
            32,
            "tensor blk.0.attn_v_b.weight has the shape",
        ),
        ("nemotron_h", "nemotron_h.ssm.inner_size", 100, "nemotron_h.ssm.inner_size is 100, no multiple of"),
        (
            "nemotron_h",
            "nemotron_h.attention.head_count_kv",
            [0, 0, 0, 0],
            "nemotron_h.attention.head_count_kv is no number for each layer",
        ),
        (
            "nemotron_h_moe",
            "nemotron_h_moe.expert_shared_feed_forward_length",
            32,
            "tensor blk.1.ffn_down_shexp",
        ),
        ("qwen35", "qwen35.ssm.group_count", 4, "qwen35.ssm.time_step_rank is no multiple of"),
        ("qwen35", "qwen35.ssm.inner_size", 96, "tensor blk.0.ssm_conv1d.weight has 320 rows"),
    ],
)
def test_metadata_that_contradict_the_tensors(
    tmp_path: Path, name: str, key: str, value: object, message: str
) -> None:
    source, _ = write(tmp_path, name, edit=says(key, value))
    """They are what running needs, and hinder no pack."""
    without_a_model(source, tmp_path, message)
    with pytest.raises(ImporterError, match=re.escape(message)) as caught:
        spqfmt.load_model(source)
    assert "\n" not in str(caught.value)
    assert str(source) in str(caught.value)


def test_metadata_that_are_cut_short(tmp_path: Path) -> None:
    source, _ = write(tmp_path, "qwen3moe")
    data = source.read_bytes()
    for key in ("block_count", "embedding_length", "attention.head_count", "expert_count", "context_length"):
        source.write_bytes(data.replace(f"qwen3moe.{key}".encode(), f"qwen3moe.{key[:-1]}X".encode(), 1))
        why = f"the metadata lacks qwen3moe.{key}; convert the model again: its tensors have ggml's names"
        assert open_source(source).left_out["config.json"].startswith(why)


def test_flipped_bytes_in_the_header_never_crash(tmp_path: Path) -> None:
    source, _ = write(tmp_path, "qwen3moe")
    data = source.read_bytes()
    for position in range(0, min(t.offset for t in read_header(SourceFile(source)).tensors), 53):
        source.write_bytes(data[:position] + bytes([data[position] ^ 0xFF]) + data[position + 1 :])
        message = ""
        try:
            open_source(source)
        except ImporterError as error:
            message = str(error)
        assert "\n" not in message


def without_a_model(source: Path, folder: Path, why: str) -> None:
    """Packed and given back under ggml's names; only loading is refused."""
    path = folder / "m.spq"
    [said] = spqfmt.pack(source, path).left_out.values()
    assert said.startswith(why)
    with spqfmt.open(path) as file:
        assert "token_embd.weight" in file
    assert spqfmt.unpack(path, folder / "out").identical
    assert (folder / "out" / source.name).read_bytes() == source.read_bytes()


def test_a_tensor_more_or_less_than_the_model_has(tmp_path: Path) -> None:
    extra = np.ones((4, 64), np.float32)
    source, _ = write(tmp_path, "phi3", edit=lambda w: w.add_tensor("blk.1.attn_q.weight", extra))
    without_a_model(
        source, tmp_path, "tensor blk.1.attn_q.weight is not part of Phi3ForCausalLM as known here"
    )
    source, _ = write(tmp_path, "olmo2")
    source.write_bytes(source.read_bytes().replace(b"blk.1.attn_q_norm", b"blk.1.attn_Q_norm"))
    with pytest.raises(
        ImporterError, match=r"it has no tensor for model.layers.1.self_attn.q_norm.weight of Olmo2"
    ):
        spqfmt.load_model(source)


def test_halves_of_different_types_are_no_tensor(tmp_path: Path) -> None:
    source, _ = write(tmp_path, "gpt-oss", quantize="Q4_0", finer="ffn_up_exps")
    why = (
        "the tensors blk.0.ffn_gate_exps.weight and blk.0.ffn_up_exps.weight are of different types or shapes"
    )
    without_a_model(source, tmp_path, why)


def test_names_need_the_gguf_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, _ = write(tmp_path, "phi3", quantize="Q8_0")
    monkeypatch.setitem(sys.modules, "gguf", None)
    without_a_model(
        source, tmp_path, "names of its tensors need the gguf package (pip install 'spqfmt[gguf]')"
    )


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("dims", "axes"), [((3, 2, 4), (1, 0, 2)), ((3, 4, 2), (2, 0, 1)), ((6, 4), (1, 0))])
def test_a_change_is_undone(dims: tuple[int, ...], axes: tuple[int, ...], transposed: bool) -> None:
    """The model's rows, put in the file's order by the same words, are restored, and `order` says the same."""
    rows = torch.arange(24 * 5).reshape(24, 5)
    in_file = rows.reshape(*dims, 5).permute(*axes, len(dims)).reshape(24, 5)
    change = Change(rows=(dims, axes), transposed=transposed)
    stack = (3,) if dims[0] == 3 else ()
    shape = (*stack, 24 // (stack or (1,))[0], 5)
    of_model = rows.reshape(shape).transpose(-1, -2) if transposed else rows.reshape(shape)
    assert torch.equal(change.restore(in_file, tuple(of_model.shape)), of_model)
    order = change.order()
    assert order is not None
    assert torch.equal(in_file[torch.from_numpy(order)], rows)
    turned = change.turned(tuple(of_model.shape))
    assert turned is not None
    again = of_model.reshape(turned[0]).permute(turned[1]).reshape(24, 5)
    assert torch.equal(again, in_file)


def test_columns_are_put_back_too() -> None:
    rows = torch.arange(4 * 24).reshape(4, 24)
    in_file = rows.reshape(2, 2, 3, 2, 4).permute(1, 0, 3, 2, 4).reshape(4, 24)
    change = Change(rows=((2, 2), (1, 0)), columns=((3, 2, 4), (1, 0, 2)))
    assert change.fits((4, 24), 4)
    assert not change.fits((4, 12), 4)
    assert torch.equal(change.restore(in_file, (4, 24)), rows)
    places = change.column_order()
    assert places is not None
    assert torch.equal(in_file[:1], rows[:1, torch.from_numpy(places)])
