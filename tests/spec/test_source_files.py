"""What was packed comes back as the same files, byte for byte; what does not is named."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import reference_decoder
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from spq_vectors.build import Stream
from spq_vectors.source_files import Part, Sources, safetensors
from spq_vectors.valid import dense
from spq_vectors.valid_sources_1_1 import with_sources

import spqfmt
from spqfmt import errors
from spqfmt.cli.pack import pack
from spqfmt.cli.unpack import unpack
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


OWN = {f"model-0000{k}-of-00002.safetensors" for k in (1, 2)} | {"model.safetensors.index.json"}


@pytest.mark.parametrize(
    ("options", "packing", "unpacking", "left_out"),
    [
        ({"method": "rtn", "bits": 8}, "quantized", "quantized", OWN | {".gitattributes"}),
        (
            {"no_identity": True},
            "packed with --no-identity",
            "the packed file does not say what the source's files were",
            set(),
        ),
    ],
    ids=["quantized", "no identity"],
)
def test_what_is_not_given_back_is_said_with_the_reason(
    folder: Path, tmp_path: Path, options: dict[str, Any], packing: str, unpacking: str, left_out: set[str]
) -> None:
    packed_report = spqfmt.pack(folder, tmp_path / "m.spq", **options)
    assert packed_report.not_given_back == dict.fromkeys(OWN, packing)
    assert packed_report.to_json()["not_given_back"] == packed_report.not_given_back
    report = spqfmt.unpack(tmp_path / "m.spq", tmp_path / "out")
    assert not report.identical
    assert report.made == {"model.safetensors": unpacking}
    assert set(report.left_out) == left_out
    told = CliRunner().invoke(unpack, [str(tmp_path / "m.spq"), str(tmp_path / "again")]).stderr
    assert f"not the source's, {unpacking}: model.safetensors" in told
    assert "1 not the source's" in told.splitlines()[0]
    if options.get("method"):
        with Reader(tmp_path / "m.spq") as reader:
            assert reader.index.sources is not None
            found = {file.name: file.sha256 for file in reader.index.sources.files}
        assert found == digests(folder)


ODD = ("Juggernaut XL v9.safetensors", "sd v1 (x)=2.safetensors", "größe 模型.safetensors")


@pytest.mark.parametrize("name", ODD)
def test_a_file_keeps_its_name(tmp_path: Path, name: str) -> None:
    file = tmp_path / "source" / name
    file.parent.mkdir()
    save_file({"a": torch.ones(8, 4)}, file)
    for source in (file, file.parent):
        assert not spqfmt.pack(source, tmp_path / "m.spq", force=True).not_given_back
        report = spqfmt.unpack(tmp_path / "m.spq", tmp_path / "out")
        assert report.identical
        assert report.written == (name,)
        assert digests(tmp_path / "out") == digests(file.parent)
        shutil.rmtree(tmp_path / "out")


def test_shards_with_names_of_any_kind_come_back(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for number, name in enumerate(ODD):
        save_file({f"t{number}": torch.ones(4)}, source / name)
    weight_map = {f"t{number}": name for number, name in enumerate(ODD)}
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    spqfmt.pack(source, tmp_path / "m.spq")
    assert spqfmt.unpack(tmp_path / "m.spq", tmp_path / "out").identical
    assert digests(tmp_path / "out") == digests(source)
    made = reference_decoder.decode((tmp_path / "m.spq").read_bytes()).files
    assert {name: hashlib.sha256(data).hexdigest() for name, data in made.items()} == digests(source)


def test_a_name_that_no_file_can_hold_is_named_and_takes_the_other_shards_with_it(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    names = ["a.safetensors", "b\\c.safetensors"]
    for number, name in enumerate(names):
        save_file({f"t{number}": torch.ones(4)}, source / name)
    weight_map = {f"t{number}": name for number, name in enumerate(names)}
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (source / "README.md").write_text("# A model\n")
    result = CliRunner().invoke(pack, [str(source), str(tmp_path / "m.spq")])
    assert "not given back by unpack, a name that a file cannot hold (FORMAT.md 7.2): b" in result.stderr
    assert (
        "without b\\c.safetensors it is no model: a.safetensors, model.safetensors.index.json"
        in result.stderr
    )
    report = spqfmt.unpack(tmp_path / "m.spq", tmp_path / "out")
    assert report.made == {"model.safetensors": "not all of the source's files of weights are written"}
    assert set(report.left_out) == {*names, "model.safetensors.index.json"}
    assert "its name" in report.left_out["b\\c.safetensors"]
    assert set(digests(tmp_path / "out")) == {"model.safetensors", "README.md"}


def test_a_hidden_file_is_held_and_not_written_and_both_commands_say_so(tmp_path: Path) -> None:
    save_file({"a": torch.ones(4)}, tmp_path / ".hidden.safetensors")
    why = "its name may not be written into a folder"
    report = spqfmt.pack(tmp_path / ".hidden.safetensors", tmp_path / "m.spq")
    assert report.not_given_back == {".hidden.safetensors": why}
    unpacked = spqfmt.unpack(tmp_path / "m.spq", tmp_path / "out")
    assert unpacked.left_out == {".hidden.safetensors": why}
    assert set(unpacked.made) == {"model.safetensors"}


def test_assets_that_are_none_of_the_files_or_others_than_these_are_named(tmp_path: Path) -> None:
    sources = Sources()
    sources.add("model.safetensors", safetensors({"w": ("U8", [2], Part(0, bytes(2)))}))
    sources.keep("LICENSE", b"as it was")
    held = [("LICENSE", Stream("asset", "u8", b"as it is")), ("README.md", Stream("asset", "u8", b"more"))]
    path = tmp_path / "m.spq"
    path.write_bytes(with_sources([dense("w", [2], "u8", [0, 0])], sources, held).build())
    report = spqfmt.unpack(path, tmp_path / "out")
    assert report.written == ("model.safetensors",)
    assert report.left_out == {
        "LICENSE": "in the packed file, but not as the source had it",
        "README.md": "in the packed file, but none of the source's files",
    }


def test_plain_weights_name_every_file_that_they_stand_for(tmp_path: Path) -> None:
    """Of files that need an unknown layout, and of those that were only recorded."""
    tensor = dense("w", [2], "u8", [0, 0])
    tensor.extra = {"origin": {"layout": "later", "version": 3}}
    sources = Sources()
    sources.add("a.gguf", [b"head", Part(0, bytes(2))])
    sources.add("b.gguf", [b"nothing"])
    sources.keep("2_Dense/pytorch_model.bin", b"left out")
    path = tmp_path / "m.spq"
    path.write_bytes(with_sources([tensor], sources).build())
    report = spqfmt.unpack(path, tmp_path / "out")
    assert report.made == {"model.safetensors": "not all of the source's files of weights are written"}
    assert report.left_out == {
        "a.gguf": "it needs the layout later version 3, which this spqfmt does not know",
        "b.gguf": "it speaks of other files than those that are written",
        "2_Dense/pytorch_model.bin": "not in the packed file",
    }
    with pytest.raises(errors.OptionError, match="not all of the source's files of weights are written"):
        spqfmt.unpack(path, tmp_path / "refused", as_="source")


def test_a_long_header_is_held_and_the_rest_of_a_torch_file_is_not(tmp_path: Path) -> None:
    """Literals of any header; but not elements that are stored in another order."""
    file = tmp_path / "long.safetensors"
    save_file({"a": torch.ones(4)}, file, metadata={"notes": "".join(map(str, range(2_000_000)))})
    assert not spqfmt.pack(file, tmp_path / "m.spq").not_given_back
    assert spqfmt.unpack(tmp_path / "m.spq", tmp_path / "out").identical
    torch.save({"a": torch.ones(1500, 2000).t(), "b": torch.ones(4)}, tmp_path / "turned.pt")
    report = spqfmt.pack(tmp_path / "turned.pt", tmp_path / "m.spq", force=True)
    assert list(report.not_given_back) == ["turned.pt"]
    assert "are no tensor's" in report.not_given_back["turned.pt"]
    report = spqfmt.unpack(tmp_path / "m.spq", tmp_path / "plain", with_code=True)
    assert set(report.left_out) == {"turned.pt"}


def test_as_source_is_refused_where_it_cannot_be(folder: Path, tmp_path: Path) -> None:
    for options in ({"method": "rtn", "bits": 8}, {"no_identity": True}):
        path = packed(folder, **options)
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


@pytest.mark.parametrize("in_tensor", [False, True])
def test_settings_made_of_pieces_are_looked_into(tmp_path: Path, in_tensor: bool) -> None:
    """pack keeps them as assets; whoever writes them so may want them to pass unseen, in a tensor above all."""
    sources = Sources()
    config = b'{"attn_implementation": "owner/repo@main:fn"}'
    sources.add("model.safetensors", safetensors({"w": ("U8", [len(config)], Part(0, config))}))
    sources.add("config.json", [Part(0, config) if in_tensor else config])
    path = tmp_path / "m.spq"
    path.write_bytes(with_sources([dense("w", [len(config)], "u8", list(config))], sources).build())
    report = spqfmt.unpack(path, tmp_path / "out")
    assert report.identical == (not in_tensor)
    if in_tensor:
        assert "--with-code" in report.left_out["config.json"]
        assert report.made == {"model.safetensors": "not all of the source's files of weights are written"}
        assert set(digests(tmp_path / "out")) == {"model.safetensors"}
    else:
        assert "attn_implementation" in report.changed["config.json"]
        assert json.loads((tmp_path / "out" / "config.json").read_bytes()) == {}
    assert not spqfmt.unpack(path, tmp_path / "all", with_code=True).left_out
    assert (tmp_path / "all" / "config.json").read_bytes() == config
