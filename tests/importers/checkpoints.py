"""Tiny checkpoints of every shape that people have, each made in a folder: what is packed is what the maker returns."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import packed_words
import tiny
import tiny_gguf
import torch
import transformers
from coded import write_model
from safetensors.torch import load_file, save_file

Maker = Callable[[Path], Path]
_SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "vocab_size": 90,
}
_TOWER = {key: value for key, value in _SMALL.items() if key != "vocab_size"}


def normal(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def write_json(file: Path, value: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value, indent=3))


def weights(n: int = 2) -> dict[str, torch.Tensor]:
    return {f"model.layers.{k}.mlp.up_proj.weight": normal(24, 16 + k) for k in range(n)}


def by_tiny(name: str, **options: Any) -> Maker:
    def make(folder: Path) -> Path:
        tiny.build(name, folder, **options)
        return folder

    return make


def by_transformers(
    model_class: str, config_class: str, dtype: torch.dtype = torch.bfloat16, **options: Any
) -> Maker:
    def make(folder: Path) -> Path:
        config = getattr(transformers, config_class)(**options)
        with torch.random.fork_rng(devices=[]), tiny.quiet():
            torch.manual_seed(0)
            getattr(transformers, model_class)(config).to(dtype).save_pretrained(folder)
        return folder

    return make


def many_dtypes(folder: Path) -> Path:
    odd = {
        name: torch.arange(6).to(getattr(torch, name))
        for name in ("int8", "int16", "uint16", "uint32", "uint64")
    }
    odd |= {
        name: torch.ones(5).to(getattr(torch, name)) for name in ("float8_e4m3fn", "float8_e5m2", "float64")
    }
    odd |= {"flags": torch.tensor([True, False]), "scalar": torch.tensor(3), "none": torch.empty(0, 4)}
    odd |= {"complex": torch.tensor([1 + 2j, -0.0 - 1j], dtype=torch.complex64)}
    folder.mkdir()
    save_file(odd, folder / "model.safetensors")
    write_json(folder / "config.json", {})
    return folder


def odd_header(folder: Path) -> Path:
    """Tensors in another order than names have, white space, escapes and metadata in the header."""
    folder.mkdir()
    first, second = (
        normal(3, 4).view(torch.uint8).numpy().tobytes(),
        normal(5).view(torch.uint8).numpy().tobytes(),
    )
    entries = {
        "z.weight": {"data_offsets": [0, len(first)], "shape": [3, 4], "dtype": "BF16"},
        "__metadata__": {"format": "pt", "license": "mit", "\u00fc": "\u2028"},
        "a.weight": {"shape": [5], "dtype": "BF16", "data_offsets": [len(first), len(first) + len(second)]},
    }
    header = json.dumps(entries, indent=1).encode()
    header += b" " * (-len(header) % 8 + 8)
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + first + second)
    write_json(folder / "config.json", {"architectures": ["X"]})
    return folder


def quantized(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Maker:
    """The arrays that another quantizer keeps, as they are."""

    def make(folder: Path) -> Path:
        folder.mkdir()
        save_file({name: value.clone() for name, value in tensors.items()}, folder / "model.safetensors")
        write_json(
            folder / "config.json", {"architectures": ["LlamaForCausalLM"], "quantization_config": config}
        )
        return folder

    return make


_AT = "model.layers.0.mlp.up_proj"
_WORDS = torch.arange(64, dtype=torch.int32).mul(2654435761 % 2**31).reshape(8, 8)
_BYTES = torch.arange(128, dtype=torch.uint8).reshape(16, 8)
FP8 = quantized(
    {"quant_method": "fp8", "weight_block_size": [128, 128]},
    {f"{_AT}.weight": normal(64, 64).to(torch.float8_e4m3fn), f"{_AT}.weight_scale_inv": torch.ones(1, 1)},
)
GPTQ = quantized(
    {"quant_method": "gptq", "bits": 4, "group_size": 32},
    {
        f"{_AT}.qweight": _WORDS,
        f"{_AT}.qzeros": _WORDS[:2, :1],
        f"{_AT}.scales": normal(2, 8, dtype=torch.float16),
        f"{_AT}.g_idx": torch.arange(64, dtype=torch.int32) // 32,
    },
)
AWQ = quantized(
    {"quant_method": "awq", "bits": 4},
    {
        f"{_AT}.qweight": _WORDS,
        f"{_AT}.qzeros": _WORDS[:1],
        f"{_AT}.scales": normal(1, 64, dtype=torch.float16),
    },
)
GPTQ_OLD = quantized(
    {"quant_method": "gptq", "bits": 4, "group_size": 32},
    {
        f"{_AT}.qweight": _WORDS,
        f"{_AT}.qzeros": _WORDS[:2],
        f"{_AT}.scales": normal(2, 8, dtype=torch.float16),
    },
)


def with_order(module: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    groups = (torch.arange(weight.shape[1]) // 16).flip(0)
    scales, zeros, codes = packed_words.grid(weight, groups, 4, symmetric=False)
    return packed_words.gptq_arrays(module, codes, scales, zeros, bits=4, version=2, of_column=groups)


def awq(module: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    scales, zeros, codes = packed_words.grid(weight, torch.arange(weight.shape[1]) // 16, 4, symmetric=False)
    return packed_words.awq_arrays(module, codes, scales, zeros)


def model_of(config: dict[str, Any], quantize: Any) -> Maker:
    def make(folder: Path) -> Path:
        write_model(folder, {"group_size": 16, "bits": 4, **config}, quantize)
        return folder

    return make


BITSANDBYTES = quantized(
    {"quant_method": "bitsandbytes", "load_in_4bit": True},
    {
        f"{_AT}.weight": _BYTES.reshape(-1, 1),
        f"{_AT}.weight.absmax": _BYTES[0],
        f"{_AT}.weight.quant_map": torch.ones(16),
    },
)
MXFP4 = quantized(
    {"quant_method": "mxfp4"},
    {"model.layers.0.mlp.experts.gate_up_proj_blocks": _BYTES.reshape(2, 4, 16), f"{_AT}_scales": _BYTES[:2]},
)


def without_config(folder: Path) -> Path:
    folder.mkdir()
    save_file(weights(), folder / "my_weights.safetensors")
    return folder


def single_file(folder: Path) -> Path:
    folder.mkdir()
    save_file(weights(), folder / "style.safetensors", metadata={"ss_network_dim": "8"})
    return folder / "style.safetensors"


def adapter(save: Callable[[dict[str, torch.Tensor], Path], object], name: str) -> Maker:
    def make(folder: Path) -> Path:
        folder.mkdir()
        at = "base_model.model.model.layers.0.self_attn.q_proj"
        save({f"{at}.lora_A.weight": normal(4, 32), f"{at}.lora_B.weight": normal(32, 4)}, folder / name)
        write_json(
            folder / "adapter_config.json", {"peft_type": "LORA", "base_model_name_or_path": "owner/base"}
        )
        (folder / "README.md").write_text("---\nbase_model: owner/base\n---\n")
        return folder

    return make


def pipeline(save: Callable[[dict[str, torch.Tensor], Path], object], suffix: str) -> Maker:
    """As diffusers lays one out: two models of its own, one of transformers, a tokenizer and a scheduler."""

    def make(folder: Path) -> Path:
        by_tiny("llama")(folder / "text_encoder")
        (folder / "tokenizer").mkdir()
        for file in list((folder / "text_encoder").glob("tokenizer*")):
            shutil.move(file, folder / "tokenizer" / file.name)
        for part in ("unet", "vae"):
            write_json(folder / part / "config.json", {"_class_name": "SomeModel"})
            tensors = {"conv_in.weight": normal(8, 4, 3, 3), f"{part}.bias": normal(8)}
            save(tensors, folder / part / f"diffusion_pytorch_model.{suffix}")
        write_json(folder / "scheduler" / "scheduler_config.json", {"_class_name": "SomeScheduler"})
        parts = {part: ["diffusers", "SomeModel"] for part in ("unet", "vae", "scheduler")}
        parts |= {"text_encoder": ["transformers", "LlamaForCausalLM"], "tokenizer": ["transformers", "X"]}
        write_json(
            folder / "model_index.json", {"_class_name": "SomePipeline", "safety_checker": None, **parts}
        )
        return folder

    return make


def pipeline_part_in_shards(folder: Path) -> Path:
    names = [f"diffusion_pytorch_model-{k}-of-00002.safetensors" for k in ("00001", "00002")]
    folder.mkdir()
    for name, (key, value) in zip(names, weights().items(), strict=True):
        save_file({key: value}, folder / name)
    index = {"metadata": {}, "weight_map": dict(zip(weights(), names, strict=True))}
    write_json(folder / "diffusion_pytorch_model.safetensors.index.json", index)
    write_json(folder / "config.json", {"_class_name": "SomeTransformer"})
    return folder


def sentence_transformers(folder: Path) -> Path:
    by_transformers("BertModel", "BertConfig", torch.float32, **_SMALL)(folder)
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense")]
    write_json(
        folder / "modules.json", [{"idx": k, "path": p, "type": t} for k, (p, t) in enumerate(modules)]
    )
    write_json(folder / "1_Pooling" / "config.json", {"pooling_mode_mean_tokens": True})
    write_json(folder / "2_Dense" / "config.json", {"in_features": 32, "out_features": 8})
    save_file({"linear.weight": normal(8, 32, dtype=torch.float32)}, folder / "2_Dense" / "model.safetensors")
    return folder


def hub_snapshot(folder: Path) -> Path:
    """Blobs by their hash, and links to them."""
    made = by_tiny("llama")(folder / "made")
    blobs, snapshot = folder / "models--o--m" / "blobs", folder / "models--o--m" / "snapshots" / "c0ffee"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(made.iterdir())):
        shutil.move(file, blobs / f"{number:064x}")
        (snapshot / file.name).symlink_to(Path("../../blobs") / f"{number:064x}")
    return snapshot


def torch_folder(folder: Path, *, shards: bool = False) -> Path:
    """pytorch_model.bin, as transformers wrote it before it wrote safetensors; the head shares the embedding."""
    by_tiny("llama_tied")(folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    if not shards:
        torch.save(tensors, folder / "pytorch_model.bin")
        return folder
    names = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
    where = {key: names[number % 2] for number, key in enumerate(tensors)}
    for name in names:
        torch.save({key: value for key, value in tensors.items() if where[key] == name}, folder / name)
    write_json(folder / "pytorch_model.bin.index.json", {"metadata": {}, "weight_map": where})
    return folder


def training_state(folder: Path) -> Path:
    """Dictionaries and lists of tensors, views, one turned, one that shares its storage."""
    folder.mkdir()
    first = normal(6, 8)
    state = {"model": {"a": first, "again": first, "rows": first[2:4], "turned": normal(4, 3).t()}}
    state |= {"optimizer": [torch.tensor(3), normal(5, dtype=torch.float64)], "lr": 1e-3, "name": "run"}
    torch.save(state, folder / "last.pt")
    return folder / "last.pt"


def with_all_that_lies_beside(folder: Path) -> Path:
    by_tiny("llama", dtype=torch.bfloat16)(folder)
    (folder / "LICENSE").write_bytes(b"Do what\r\nyou want.\x00\xff")
    (folder / ".gitattributes").write_text("*.safetensors filter=lfs\n")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "figure.png").write_bytes(bytes(range(256)) * 3)
    (folder / "modeling_x.py").write_text("import os\n")
    (folder / "runs").mkdir()
    (folder / "runs" / "log.txt").write_text("step 1\n")
    return folder


def gguf_file(name: str, kind: str | None = None) -> Maker:
    """`kind` of blocks; those of 256 weights want a wider model."""

    def make(folder: Path) -> Path:
        folder.mkdir()
        quantize = None if kind is None else gguf.GGMLQuantizationType[kind]
        sizes = {"hidden": 256, "inner": 256} if kind and gguf.GGML_QUANT_SIZES[quantize][0] == 256 else {}
        tiny_gguf.write(name, folder / "m.gguf", quantize=quantize, **sizes)
        return folder / "m.gguf"

    return make


CHECKPOINTS: dict[str, Maker] = {
    "llama": by_tiny("llama", dtype=torch.bfloat16),
    "llama, tied, in shards": by_tiny("llama_tied", dtype=torch.float16, shard="60KB"),
    "gpt2": by_tiny("gpt2"),
    "opt": by_tiny("opt"),
    "mixtral": by_tiny("mixtral", dtype=torch.bfloat16),
    "gemma": by_tiny("gemma"),
    "bert, a classifier": by_transformers("BertForSequenceClassification", "BertConfig", **_SMALL),
    "t5": by_transformers("T5ForConditionalGeneration", "T5Config",
        d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=2, vocab_size=90),
    "whisper": by_transformers(
        "WhisperForConditionalGeneration", "WhisperConfig", d_model=32, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=48, decoder_ffn_dim=48, vocab_size=90,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    ),
    "vit": by_transformers("ViTForImageClassification", "ViTConfig", torch.float16,
        image_size=32, patch_size=8, **_TOWER),
    "mamba": by_transformers("MambaForCausalLM", "MambaConfig",
        hidden_size=32, state_size=4, num_hidden_layers=2, vocab_size=90),
    "wav2vec2": by_transformers(
        "Wav2Vec2Model", "Wav2Vec2Config", torch.float32, conv_dim=(16, 16), conv_stride=(5, 2), conv_kernel=(10, 3),
        num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2, **_SMALL,
    ),
    "dtypes of every kind": many_dtypes,
    "a header of its own": odd_header,
    "fp8 with scales": FP8,
    "gptq": GPTQ,
    "gptq, its shapes at odds": GPTQ_OLD,
    "a model of gptq with act-order": model_of({"quant_method": "gptq", "checkpoint_format": "gptq_v2"}, with_order),
    "awq": AWQ,
    "a model of awq": model_of({"quant_method": "awq", "version": "gemm"}, awq),
    "bitsandbytes": BITSANDBYTES,
    "mxfp4": MXFP4,
    "no config": without_config,
    "one file of safetensors": single_file,
    "adapter": adapter(save_file, "adapter_model.safetensors"),
    "adapter of torch": adapter(torch.save, "adapter_model.bin"),
    "pipeline of diffusers": pipeline(save_file, "safetensors"),
    "pipeline of torch files": pipeline(torch.save, "bin"),
    "model of diffusers, in shards": pipeline_part_in_shards,
    "sentence-transformers": sentence_transformers,
    "snapshot of a hub": hub_snapshot,
    "pytorch_model.bin": torch_folder,
    "pytorch_model.bin, in shards": lambda folder: torch_folder(folder, shards=True),
    "training state of torch": training_state,
    "all that lies beside": with_all_that_lies_beside,
    "gguf": gguf_file("qwen2"),
    "gguf of llama, whose rows are in another order": gguf_file("llama"),
    "gguf of gpt2, whose matrices are turned": gguf_file("gpt2"),
    "gguf of gemma, whose norms are another number": gguf_file("gemma"),
    "gguf of blocks": gguf_file("llama", "Q4_0"),
    "gguf of blocks with scales of scales": gguf_file("llama", "Q4_K"),
    "gguf of blocks, its matrices turned and its head there twice": gguf_file("gpt2", "MXFP4"),
    "gguf of blocks whose values stand in a book": gguf_file("qwen2", "IQ2_XXS"),
}  # fmt: skip
"""What comes back byte for byte, with --with-code where it is pickles or code."""
