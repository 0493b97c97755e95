"""Nothing that a file says of itself leads transformers to code, to a hub or to other files."""

import json
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers
from transformers.integrations import hub_kernels
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import spqfmt
from spqfmt.errors import SpqError, UnsupportedError
from spqfmt.loaders import load_model
from spqfmt.models.code_settings import CODE
from spqfmt.models.harmless import harmless

INPUTS = torch.tensor([[(i * 37 + 11) % 256 for i in range(40)]])
KERNEL = "owner/repo@rev:fn"
EVIL = {"AutoConfig": "owner/repo--evil.C", "AutoModelForCausalLM": "owner/repo--evil.M"}

# Left out, and the model computes what it does without them.
CONFIGS: dict[str, dict[str, Any]] = {
    "attention of a hub": {"attn_implementation": KERNEL},
    "attention by its other name": {"_attn_implementation": KERNEL},
    "attention by its inner name": {"_attn_implementation_internal": KERNEL},
    "attention by parts": {"attn_implementation": {"": KERNEL, "text_config": "eager"}},
    "attention for many requests": {"attn_implementation": f"paged|{KERNEL}"},
    "attention of a package": {"attn_implementation": "flash_attention_2"},
    "experts": {"experts_implementation": "deepgemm", "_experts_implementation": KERNEL},
    "modules": {"auto_map": EVIL, "custom_pipelines": {"text-generation": {"impl": "evil.P"}}},
    "kernels": {"use_kernels": True, "kernel_config": {"RMSNorm": KERNEL}},
    "another config": {"configuration_files": ["../../config.4.0.0.json"]},
    "a name": {"_name_or_path": "owner/repo", "name_or_path": "owner/repo"},
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a backbone": ({"model_type": "detr", "backbone": "resnet50", "use_timm_backbone": False}, "backbone"),
    "one below": ({"vision_config": {"backbone": "owner/repo", "use_pretrained_backbone": True}}, "backbone"),
    "one of timm": ({"model_type": "timm_backbone", "backbone": "hf_hub:owner/repo"}, "names a place"),
    "a folder": ({"model_type": "timm_wrapper", "architecture": "local-dir:/x"}, "names a place"),
    "weights of timm": ({"model_args": {"checkpoint_path": "/x.pth"}}, "checkpoint_path"),
    "a quantizer": ({"quantization_config": {"quant_method": "fp8"}}, "quantized by another format"),
}


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What is asked of a network or for a kernel: nothing, at the end of every test."""
    found: list[str] = []

    def refuse(*arguments: Any, **_: Any) -> Any:
        found.append(repr(arguments[:2]))
        raise OSError("no network here")

    for name in ("getaddrinfo", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(hub_kernels, "get_kernel", refuse)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    yield found
    assert found == []


@pytest.fixture
def llama(tmp_path: Path, tiny_folder: Callable[[str], Path]) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(tiny_folder("llama"), tmp_path / "llama"))


def configure(file: Path, values: dict[str, Any]) -> None:
    before = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(before | values))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        output: torch.Tensor = model(INPUTS).logits
    return output


def test_the_guard_sees_what_transformers_would_ask_for(asked: list[str]) -> None:
    """Without the list, this config asks a hub."""
    with pytest.raises(Exception, match=r"."):
        CONFIG_MAPPING["dpt"].from_dict({"backbone": "owner/repo"})
    assert asked
    asked.clear()


@pytest.mark.parametrize("case", CONFIGS)
def test_a_model_loads_as_without_what_leads_elsewhere(llama: Path, case: str) -> None:
    expected = logits(load_model(llama)[0])
    configure(llama / "config.json", CONFIGS[case])
    packed = llama.parent / "m.spq"
    spqfmt.pack(llama, packed)
    for path, options in ((llama, {}), (packed, {}), (packed, {"memory": "100MiB"})):
        model, tokenizer = load_model(path, **options)
        assert torch.equal(logits(model), expected)
        assert tokenizer is not None
        assert model.name_or_path == model.config.name_or_path == str(path.resolve())
        assert model.config._attn_implementation == "sdpa"
    folder = llama.parent / "packed"
    spqfmt.unpack(packed, folder, keep_packed=True)
    written = json.loads((folder / "config.json").read_bytes())
    before = json.loads((llama / "config.json").read_bytes())
    assert {key: before[key] for key in written} == written
    assert before.keys() - written.keys() <= CODE.keys()
    with tiny.quiet():
        for cls in (transformers.AutoModelForCausalLM, transformers.LlamaForCausalLM):
            model = cls.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            assert torch.equal(logits(model), expected)
            assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("name", ["eager", "sdpa"])
def test_what_torch_computes_itself_stays(llama: Path, name: str) -> None:
    configure(llama / "config.json", {"attn_implementation": name})
    assert load_model(llama)[0].config._attn_implementation == name


def test_the_callers_own_choice_is_not_the_files(llama: Path) -> None:
    configure(llama / "config.json", {"attn_implementation": KERNEL})
    spqfmt.pack(llama, llama.parent / "m.spq")
    spqfmt.unpack(llama.parent / "m.spq", llama.parent / "packed", keep_packed=True)
    with tiny.quiet():
        model = transformers.AutoModelForCausalLM.from_pretrained(
            llama.parent / "packed", attn_implementation="eager"
        )
    assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_left_out_is_refused(llama: Path, case: str) -> None:
    settings, message = REFUSED[case]
    spqfmt.pack(llama, llama.parent / "good.spq")
    configure(llama / "config.json", settings)
    spqfmt.pack(llama, llama.parent / "m.spq")
    for path in (llama, llama.parent / "m.spq"):
        with pytest.raises(UnsupportedError, match=message) as caught:
            load_model(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(SpqError):
        spqfmt.pack(llama, llama.parent / "q.spq", method="gptq", bits=4, samples=2, seq_len=16)


def test_a_calibrated_pack_follows_nothing_either(llama: Path) -> None:
    options: dict[str, Any] = {"method": "gptq", "bits": 4, "samples": 2, "seq_len": 16}
    spqfmt.pack(llama, llama.parent / "clean.spq", **options)
    for settings in CONFIGS.values():
        configure(llama / "config.json", settings)
    spqfmt.pack(llama, llama.parent / "m.spq", **options)
    with spqfmt.open(llama.parent / "m.spq") as found, spqfmt.open(llama.parent / "clean.spq") as expected:
        assert all(torch.equal(found.read(name), expected.read(name)) for name in expected)


TOKENIZERS: dict[str, tuple[str, dict[str, Any]]] = {
    "paths": ("tokenizer_config.json", {"tokenizer_file": "/x", "vocab_file": "/x", "gguf_file": "x.gguf"}),
    "a repository": ("tokenizer_config.json", {"name_or_path": "owner/repo", "local_files_only": False}),
    "positions": ("tokenizer_config.json", {"init_inputs": ["/x"]}),
    "other versions": ("tokenizer_config.json", {"fast_tokenizer_files": ["../tokenizer.4.0.0.json"]}),
    "by the special tokens": (
        "special_tokens_map.json",
        {
            "gguf_file": "x.gguf",
            "name_or_path": "owner/repo",
            "local_files_only": False,
            "tokenizer_file": "",
        },
    ),
}


@pytest.mark.parametrize("case", TOKENIZERS)
def test_a_tokenizer_comes_from_the_file_alone(llama: Path, case: str) -> None:
    expected = load_model(llama)[1]("The quick brown fox")["input_ids"]
    name, settings = TOKENIZERS[case]
    configure(llama / name, settings)
    spqfmt.pack(llama, llama.parent / "m.spq")
    for path in (llama, llama.parent / "m.spq"):
        assert load_model(path)[1]("The quick brown fox")["input_ids"] == expected


def test_a_tokenizer_that_needs_code_is_refused(llama: Path) -> None:
    (llama / "evil.py").write_text("raise SystemExit('ran')")
    settings = {"auto_map": {"AutoTokenizer": ["evil.T", None]}, "tokenizer_class": "EvilTokenizer"}
    configure(llama / "tokenizer_config.json", settings)
    with pytest.raises(UnsupportedError, match=f"its tokenizer: The repository {llama} contains custom code"):
        load_model(llama)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("config.json", b"{"),
        ("config.json", b"[]"),
        ("config.json", b"\xff"),
        ("config.json", b'{"a": NaN,  "model_type": "llama"}'),
        ("tokenizer.json", b'{"auto_map": 1}'),
        ("vocab.json", b'{"backbone": 1, "auto_map": 2}'),
        ("1_Pooling/config.json", b'{"auto_map": 1}'),
        ("tokenizer_config.json", b'{"chat_template": "x", "fast_tokenizer_files": ["tokenizer.4.json"]}'),
        ("special_tokens_map.json", b'{"bos_token": "a", "additional_special_tokens": ["b"]}'),
    ],
)
def test_everything_else_stays_byte_for_byte(name: str, data: bytes) -> None:
    assert harmless(name, data) is data


def test_what_is_left_out_is_left_out_at_every_depth() -> None:
    config = {
        "transformers_weights": "../x",
        "text_config": {"auto_map": EVIL, "a": [{"attn_implementation": KERNEL, "b": 1}]},
        "c": 2,
    }
    found = json.loads(harmless("config.json", json.dumps(config).encode()))
    assert found == {"text_config": {"a": [{"b": 1}]}, "c": 2}
    options = {"mecab_kwargs": {"mecab_dic": "ipadic", "mecab_option": "-r /x"}, "word_dir": "/x"}
    found = json.loads(harmless("tokenizer_config.json", json.dumps(options).encode()))
    assert found == {"mecab_kwargs": {"mecab_dic": "ipadic"}}


def test_names_in_capitals_are_seen_too() -> None:
    assert json.loads(harmless("Config.JSON", b'{"auto_map": 1, "a": 2}')) == {"a": 2}


def test_settings_nested_without_end_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="nested deeper"):
        harmless("config.json", b'{"a":' * 100_000)
