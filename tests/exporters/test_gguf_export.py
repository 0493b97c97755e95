"""`unpack --as gguf`: blocks that gguf dequantizes to the file's values, names and metadata that come back."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
import pytest
import tiny
import tiny_gguf
import torch
import transformers
from coded import write_arrays
from packed_models import CALIBRATED, values
from safetensors.torch import load_file, save_file

import spqfmt
from spqfmt.errors import EncodeError, OptionError
from spqfmt.importers import open_source

AS: Literal["gguf"] = "gguf"
AT = "model.layers.0.mlp.up_proj.weight"
GROUPS: dict[str, Any] = {"method": "rtn", "bits": 4, "group_size": 32}
_CONFIGS: dict[str, Any] = {
    **{kind: {} for kind in ("llama", "llama_tied", "mistral", "qwen2", "qwen3", "gemma")},
    "gemma2": {"class": "Gemma2Config", "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 32},
    "gemma3_text": {
        "class": "Gemma3TextConfig",
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "sliding_window": 32,
    },
    "gpt2": {},
    "mixtral": {},
    "qwen3_moe": {
        "class": "Qwen3MoeConfig",
        "head_dim": 16,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 64,
        "norm_topk_prob": True,
    },
    "smollm3": {"class": "SmolLM3Config", "num_hidden_layers": 4},
    "granite": {
        "class": "GraniteConfig",
        "embedding_multiplier": 3.0,
        "attention_multiplier": 0.2,
        "residual_multiplier": 0.5,
        "logits_scaling": 2.0,
    },
    "olmo2": {"class": "Olmo2Config"},
    "phi3": {"class": "Phi3Config"},
}


def model_folder(folder: Path, kind: str, dtype: torch.dtype = torch.bfloat16, **edits: Any) -> Path:
    """A tiny model whose rows are whole blocks; norms and biases are random."""
    made = dict(_CONFIGS[kind])
    base = tiny.configurations().get(kind) or tiny.configurations()["llama"]
    config = base
    if "class" in made:
        common = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
                  "max_position_embeddings", "bos_token_id", "eos_token_id", "pad_token_id")  # fmt: skip
        config = getattr(transformers, made.pop("class"))(
            **({key: getattr(base, key) for key in common} | made)
        )
    if kind == "gpt2":
        config.n_inner = 128
    else:
        config.intermediate_size = 128
    for key, value in edits.items():
        setattr(config, key, value)
    with torch.random.fork_rng(devices=[]), tiny.quiet():
        torch.manual_seed(1)
        model = transformers.AutoModelForCausalLM.from_config(config).to(dtype)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    parameter.add_(torch.randn_like(parameter) * 0.2)
        model.save_pretrained(folder)
        tiny.byte_tokenizer().save_pretrained(folder)
    return folder


def written(file: Path) -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, str], dict[str, Any]]:
    """What the package reads: values and types of tensors, and metadata."""
    reader = gguf.GGUFReader(file)
    found = {t.name: gguf.quants.dequantize(t.data, t.tensor_type).copy() for t in reader.tensors}
    kinds = {t.name: t.tensor_type.name for t in reader.tensors}
    return found, kinds, {key: field.contents() for key, field in reader.fields.items()}


def of_ggml(name: str, value: torch.Tensor, said: dict[str, Any]) -> np.ndarray[Any, Any]:
    """A tensor of the model as llama.cpp has it, in float32."""
    architecture = said["general.architecture"]
    if architecture in {"llama", "granite", "smollm3"} and (".q_proj." in name or ".k_proj." in name):
        size = said[f"{architecture}.attention.key_length"]
        value = value.reshape(-1, 2, size // 2, *value.shape[1:]).transpose(1, 2).reshape(value.shape)
    if architecture.startswith("gemma") and name.endswith("norm.weight"):
        value = value + 1
    if architecture == "gpt2" and ".h." in name and value.dim() == 2:
        value = value.T
    return value.contiguous().numpy()


def check(path: Path, file: Path) -> dict[str, str]:
    """Every value of the file is the packed model's, before its rounding where it is of codes; types by our names."""
    found, kinds, said = written(file)
    numbers = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}
    names = gguf.get_tensor_name_map(numbers[said["general.architecture"]], 4)
    rounded, by_name = values(path), {}
    for name, exact in values(path, torch.float32).items():
        expert = re.fullmatch(r"(.*\.experts)\.(\d+)(\..+)", name)
        at = names.get_name(expert[1] + expert[3] if expert else name, try_suffixes=(".weight", ".bias"))
        assert at is not None
        value = rounded[name].float() if kinds[at] in {"F32", "F16", "BF16"} else exact
        there = found[at][int(expert[2])] if expert else found[at]
        assert np.array_equal(there, of_ggml(name, value, said)), name
        by_name[name] = kinds[at]
    alone = {name for name in by_name if ".experts." not in name}
    stacks = {re.sub(r"\.experts\.\d+\.", ".experts.", name) for name in by_name.keys() - alone}
    assert len(found) == len(alone) + len(stacks) + ("rope_freqs.weight" in found)
    return by_name


@pytest.mark.parametrize("kind", _CONFIGS)
def test_every_family_comes_back(tmp_path: Path, kind: str) -> None:
    """With the values of blocks, which the importer reads as codes again, and a config that computes the same."""
    source, path, file = model_folder(tmp_path / "source", kind), tmp_path / "m.spq", tmp_path / "m.gguf"
    spqfmt.pack(source, path, **GROUPS)
    report = spqfmt.unpack(path, file, as_=AS)
    assert list(report.made) == ["m.gguf"]
    kinds = check(path, file)
    is_coded = {name for name, found in kinds.items() if found not in {"F32", "BF16"}}
    per_layer = {"gpt2": 4, "phi3": 4, "mixtral": 4 + 3 * 4, "qwen3_moe": 4 + 3 * 4}.get(kind, 7)
    assert len(is_coded) == per_layer * (4 if kind == "smollm3" else 2)
    assert {kinds[name] for name in is_coded} <= {"Q4_0", "Q4_1", "Q5_0"}
    config = json.loads((source / "config.json").read_text())
    spqfmt.pack(file, tmp_path / "again.spq")
    if not open_source(file).architecture:
        return  # of no model that is imported
    again = values(tmp_path / "again.spq", torch.float32)
    exact, rounded = values(path, torch.float32), values(path)
    for name, value in again.items():
        due = exact[name] if name in is_coded else rounded[name].float()
        assert torch.equal(value, due) or "norm" in name, name
    with spqfmt.open(tmp_path / "again.spq") as opened:
        found = json.loads(opened.assets["config.json"])
    for key in (
        "num_key_value_heads",
        "rms_norm_eps",
        "intermediate_size",
        "tie_word_embeddings",
        "n_inner",
        "n_head",
    ):
        if key in config:
            assert found.get(key) == pytest.approx(config[key]), key
    assert found["vocab_size"] == config["vocab_size"]


def matrix(tmp_path: Path, weight: torch.Tensor, **options: Any) -> tuple[Path, Path]:
    """A model of one layer and an embedding, packed; and where its file goes."""
    config = json.loads((model_folder(tmp_path / "config", "qwen2") / "config.json").read_text())
    arrays = {AT: weight, "model.embed_tokens.weight": torch.zeros(8, 64, dtype=weight.dtype)}
    source = write_arrays(tmp_path / "source", config, arrays)
    spqfmt.pack(source, tmp_path / "m.spq", **options)
    return tmp_path / "m.spq", tmp_path / "m.gguf"


def normal(*shape: int, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).add(shift).half()


@pytest.mark.parametrize(
    ("bits", "shift", "size", "kind"),
    [
        # Codes lie around zero points within so many bits and a sign; where all weights are positive these are 0.
        (2, 0.0, 32, "Q4_0"),
        (3, 0.0, 64, "Q4_0"),
        (4, 0.0, 32, "Q5_0"),
        (4, 5.0, 128, "Q4_1"),
        (5, 5.0, 32, "Q5_1"),
        (5, 0.0, 32, "Q8_0"),
        (7, 0.0, 32, "Q8_0"),
    ],
)
def test_the_smallest_blocks_that_hold_the_codes(
    tmp_path: Path, bits: int, shift: float, size: int, kind: str
) -> None:
    options: dict[str, Any] = {"method": "rtn", "bits": bits, "group_size": size}
    path, file = matrix(tmp_path, normal(48, 256, shift=shift), **options)
    spqfmt.unpack(path, file, as_=AS)
    assert check(path, file)[AT] == kind


def test_codes_that_no_blocks_hold(tmp_path: Path) -> None:
    """8 bits between -60 and 1 of a row's 255 steps: a code of -240 fits no signed byte."""
    weight = normal(48, 256)
    weight[0, 0] = -60
    path, file = matrix(tmp_path, weight, method="rtn", bits=8, group_size=32)
    with pytest.raises(EncodeError, match=rf"tensor '{AT}': its codes lie from -2\d\d to \d+ around"):
        spqfmt.unpack(path, file, as_=AS)


@pytest.mark.parametrize("bits", [4, 8])
def test_kept_integers(tmp_path: Path, bits: int) -> None:
    """Symmetric codes of compressed-tensors in groups of 64 are two blocks with one scale."""
    word = 1 << 31
    generator = torch.Generator().manual_seed(bits)
    arrays = {
        f"{AT}_packed": torch.randint(-word, word, (48, 128 * bits // 32), generator=generator).int(),
        f"{AT}_scale": torch.rand(48, 2, generator=generator).add(0.01).half(),
        f"{AT}_shape": torch.tensor([48, 128]),
        "model.embed_tokens.weight": normal(8, 64),
    }
    config = json.loads((model_folder(tmp_path / "config", "qwen2") / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
    path = tmp_path / "m.spq"
    spqfmt.pack(write_arrays(tmp_path / "source", config, arrays), path, method="keep")
    spqfmt.unpack(path, tmp_path / "m.gguf", as_=AS)
    assert check(path, tmp_path / "m.gguf")[AT] == ("Q4_0" if bits == 4 else "Q8_0")


def test_gptq_and_shards(tmp_path: Path) -> None:
    """gptq's grids of rows hold for all blocks; the head is the embedding and no tensor of its own."""
    source = model_folder(tmp_path / "source", "llama_tied", torch.float16)
    spqfmt.pack(source, tmp_path / "m.spq", method="gptq", shard_size="60kB", **CALIBRATED)
    path = tmp_path / "m.spq.index.json"
    spqfmt.unpack(path, tmp_path / "m.gguf", as_=AS)
    kinds = check(path, tmp_path / "m.gguf")
    assert sum(kind.startswith("Q") for kind in kinds.values()) == 14


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"method": "rtn"}, "its scales are no numbers of F16"),
        ({"method": "rtn", "bits": 4, "group_size": 16}, "its groups of 16 columns are no multiple of blocks of 32"),
        ({"method": "gptq", "group_size": 32, **CALIBRATED}, "act-order"),
        ({"method": "spqr", "threshold": float("inf"), **CALIBRATED}, "no whole numbers"),
        ({"method": "spqr", "threshold": 0.01, **CALIBRATED}, "it has outliers"),
    ],
)  # fmt: skip
def test_what_fits_no_blocks_is_refused(tmp_path: Path, options: dict[str, Any], why: str) -> None:
    source, path = model_folder(tmp_path / "source", "qwen2"), tmp_path / "m.spq"
    spqfmt.pack(source, path, **options)
    with pytest.raises(EncodeError, match=rf"tensor 'model\.layers\.\d\.[\w.]+': .*{why}.*--as dense"):
        spqfmt.unpack(path, tmp_path / "m.gguf", as_=AS)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["m.spq", "source"]


@pytest.mark.parametrize("case", ["missing", "another shape", "two types"])
def test_experts_of_a_layer_are_alike(tmp_path: Path, case: str) -> None:
    config = json.loads((model_folder(tmp_path / "config", "mixtral") / "config.json").read_text())
    name = "model.layers.0.block_sparse_moe.experts.{}.w1.weight"
    arrays = {name.format(i): normal(32, 64) for i in range(3)}
    arrays["model.embed_tokens.weight"] = torch.zeros(8, 64, dtype=torch.float16)
    options: dict[str, Any] = dict(GROUPS)
    if case == "missing":
        del arrays[name.format(1)]
        why = "0.w1.weight': an expert beside it is missing"
    elif case == "another shape":
        arrays[name.format(1)] = torch.zeros(32, 32, dtype=torch.float16)
        why = "1.w1.weight': it is not as the other experts are"
    else:
        # 5 bits around a zero point fit Q8_0 alone; those that begin at 0 fit Q5_1 too, but a stack has one type.
        options["bits"] = 5
        arrays[name.format(1)] = normal(32, 64, shift=50)
        why = ""
    spqfmt.pack(write_arrays(tmp_path / "source", config, arrays), tmp_path / "m.spq", **options)
    if not why:
        spqfmt.unpack(tmp_path / "m.spq", tmp_path / "m.gguf", as_=AS)
        assert check(tmp_path / "m.spq", tmp_path / "m.gguf")[name.format(1)] == "Q8_0"
        return
    with pytest.raises(EncodeError, match=why):
        spqfmt.unpack(tmp_path / "m.spq", tmp_path / "m.gguf", as_=AS)


def test_rows_that_are_no_whole_blocks(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    spqfmt.pack(tiny_folder("llama"), tmp_path / "m.spq", **GROUPS)
    with pytest.raises(EncodeError, match=r"down_proj.weight': 176 columns are no multiple of blocks of 32"):
        spqfmt.unpack(tmp_path / "m.spq", tmp_path / "m.gguf", as_=AS)


@pytest.mark.parametrize("kind", ["opt"])
def test_models_that_are_not_known(tiny_folder: Callable[[str], Path], tmp_path: Path, kind: str) -> None:
    spqfmt.pack(tiny_folder(kind), tmp_path / "m.spq", method="rtn")
    with pytest.raises(EncodeError, match=f"models of the type '{kind}' are not written as GGUF, only llama"):
        spqfmt.unpack(tmp_path / "m.spq", tmp_path / "m.gguf", as_=AS)


@pytest.mark.parametrize(
    ("kind", "edits", "why"),
    [
        ("llama", {"hidden_act": "relu"}, "computes llama with silu, not with relu"),
        ("qwen2", {"use_sliding_window": True}, "without the sliding window"),
        ("gemma2", {"query_pre_attn_scalar": 24}, "scales its queries by 16"),
        ("gemma3_text", {"layer_types": ["full_attention"] * 2}, "layers with a sliding window are others"),
        ("qwen3_moe", {"norm_topk_prob": False}, "with experts in all layers and norm_topk_prob alone"),
        ("smollm3", {"no_rope_layers": [1, 1, 1, 1]}, "layers without rotary embedding are others"),
        ("phi3", {"partial_rotary_factor": 0.5}, "turn all of a head's dimensions"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}},
            "rotary scaling of 'dynamic'",
        ),
        ("llama", {"rope_parameters": {"rope_type": "linear"}}, "config.json lacks 'factor'"),
    ],
)
def test_what_llama_cpp_computes_otherwise_is_refused(
    tmp_path: Path, kind: str, edits: dict[str, Any], why: str
) -> None:
    source = model_folder(tmp_path / "source", kind)
    config = source / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | edits))
    spqfmt.pack(source, tmp_path / "m.spq")
    with pytest.raises(EncodeError, match=why):
        spqfmt.unpack(tmp_path / "m.spq", tmp_path / "m.gguf", as_=AS)


def test_metadata(tmp_path: Path) -> None:
    """Within a sliding window all attention is full: a context of its length is computed as it should be."""
    source = model_folder(tmp_path / "source", "mistral")
    spqfmt.pack(source, tmp_path / "m.spq")
    spqfmt.unpack(tmp_path / "m.spq", tmp_path / "m.gguf", as_=AS)
    _, kinds, said = written(tmp_path / "m.gguf")
    assert set(kinds.values()) == {"F32", "BF16"}
    due = {
        "general.architecture": "llama", "general.name": "m", "general.file_type": 32, "llama.context_length": 32,
        "llama.embedding_length": 64, "llama.block_count": 2, "llama.feed_forward_length": 128,
        "llama.attention.head_count": 4, "llama.attention.head_count_kv": 2, "llama.attention.key_length": 16,
        "llama.rope.dimension_count": 16, "llama.rope.freq_base": 10000.0, "llama.vocab_size": 264,
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.bos_token_id": 256,
        "tokenizer.ggml.add_bos_token": False, "tokenizer.ggml.merges": [""],
    }  # fmt: skip
    assert {key: said.get(key) for key in due} == due


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
         "original_max_position_embeddings": 64},
    ],
    ids=lambda rope: str(rope["rope_type"]),
)  # fmt: skip
def test_rotary_scaling_comes_back(tmp_path: Path, rope: dict[str, Any]) -> None:
    source = model_folder(tmp_path / "source", "llama", torch.float32, head_dim=64)
    config = json.loads((source / "config.json").read_text())
    config["rope_parameters"] = {"rope_theta": 5e5, **rope}
    (source / "config.json").write_text(json.dumps(config))
    spqfmt.pack(source, tmp_path / "m.spq")
    spqfmt.unpack(tmp_path / "m.spq", tmp_path / "m.gguf", as_=AS)
    check(tmp_path / "m.spq", tmp_path / "m.gguf")
    spqfmt.pack(tmp_path / "m.gguf", tmp_path / "again.spq")
    models = [spqfmt.load_model(tmp_path / name, packed=False)[0] for name in ("m.spq", "again.spq")]
    inputs = torch.arange(60)[None]
    with torch.inference_mode():
        logits, again = (model(inputs).logits for model in models)
    assert torch.allclose(logits, again, rtol=1e-4, atol=1e-5)


def test_a_gguf_is_given_back_as_it_was(tmp_path: Path) -> None:
    """Of a model that was a GGUF file and still is one; quantized anew, it is written from its config."""
    tiny_gguf.write("llama", tmp_path / "m.gguf", quantize=gguf.GGMLQuantizationType.Q4_1)
    spqfmt.pack(tmp_path / "m.gguf", tmp_path / "m.spq")
    report = spqfmt.unpack(tmp_path / "m.spq", tmp_path / "again.gguf", as_=AS)
    assert report.identical
    assert (tmp_path / "again.gguf").read_bytes() == (tmp_path / "m.gguf").read_bytes()
    spqfmt.pack(tmp_path / "m.gguf", tmp_path / "rtn.spq", dequantize=True, **GROUPS)
    assert not spqfmt.unpack(tmp_path / "rtn.spq", tmp_path / "rtn.gguf", as_=AS).identical
    kinds = check(tmp_path / "rtn.spq", tmp_path / "rtn.gguf")
    assert kinds[AT] in {"Q4_1", "Q5_0"}


@pytest.mark.parametrize("name", tiny_gguf.NAMES)
def test_files_that_llama_cpp_computed_with_are_made_again(tmp_path: Path, name: str) -> None:
    """Of the models whose logits by llama.cpp are frozen (test_gguf.py): the same tensors, and the same keys."""
    tiny_gguf.write(name, tmp_path / "source.gguf")
    spqfmt.pack(tmp_path / "source.gguf", tmp_path / "m.spq", no_identity=True)
    assert not spqfmt.unpack(tmp_path / "m.spq", tmp_path / "m.gguf", as_=AS).identical
    (due, kinds, said), (found, again, keys) = (
        written(tmp_path / file) for file in ("source.gguf", "m.gguf")
    )
    # A head that is the embedding, byte for byte, is no tensor of its own: llama.cpp takes the embedding then.
    assert due.keys() - found.keys() <= ({"output.weight"} if name == "gpt2" else set())
    for at, value in found.items():
        # A norm less one is rounded, and so are factors that come of a rule's three numbers.
        is_rounded = at == "rope_freqs.weight" or ("gemma" in name and "norm" in at)
        close = np.allclose(value, due[at], rtol=2e-6, atol=0)
        assert close if is_rounded else np.array_equal(value, due[at]), at
        assert again[at] == kinds[at]
    # Only yarn computes with the length of the original context.
    unused = {"llama.rope.scaling.original_context_length"} if name == "llama_linear" else set()
    of_model = {
        key: value for key, value in said.items() if key.startswith(said["general.architecture"] + ".")
    }
    for key in of_model.keys() - unused:
        assert keys[key] == (
            pytest.approx(of_model[key]) if isinstance(of_model[key], float) else of_model[key]
        ), key


def test_buffers_of_old_checkpoints_are_left_out(tmp_path: Path) -> None:
    source = model_folder(tmp_path / "source", "qwen2")
    arrays = load_file(source / "model.safetensors")
    arrays["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    save_file(arrays, source / "model.safetensors")
    spqfmt.pack(source, tmp_path / "m.spq")
    spqfmt.unpack(tmp_path / "m.spq", tmp_path / "m.gguf", as_=AS)
    assert not any("rot" in name for name in written(tmp_path / "m.gguf")[0])
    arrays["model.layers.0.more.weight"] = torch.ones(8, 8)
    save_file(arrays, source / "model.safetensors")
    spqfmt.pack(source, tmp_path / "m.spq", force=True)
    with pytest.raises(EncodeError, match=r"tensor 'model.layers.0.more.weight': it is no part of a qwen2"):
        spqfmt.unpack(tmp_path / "m.spq", tmp_path / "other.gguf", as_=AS)


def test_places_that_no_file_goes_to(tmp_path: Path) -> None:
    source, path = model_folder(tmp_path / "source", "qwen2"), tmp_path / "m.spq"
    spqfmt.pack(source, path)
    with pytest.raises(OptionError, match=r"ends in \.gguf"):
        spqfmt.unpack(path, tmp_path / "out", as_=AS)
    (tmp_path / "m.gguf").write_text("mine")
    with pytest.raises(FileExistsError, match="is there already"):
        spqfmt.unpack(path, tmp_path / "m.gguf", as_=AS)
    assert (tmp_path / "m.gguf").read_text() == "mine"
    assert not list(tmp_path.glob(".*"))
