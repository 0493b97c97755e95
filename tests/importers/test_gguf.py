"""GGUF files: the imported model computes what llama.cpp computes, and broken files are refused in one line."""

import json
import re
import struct
import sys
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import tiny_gguf
import torch
import transformers

import spqfmt
from spqfmt.cli.main import main
from spqfmt.errors import ImporterError, UnsupportedError
from spqfmt.importers import SourceModel, open_source
from spqfmt.importers._gguf_reader import BLOCKS, read_header
from spqfmt.importers._source_file import SourceFile
from spqfmt.models.places import unmatched
from spqfmt.packing.options import pack_options
from spqfmt.packing.pack import pack_model
from spqfmt.progress import Silent

# Logits of the last tokens by llama.cpp (llama-cpp-python 0.3.36), from tools/models/tiny_gguf.py. No test writes it.
LOGITS = np.load(Path(__file__).parent / "data" / "llama_cpp_logits.npz")
# llama.cpp looks its GELU up in a table of float16: the models that use it agree to about three digits.
GELU = {"gemma", "gemma2", "gpt2"}


def write(tmp_path: Path, name: str = "llama", **options: object) -> Path:
    file = tmp_path / f"{name}.gguf"
    tiny_gguf.write(name, file, **options)  # type: ignore[arg-type]
    return file


def assets(model: SourceModel) -> dict[str, bytes]:
    return {asset.name: asset.data for asset in model.assets}


def config(model: SourceModel) -> dict[str, object]:
    parsed: dict[str, object] = json.loads(assets(model)["config.json"])
    return parsed


def build(model: SourceModel, folder: Path) -> transformers.PreTrainedModel:
    """The model by transformers alone, from what the importer gives."""
    for name, data in assets(model).items():
        (folder / name).write_bytes(data)
    built = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.from_pretrained(folder)
    ).eval()
    state = {tensor.name: tensor.load() for tensor in model.tensors}
    missing, unexpected = built.load_state_dict(state, strict=True)
    assert (missing, unexpected) == ([], [])
    return built


@pytest.mark.parametrize("name", tiny_gguf.NAMES)
def test_logits_are_those_of_llama_cpp(tmp_path: Path, name: str) -> None:
    model = build(open_source(write(tmp_path, name)), tmp_path)
    with torch.no_grad():
        logits = model(torch.tensor([tiny_gguf.tokens()])).logits[0, -tiny_gguf.N_KEPT :].numpy()
    tolerance = (1e-3 if name in GELU else 1e-5) * np.abs(LOGITS[name]).max()
    np.testing.assert_allclose(logits, LOGITS[name], rtol=0, atol=tolerance)
    assert LOGITS[name].std() > 0.5, "logits that hardly differ would prove nothing"


@pytest.mark.parametrize("name", tiny_gguf.NAMES)
def test_order_roles_and_ties(tmp_path: Path, name: str) -> None:
    model = open_source(write(tmp_path, name))
    segments = [tensor.segment for tensor in model.tensors]
    assert [s for i, s in enumerate(segments) if i == 0 or segments[i - 1] != s] == [
        "embed",
        *(("transformer.h.0", "transformer.h.1") if name == "gpt2" else ("model.layers.0", "model.layers.1")),
        "head",
    ]
    head = model.tensors[-1]
    tied = name in {"gpt2", "gemma", "gemma2", "llama_tied"}
    assert (head.name, head.tied_to is not None) == ("lm_head.weight", tied)
    assert config(model)["tie_word_embeddings"] == (head.tied_to is not None)
    linear = [tensor for tensor in model.tensors if tensor.role == "linear"]
    assert len(linear) == (8 if name == "gpt2" else 14)
    assert {tensor.transposed for tensor in linear} == {name == "gpt2"}


def test_float_tensors_keep_their_bits(tmp_path: Path) -> None:
    file = write(tmp_path, "qwen2")
    stored = {tensor.name: tensor.data for tensor in gguf.GGUFReader(file).tensors}
    loaded = {tensor.name: tensor for tensor in open_source(file).tensors}
    found = loaded["model.layers.1.mlp.down_proj.weight"]
    assert found.dtype == "f32"
    assert found.load().numpy().tobytes() == stored["blk.1.ffn_down.weight"].tobytes()


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "BF16", "F16"])
def test_blocks_are_rounded_once_from_their_exact_values(tmp_path: Path, kind: str) -> None:
    file = write(tmp_path, "qwen2", quantize=gguf.GGMLQuantizationType[kind])
    reader = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    stored = reader["blk.0.ffn_up.weight"]
    exact = torch.from_numpy(gguf.quants.dequantize(stored.data, stored.tensor_type))
    tensor = next(t for t in open_source(file).tensors if t.name == "model.layers.0.mlp.up_proj.weight")
    dtype = torch.bfloat16 if kind == "BF16" else torch.float16
    assert tensor.dtype == ("bf16" if kind == "BF16" else "f16")
    assert torch.equal(tensor.load(), exact.to(dtype))
    assert config(open_source(file))["dtype"] == ("bfloat16" if kind == "BF16" else "float16")


def test_mxfp4_is_exact_in_bf16(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    tiny_gguf.write("qwen2", file, quantize=gguf.GGMLQuantizationType.MXFP4)
    stored = next(t for t in gguf.GGUFReader(file).tensors if t.name == "blk.0.ffn_up.weight")
    exact = torch.from_numpy(gguf.quants.dequantize(stored.data, stored.tensor_type))
    tensor = next(t for t in open_source(file).tensors if t.name == "model.layers.0.mlp.up_proj.weight")
    assert tensor.dtype == "bf16"
    assert torch.equal(tensor.load().float(), exact)


def test_values_beyond_float16_are_refused_not_clipped(tmp_path: Path) -> None:
    file = write(tmp_path, "qwen2", quantize=gguf.GGMLQuantizationType.Q8_0)
    header = next(t for t in read_header(SourceFile(file)).tensors if t.name == "blk.0.ffn_up.weight")
    data = bytearray(file.read_bytes())
    data[header.offset : header.offset + 2] = np.float16(60000).tobytes()  # the first block's scale
    data[header.offset + 2] = 100
    file.write_bytes(data)
    tensor = next(t for t in open_source(file).tensors if t.name == "model.layers.0.mlp.up_proj.weight")
    with pytest.raises(ImporterError, match=r"tensor blk.0.ffn_up.weight has values that f16 cannot hold"):
        tensor.load()


def test_block_sizes_are_those_of_the_gguf_package() -> None:
    for kind, size in gguf.GGML_QUANT_SIZES.items():
        assert BLOCKS.get(int(kind), size) == size, kind


def test_metadata_is_read_as_the_gguf_package_reads_it(tmp_path: Path) -> None:
    def edit(writer: gguf.GGUFWriter) -> None:
        writer.add_array("x.numbers", [1, 2, 3])
        writer.add_array("x.words", ["a", "\u00e9", ""])
        writer.add_float64("x.pi", 3.141592653589793)
        writer.add_bool("x.yes", True)
        writer.add_int16("x.minus", -5)

    file = write(tmp_path, edit=edit)
    reader = gguf.GGUFReader(file)
    header = read_header(SourceFile(file))
    for key, value in header.metadata.items():
        assert value == pytest.approx(reader.fields[key].contents()), key
    assert [(t.name, t.offset, t.n_bytes) for t in header.tensors] == [
        (t.name, t.data_offset, t.n_bytes) for t in reader.tensors
    ]


def vocabulary(writer: gguf.GGUFWriter) -> None:
    """A byte-level vocabulary without merges."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([f"t{i}" for i in range(tiny_gguf.VOCABULARY)])
    writer.add_eos_token_id(259)


def refuse(file: Path, message: str) -> None:
    with pytest.raises(ImporterError, match=re.escape(message)) as caught:
        open_source(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def rwkv(folder: Path, architecture: str = "rwkv6", **parts: int) -> Path:
    """A model that nobody here knows: matrices in blocks, experts, a state, a type that ggml may add one day."""
    file = folder / "x.gguf"
    writer = gguf.GGUFWriter(file, architecture, **parts)
    noise = np.random.default_rng(3).standard_normal((4, 64, 64)).astype(np.float32)
    kind = gguf.GGMLQuantizationType.Q4_0
    writer.add_tensor("token_embd.weight", noise[0])
    writer.add_tensor("blk.0.time_mix_key.weight", gguf.quants.quantize(noise[1], kind), raw_dtype=kind)
    writer.add_tensor("blk.0.ffn_up_exps.weight", gguf.quants.quantize(noise, kind), raw_dtype=kind)
    writer.add_tensor("blk.0.time_mix_lerp_fused.weight", noise[:, :1, :1])
    writer.add_tensor("output.weight", gguf.quants.quantize(noise[2], kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def comes_back(source: Path, folder: Path) -> spqfmt.PackReport:
    """Pack, verify, unpack; the report."""
    folder.mkdir(exist_ok=True)
    report = spqfmt.pack(source, folder / "m.spq")
    spqfmt.verify(folder / "m.spq", content=True)
    assert spqfmt.unpack(folder / "m.spq", folder / "out").identical
    written = {file.name: file.read_bytes() for file in (folder / "out").iterdir()}
    assert written[source.name] == source.read_bytes()
    return report


def test_an_architecture_that_nobody_knows_is_packed_and_given_back(tmp_path: Path) -> None:
    source = rwkv(tmp_path)
    report = comes_back(source, tmp_path)
    why = "GGUF architecture 'rwkv6' is not known: its tensors have ggml's names, and no model is loaded"
    assert report.left_out == {"config.json": why}
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(source).tensors}
    with spqfmt.open(tmp_path / "m.spq") as file:
        assert set(file) == set(stored)
        assert file["blk.0.ffn_up_exps.weight"].shape == (4, 64, 64)
        for name in ("blk.0.ffn_up_exps.weight", "output.weight"):
            exact = gguf.quants.dequantize(stored[name].data, stored[name].tensor_type)
            assert file[name].info.scheme == "grouped"
            assert torch.equal(file.read(name), torch.from_numpy(exact).reshape(file[name].shape).half())
    with pytest.raises(UnsupportedError, match=re.escape(f"m.spq: {why}")):
        spqfmt.load_model(tmp_path / "m.spq")
    with pytest.raises(ImporterError, match=re.escape(f"{source}: {why}")):
        spqfmt.load_model(source)


# What transformers reads of GGUF, or gguf names, and no small model here shows.
@pytest.mark.parametrize("name", ["deci", "t5encoder"])
def test_an_architecture_that_does_not_run_is_refused_by_name(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    comes_back(rwkv(tmp_path, name), tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["run", str(tmp_path / "m.spq"), "--prompt", "a"])
    assert ended.value.code == 1
    [line] = capsys.readouterr().err.splitlines()
    assert f"m.spq: GGUF architecture '{name}' is not known: " in line


# Those that need biases are held against transformers' class, which takes seconds to import.
@pytest.mark.parametrize("name", tiny_gguf.NAMES)
def test_a_file_with_all_tensors_of_its_class_is_known_to_have_them(tmp_path: Path, name: str) -> None:
    model = open_source(write(tmp_path, name))
    assert model.is_complete == (name not in {"gpt2", "qwen2"})
    assert unmatched(model) == ((), ())


def test_a_file_with_a_bias_is_not_known_to_have_all(tmp_path: Path) -> None:
    """Its class may have more of them."""
    source = tmp_path / "m.gguf"
    bias = np.zeros(64, np.float32)
    tiny_gguf.write("llama", source, edit=lambda writer: writer.add_tensor("blk.1.attn_q.bias", bias))
    model = open_source(source)
    assert not model.left_out.get("config.json")
    assert not model.is_complete


def test_a_reason_in_a_file_is_one_short_line(tmp_path: Path) -> None:
    source = open_source(rwkv(tmp_path))
    told = replace(source, no_model="a\nb\x1b " + 500 * "c")
    pack_model(told, tmp_path / "m.spq", pack_options(), force=False, progress=Silent())
    with pytest.raises(UnsupportedError) as caught:
        spqfmt.load_model(tmp_path / "m.spq")
    assert len(str(caught.value)) < len(str(tmp_path)) + 320
    assert "a b" in str(caught.value)


def test_a_tensor_that_the_architecture_does_not_have_leaves_all_as_they_are(tmp_path: Path) -> None:
    kind = gguf.GGMLQuantizationType.Q8_0
    noise = np.random.default_rng(3).standard_normal((2, 64, 64)).astype(np.float32)
    experts = gguf.quants.quantize(noise, kind)
    source = write(
        tmp_path,
        quantize=kind,
        edit=lambda writer: writer.add_tensor("blk.0.ffn_gate_exps.weight", experts, raw_dtype=kind),
    )
    report = comes_back(source, tmp_path)
    [why] = report.left_out.values()
    assert why.startswith("tensor blk.0.ffn_gate_exps.weight is not part of LlamaForCausalLM as known here: ")
    with spqfmt.open(tmp_path / "m.spq") as file:
        assert "blk.1.attn_q.weight" in file


def test_a_type_that_ggml_adds_later_is_kept_as_bytes(tmp_path: Path) -> None:
    source = rwkv(tmp_path)
    stored = {tensor.name: tensor for tensor in read_header(SourceFile(source)).tensors}
    data = source.read_bytes()
    for name in ("blk.0.time_mix_key.weight", "output.weight"):
        at = data.index(name.encode()) + len(name) + 4 + 2 * 8
        data = data[:at] + struct.pack("<I", 77) + data[at + 4 :]
    source.write_bytes(data)
    assert comes_back(source, tmp_path).notes[1:] == (
        "kept as the bytes of its blocks, not as codes, because of a type of blocks that is not known here: "
        "blk.0.time_mix_key.weight and 1 more; the file comes back, but no model is loaded",
    )
    with spqfmt.open(tmp_path / "m.spq") as file:
        for name in ("blk.0.time_mix_key.weight", "output.weight"):
            info = file[name].info
            assert (info.scheme, info.shape) == ("ggml.type-77/1", (64, 64))
            assert info.streams[0].raw_bytes == stored[name].n_bytes
    # The second number of rows does not divide the bytes.
    for rows in (64, 63):
        at = data.index(b"blk.0.time_mix_key.weight") + len("blk.0.time_mix_key.weight") + 4 + 8
        source.write_bytes(data[:at] + struct.pack("<Q", rows) + data[at + 8 :])
        for method in ("lossless", "rtn"):
            with pytest.raises(
                ImporterError,
                match=r"tensor blk.0.time_mix_key.weight is stored as type 77, whose values are not known; "
                "--method keep stores its bytes",
            ):
                spqfmt.pack(source, tmp_path / "m.spq", method=method, dequantize=True, force=True)


def test_values_out_of_books_alone_need_the_gguf_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = write(tmp_path, "qwen2", quantize=gguf.GGMLQuantizationType.Q8_0)
    expected = [tensor.load() for tensor in open_source(blocks).tensors]
    book = write(tmp_path, "llama", quantize=gguf.GGMLQuantizationType.IQ2_XXS, hidden=256, inner=512)
    matrix = next(tensor for tensor in open_source(book).tensors if tensor.role == "linear")
    assert matrix.load().shape == matrix.shape
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert all(map(torch.equal, [tensor.load() for tensor in open_source(blocks).tensors], expected))
    with pytest.raises(ImporterError, match="values of IQ2_XXS need the gguf package; pip install"):
        matrix.load()


def test_a_model_in_parts(tmp_path: Path) -> None:
    """Any part opens all; all come back."""
    made = rwkv(tmp_path, split_max_tensors=2)
    assert not made.exists()
    parts = sorted(tmp_path.glob("*.gguf"))
    assert [part.name for part in parts] == [f"x-0000{k}-of-00003.gguf" for k in (1, 2, 3)]
    digests = {part.name: part.read_bytes() for part in parts}
    for part in (parts[1], parts[0]):
        report = spqfmt.pack(part, tmp_path / "m.spq", force=True)
    assert report.n_tensors == 5
    assert spqfmt.unpack(tmp_path / "m.spq", tmp_path / "out").identical
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == digests
    first = digests[parts[0].name]
    number = first.index(b"split.no") + len(b"split.no") + 4
    parts[1].write_bytes(first[:number] + struct.pack("<H", 1) + first[number + 2 :])
    refuse(parts[0], "its parts hold two tensors of the name token_embd.weight")
    parts[1].write_bytes(first)
    refuse(parts[1], "not part 2 of 3, as its name says")
    parts[1].unlink()
    refuse(parts[0], f"part {parts[1].name} of the model is not beside it")
    parts[0].rename(tmp_path / "first.gguf")
    refuse(tmp_path / "first.gguf", "one of 3 parts of a model; name them all NAME-00001-of-00003.gguf")
    count = first.index(b"split.count") + len(b"split.count") + 4
    # As llama.cpp writes what it has joined.
    joined = first[:count] + struct.pack("<H", 0) + first[count + 2 :]
    parts[0].write_bytes(joined)
    refuse(parts[0], "named as one of 3 parts of a model, but its metadata say split.count 0")
    parts[0].rename(tmp_path / "joined.gguf")
    assert comes_back(tmp_path / "joined.gguf", tmp_path / "again").n_tensors == 2


def test_parts_of_which_the_first_has_no_tensors(tmp_path: Path) -> None:
    """As llama-gguf-split and the converter write them when they are asked to."""
    rwkv(tmp_path, split_max_tensors=2, small_first_shard=True)
    parts = sorted(tmp_path.glob("*.gguf"))
    assert not read_header(SourceFile(parts[0])).tensors
    digests = {part.name: part.read_bytes() for part in parts}
    report = spqfmt.pack(parts[0], tmp_path / "m.spq")
    assert report.n_tensors == 5
    assert spqfmt.unpack(tmp_path / "m.spq", tmp_path / "out").identical
    assert {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()} == digests


def test_missing_metadata(tmp_path: Path) -> None:
    file = write(tmp_path)
    file.write_bytes(file.read_bytes().replace(b"llama.embedding_length", b"llama.embedding_lengtX"))
    why = "the metadata lacks llama.embedding_length; convert the model again"
    assert comes_back(file, tmp_path).left_out == {
        "config.json": f"{why}: its tensors have ggml's names, and no model is loaded"
    }
    with pytest.raises(ImporterError, match=re.escape(f"{file}: {why}")):
        spqfmt.load_model(file)


def test_a_newer_layout_is_not_called_broken(tmp_path: Path) -> None:
    file = write(tmp_path)
    data = bytearray(file.read_bytes())
    data[4:8] = struct.pack("<I", 4)
    file.write_bytes(data)
    refuse(file, "version 4 of GGUF, only 2 and 3 are known")


def test_a_big_endian_file_is_called_that(tmp_path: Path) -> None:
    file = write(tmp_path)
    data = bytearray(file.read_bytes())
    data[4:8] = struct.pack(">I", 3)
    file.write_bytes(data)
    refuse(file, "a big-endian GGUF file, only little-endian ones are known")


def test_two_tensors_of_one_name_are_refused(tmp_path: Path) -> None:
    """As llama.cpp refuses them: else one of the two would be lost."""
    file = write(tmp_path)
    data = file.read_bytes()
    file.write_bytes(data.replace(b"blk.1.attn_q.weight", b"blk.0.attn_q.weight"))
    refuse(file, "broken GGUF file (two tensors of the name blk.0.attn_q.weight)")


@pytest.mark.parametrize("values", [(1, 1), (1, 2)])
def test_two_values_of_one_key_are_refused(tmp_path: Path, values: tuple[int, int]) -> None:
    def edit(writer: gguf.GGUFWriter) -> None:
        for key, value in zip("ab", values, strict=True):
            writer.add_uint32(f"x.only_{key}", value)

    file = write(tmp_path, edit=edit)
    file.write_bytes(file.read_bytes().replace(b"x.only_b", b"x.only_a"))
    refuse(file, "broken GGUF file (two values of 'x.only_a' in its metadata)")


@pytest.mark.parametrize("size", [0, 3, 4, 20, 24, 30, 200, 1000])
def test_a_file_cut_short(tmp_path: Path, size: int) -> None:
    file = write(tmp_path)
    file.write_bytes(file.read_bytes()[:size])
    refuse(file, "broken GGUF file")


def test_every_cut_of_the_header_and_the_last_byte_are_noticed(tmp_path: Path) -> None:
    file = write(tmp_path, edit=vocabulary)
    data = file.read_bytes()
    end_of_header = read_header(SourceFile(file)).tensors[0].offset
    for size in (*range(4, end_of_header, 61), len(data) - 1):
        file.write_bytes(data[:size])
        with pytest.raises(ImporterError):
            read_header(SourceFile(file))


@pytest.mark.parametrize("name", ["llama_llama3", "gpt2"])
def test_flipped_bytes_in_the_header_never_crash(tmp_path: Path, name: str) -> None:
    file = write(tmp_path, name, edit=vocabulary)
    data = file.read_bytes()
    for position in range(0, read_header(SourceFile(file)).tensors[0].offset, 11):
        broken = bytearray(data)
        broken[position] ^= 0xFF
        file.write_bytes(broken)
        message = ""
        try:
            open_source(file)
        except ImporterError as error:
            message = str(error)
        assert "\n" not in message


def test_lengths_are_checked_before_they_are_used(tmp_path: Path) -> None:
    file = tmp_path / "x.gguf"
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1)
    for claim in (
        struct.pack("<Q", 2**62),
        struct.pack("<Q1sIIQ", 1, b"k", 9, 8, 2**60),
        struct.pack("<Q1sIIQ", 1, b"k", 9, 10, 2**60),
    ):
        file.write_bytes(head + claim + bytes(64))
        refuse(file, "past the end of the file")
