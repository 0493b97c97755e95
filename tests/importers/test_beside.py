"""What lies beside the weights: all of it travels, or is named with the reason why it does not."""

import json
import os
from pathlib import Path

import pytest
import torch
import transformers
from click.testing import CliRunner
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import spqfmt
from spqfmt.cli.pack import pack
from spqfmt.cli.unpack import unpack
from spqfmt.importers import _beside, open_source
from spqfmt.loaders import load_model

TRAVEL = (
    "LICENSE", "NOTICE", "README.md", "USE_POLICY", "merges.txt", "source.spm", "target.spm", "bpe.codes", "vocab.bpe",
    "tokenizer.model", "tokenizer.model.v3", "tokenizer.json", "chat_template.jinja", "qwen.tiktoken", "a.vocab",
    "additional_chat_templates/tools.jinja", "1_Pooling/config.json", "modeling_x.py", "custom_generate/generate.py",
    "requirements.txt", "recipe.yaml", "deep/er/readme.md",
)  # fmt: skip
STAY = {
    "pytorch_model.bin": "other weights",
    "training_args.PT": "other weights",
    "optimizer.pkl": "other weights",
    "model.fp16.safetensors": "other weights",
    "tf_model.h5": "other weights",
    "pytorch_model.bin.index.json": "other weights",
    "adapter_model.safetensors": "an adapter",
    "adapter_config.json": "an adapter",
    "old.spq": "a packed model",
    "old.spq.index.json": "other weights",
    ".hidden": "hidden",
    ".gitattributes": "hidden",
    ".git/": "hidden",
    "a b.json": "a name that a file cannot hold",
    "\u00e9.txt": "a name that a file cannot hold",
    "Makefile": "no kind of file",
    "x.pyc": "no kind of file",
    "photo.png": "no kind of file",
    "aux.json": "no kind of file",
    "checkpoint-5/": "in a folder with weights of its own",
    "onnx/": "in a folder with weights of its own",
    "runs/": "no kind of file",
    "license": "its name is another's but for case",
    "1_Pooling/gone.json": "a link to a file that is missing",
    "pipe.json": "not a plain file",
    "2_Normalize/": "empty",
    "linked/": "a link to a folder",
}


def write(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x of " + name.encode())
    return folder


def model_folder(folder: Path, metadata: dict[str, str] | None = None) -> Path:
    folder.mkdir()
    save_file({"x.weight": torch.ones(2, 2)}, folder / "model.safetensors", metadata=metadata)
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture
def crowded(tmp_path: Path) -> Path:
    """A folder with one of everything."""
    folder = write(model_folder(tmp_path / "source"), *TRAVEL)
    files = [name for name in STAY if not name.endswith(("/", "gone.json", "pipe.json"))]
    write(folder, *files, ".git/config", "runs/events.out", "onnx/model.onnx", "onnx/config.json")
    write(folder, "checkpoint-5/config.json", "checkpoint-5/model.safetensors")
    (folder / "1_Pooling" / "gone.json").symlink_to("nowhere")
    (folder / "linked").symlink_to("deep")
    (folder / "2_Normalize").mkdir()
    os.mkfifo(folder / "pipe.json")
    return folder


def below(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_every_file_travels_or_is_named(crowded: Path) -> None:
    model = open_source(crowded)
    assert {asset.name: asset.data for asset in model.assets} == {
        "config.json": b"{}",
        **{name: b"x of " + name.encode() for name in TRAVEL},
    }
    assert model.left_out.keys() == STAY.keys()
    assert {
        name: reason for name, reason in model.left_out.items() if not reason.startswith(STAY[name])
    } == {}


def test_what_travels_comes_back(crowded: Path, tmp_path: Path) -> None:
    report = spqfmt.pack(crowded, tmp_path / "m.spq", no_identity=True)
    assert set(report.assets) == {"config.json", *TRAVEL}
    assert report.left_out.keys() == STAY.keys()
    assert report.to_json()["left_out"] == report.left_out
    written = spqfmt.unpack(tmp_path / "m.spq", tmp_path / "out", with_code=True)
    assert written.left_out == {}
    found = below(tmp_path / "out")
    assert found.pop("model.safetensors")
    assert found == {"config.json": b"{}", **{name: b"x of " + name.encode() for name in TRAVEL}}


def test_small_files_of_a_folder_with_weights_are_not_called_left_out(tmp_path: Path) -> None:
    """Those of `unpack` and those that are left out are all that there is."""
    folder = write(
        model_folder(tmp_path / "source"), "sub/config.json", "sub/model.safetensors", "runs/events.out"
    )
    result = CliRunner().invoke(pack, [str(folder), str(tmp_path / "m.spq")])
    assert result.exit_code == 0, result.output
    assert "left out, in a folder with weights of its own: sub/model.safetensors\n" in result.stderr
    assert result.stderr.count("left out") == 1
    report = spqfmt.pack(folder, tmp_path / "m.spq", force=True)
    assert report.left_out.keys() == {"sub/model.safetensors"}
    assert report.assets == ("config.json", "runs/events.out", "sub/config.json")
    spqfmt.unpack(tmp_path / "m.spq", tmp_path / "out", with_code=True)
    everything = below(folder)
    del everything["sub/model.safetensors"]
    assert below(tmp_path / "out") == everything


def test_code_comes_back_when_asked_for(crowded: Path, tmp_path: Path) -> None:
    code = {"modeling_x.py", "custom_generate/generate.py", "requirements.txt", "recipe.yaml"}
    spqfmt.pack(crowded, tmp_path / "m.spq", no_identity=True)
    report = spqfmt.unpack(tmp_path / "m.spq", tmp_path / "out")
    assert report.left_out.keys() == code
    assert code.isdisjoint(below(tmp_path / "out"))


def test_the_commands_name_what_stays(crowded: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(pack, [str(crowded), str(tmp_path / "m.spq"), "--no-identity"])
    assert result.exit_code == 0, result.output
    assert "files with it: 1_Pooling/config.json, LICENSE, NOTICE, README.md" in result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("left out, ")]
    for name, reason in STAY.items():
        assert any(name in line and line.startswith(f"left out, {reason}") for line in lines), name
    result = CliRunner().invoke(
        pack, [str(crowded), str(tmp_path / "m.spq"), "--no-identity", "--force", "--json"]
    )
    assert json.loads(result.stdout)["left_out"].keys() == STAY.keys()
    result = CliRunner().invoke(unpack, [str(tmp_path / "m.spq"), str(tmp_path / "out")])
    assert "left out, code, or not known to be harmless; written with --with-code alone: " in result.stderr
    result = CliRunner().invoke(unpack, [str(tmp_path / "m.spq"), str(tmp_path / "all"), "--with-code"])
    assert "left out" not in result.stderr
    assert (tmp_path / "all" / "modeling_x.py").is_file()


def test_what_is_large_gives_way_to_what_is_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = model_folder(tmp_path / "source")
    monkeypatch.setattr(_beside, "_MAX_FILE_BYTES", 1000)
    monkeypatch.setattr(_beside, "_MAX_TOTAL_BYTES", 2000)
    for name, size in (("a.csv", 1001), ("b.csv", 999), ("c.csv", 998), ("tokenizer.json", 900)):
        (folder / name).write_bytes(b"x" * size)
    model = open_source(folder)
    assert {asset.name for asset in model.assets} == {"config.json", "c.csv", "tokenizer.json"}
    assert set(model.left_out) == {"a.csv", "b.csv"}


def test_a_data_set_below_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(model_folder(tmp_path / "source"), *(f"data/{k}/x.json" for k in range(9)))
    monkeypatch.setattr(_beside, "_MAX_IN_FOLDER", 5)
    assert open_source(folder).left_out == {"data/": "a folder of more than 5 files"}


def test_what_a_header_says_of_the_model_comes_back(tmp_path: Path) -> None:
    facts = {"format": "pt", "license": "apache-2.0", "base_model": "owner/base \u00fc", "empty": ""}
    spqfmt.pack(model_folder(tmp_path / "source", facts), tmp_path / "m.spq")
    with spqfmt.open(tmp_path / "m.spq") as file:
        assert file.metadata["safetensors:license"] == "apache-2.0"
    spqfmt.repack(tmp_path / "m.spq", tmp_path / "again.spq", codec="zstd")
    spqfmt.unpack(tmp_path / "again.spq", tmp_path / "out")
    with safe_open(tmp_path / "out" / "model.safetensors", framework="pt") as found:
        assert found.metadata() == facts


def test_what_headers_contradict_is_named(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "source")
    (folder / "model.safetensors").unlink()
    for number, value in ((1, "mit"), (2, "gpl")):
        metadata = {"license": value, "format": "pt", "large": "x" * (1 << 16)}
        save_file(
            {f"t{number}": torch.ones(2)}, folder / f"model-0000{number}-of-00002.safetensors", metadata
        )
    model = open_source(folder)
    assert model.facts == {"license": "mit", "format": "pt"}
    assert model.left_out == {
        "model-00001-of-00002.safetensors: __metadata__ large": "a value of more than 64 KiB",
        "model-00002-of-00002.safetensors: __metadata__ large": "a value of more than 64 KiB",
        "model-00002-of-00002.safetensors: __metadata__ license": "an earlier file has another value",
    }


@pytest.fixture
def sentences(tmp_path: Path) -> Path:
    """A folder as sentence-transformers saves it, with a layer of its own beside the model."""
    folder = tmp_path / "sentences"
    config = transformers.BertConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48
    )
    transformers.BertModel(config).eval().save_pretrained(folder)
    parts = ("", "1_Pooling", "2_Dense", "3_Normalize")
    modules = [
        {
            "idx": k,
            "name": str(k),
            "path": path,
            "type": f"sentence_transformers.models.{path[2:] or 'Transformer'}",
        }
        for k, path in enumerate(parts)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    for name in ("1_Pooling/config.json", "2_Dense/config.json", "sentence_bert_config.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text('{"word_embedding_dimension": 32}')
    (folder / "config_sentence_transformers.json").write_text('{"similarity_fn_name": "cosine"}')
    save_file({"linear.weight": torch.randn(8, 32)}, folder / "2_Dense" / "model.safetensors")
    (folder / "3_Normalize").mkdir()
    return folder


def test_a_folder_of_sentence_transformers_comes_back_and_loads_packed(
    sentences: Path, tmp_path: Path
) -> None:
    report = spqfmt.pack(sentences, tmp_path / "m.spq")
    assert report.left_out == {"3_Normalize/": "empty"}
    spqfmt.unpack(tmp_path / "m.spq", tmp_path / "out")
    found, expected = below(tmp_path / "out"), below(sentences)
    weights = load_file(tmp_path / "out" / "model.safetensors")
    source = load_file(sentences / "model.safetensors")
    assert weights.keys() == source.keys()
    assert all(torch.equal(weights[name], source[name]) for name in source)
    del found["model.safetensors"], expected["model.safetensors"]
    assert found == expected
    tokens = torch.arange(10)[None]
    with torch.no_grad():
        states = transformers.BertModel.from_pretrained(sentences)(tokens)[0]
        for memory in (None, "10MiB"):
            model, _ = load_model(tmp_path / "m.spq", memory=memory)
            assert torch.equal(model(tokens)[0], states)
