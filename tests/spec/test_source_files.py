"""What was packed comes back as the same files, byte for byte; what does not is named."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import reference_decoder
import torch
from safetensors.torch import save_file
from spq_vectors.source_files import Part, Sources, safetensors
from spq_vectors.valid import dense
from spq_vectors.valid_sources_1_1 import with_sources

import spqfmt
from spqfmt import errors
from spqfmt.container.reader import Reader


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of each file below a folder, by its path in it."""
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model in two shards, with a header of its own, odd tensors and files of many kinds."""
    path = tmp_path / "model"
    (path / "figures").mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    embedding = normal(40, 16)
    first = {
        "model.embed_tokens.weight": embedding,
        "model.layers.0.mlp.up_proj.weight": normal(24, 16),
        "model.layers.0.count": torch.tensor(3),
        "model.layers.0.none": torch.empty(0, 3),
    }
    second = {
        "model.layers.1.mlp.up_proj.weight": normal(24, 16, dtype=torch.float16),
        "model.layers.1.flags": torch.tensor([True, False]),
        "lm_head.weight": embedding.clone(),
    }
    save_file(first, path / "model-00001-of-00002.safetensors", metadata={"format": "pt", "license": "mit"})
    save_file(second, path / "model-00002-of-00002.safetensors")
    weight_map = dict.fromkeys(first, "model-00001-of-00002.safetensors")
    weight_map |= dict.fromkeys(second, "model-00002-of-00002.safetensors")
    index = {"metadata": {"total_size": 7}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index, indent=3))
    config = {"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True}
    (path / "config.json").write_text(json.dumps(config))
    (path / "tokenizer.json").write_text('{"a":  1}\r\n')
    (path / "LICENSE").write_text("Do what you want.\n")
    (path / ".gitattributes").write_text("*.safetensors filter=lfs\n")
    (path / "README.md").write_text("# A model\n")
    (path / "figures" / "readme.txt").write_text("none\n")
    return path


def packed(folder: Path, **options: Any) -> Path:
    return spqfmt.pack(folder, folder.with_name("m.spq"), force=True, **options).files[-1]


@pytest.mark.parametrize(
    "options",
    [{}, {"codec": "zstd"}, {"partial": "every:2"}, {"partial": "speed:50%"}, {"shard_size": "4kB"}],
    ids=str,
)
def test_every_file_is_the_same(folder: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    path = packed(folder, **options)
    spqfmt.verify(path)
    report = spqfmt.unpack(path, tmp_path / "out")
    assert report.identical
    assert not report.left_out
    assert digests(tmp_path / "out") == digests(folder)
    assert set(report.written) == set(digests(folder))


def test_a_repacked_file_gives_them_too(folder: Path, tmp_path: Path) -> None:
    path = packed(folder, shard_size="4kB")
    for options in ({"codec": "raw"}, {"shard_size": "3kB"}, {"partial": "every:3", "shard_size": "1GB"}):
        path = spqfmt.repack(path, tmp_path / "again.spq", force=True, **options).files[-1]
        report = spqfmt.unpack(path, tmp_path / "out")
        assert report.identical
        assert digests(tmp_path / "out") == digests(folder)
        shutil.rmtree(tmp_path / "out")


def test_the_reference_decoder_makes_the_same_files(folder: Path) -> None:
    path = packed(folder)
    made = reference_decoder.decode(path.read_bytes()).files
    assert {name: hashlib.sha256(data).hexdigest() for name, data in made.items()} == digests(folder)


def test_as_dense_gives_plain_weights(folder: Path, tmp_path: Path) -> None:
    report = spqfmt.unpack(packed(folder), tmp_path / "out", as_="dense")
    assert not report.identical
    assert (tmp_path / "out" / "model.safetensors").exists()
    assert not (tmp_path / "out" / "source.literals").exists()


def test_what_stays_behind_is_named(folder: Path, tmp_path: Path) -> None:
    (folder / "modeling.py").write_text("import os\n")
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02.")
    (folder / "Makefile").write_text("all:\n")
    (folder / "sub").mkdir()
    (folder / "sub" / ".env").write_text("A=1\n")
    path = packed(folder)
    report = spqfmt.unpack(path, tmp_path / "out")
    assert report.identical
    assert set(report.left_out) == {"modeling.py", "pytorch_model.bin", "Makefile", "sub/.env"}
    kept = {name: digest for name, digest in digests(folder).items() if name not in report.left_out}
    assert digests(tmp_path / "out") == kept
    report = spqfmt.unpack(path, tmp_path / "with_code", with_code=True)
    assert set(report.left_out) == {"pytorch_model.bin", "sub/.env"}


def test_quantized_or_without_identity_gives_plain_weights(folder: Path, tmp_path: Path) -> None:
    for number, options in enumerate(({"method": "rtn", "bits": 8}, {"no_identity": True})):
        path = packed(folder, **options)
        assert not spqfmt.unpack(path, tmp_path / f"out{number}").identical
        with pytest.raises(errors.OptionError, match="cannot give back the files of its source"):
            spqfmt.unpack(path, tmp_path / "refused", as_="source")


def test_a_literal_that_is_another_is_found_and_nothing_is_written(folder: Path, tmp_path: Path) -> None:
    path = packed(folder)
    with Reader(path) as reader:
        literals = next(a for a in reader.index.assets if a.name == "source.literals")
        place = literals.stream.chunks[0].planes[0]
    data = bytearray(path.read_bytes())
    data[place.offset + 20] ^= 1
    path.write_bytes(data)
    with pytest.raises(errors.ChecksumError):
        spqfmt.unpack(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_settings_made_of_pieces_count_as_code(tmp_path: Path) -> None:
    """pack keeps them whole; whoever writes them so wants them to pass unseen."""
    sources = Sources()
    sources.add("model.safetensors", safetensors({"w": ("U8", [4], Part(0, bytes(4)))}))
    config = b'{"attn_implementation": "owner/repo@main:fn"}'
    sources.add("config.json", [config])
    path = tmp_path / "m.spq"
    path.write_bytes(with_sources([dense("w", [4], "u8", [0] * 4)], sources).build())
    report = spqfmt.unpack(path, tmp_path / "out")
    assert report.identical
    assert "--with-code" in report.left_out["config.json"]
    assert set(digests(tmp_path / "out")) == {"model.safetensors"}
    assert not spqfmt.unpack(path, tmp_path / "all", with_code=True).left_out
    assert (tmp_path / "all" / "config.json").read_bytes() == config
