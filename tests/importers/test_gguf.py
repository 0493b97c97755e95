"""GGUF files: the imported model computes what llama.cpp computes, and broken files are refused in one line."""

import json
import re
import struct
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import tiny_gguf
import torch
import transformers

from spqfmt.errors import ImporterError
from spqfmt.importers import SourceModel, open_source
from spqfmt.importers._gguf_reader import BLOCKS, read_header
from spqfmt.importers._source_file import SourceFile

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


def test_an_unknown_architecture(tmp_path: Path) -> None:
    file = tmp_path / "x.gguf"
    writer = gguf.GGUFWriter(file, "rwkv6")
    writer.add_tensor("token_embd.weight", np.zeros((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    refuse(file, "GGUF architecture 'rwkv6' is not known")


def test_a_tensor_that_the_architecture_does_not_have(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        edit=lambda writer: writer.add_tensor("blk.0.ffn_gate_exps.weight", np.zeros((2, 2, 2), "f4")),
    )
    refuse(file, "tensor blk.0.ffn_gate_exps.weight is not part of LlamaForCausalLM")


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


def test_one_part_of_a_split_file(tmp_path: Path) -> None:
    refuse(
        write(tmp_path, edit=lambda writer: writer.add_uint16("split.count", 3)), "one part of a split GGUF"
    )


def test_missing_metadata(tmp_path: Path) -> None:
    file = write(tmp_path)
    file.write_bytes(file.read_bytes().replace(b"llama.embedding_length", b"llama.embedding_lengtX"))
    refuse(file, "the metadata lacks llama.embedding_length")


def test_a_newer_layout_is_not_called_broken(tmp_path: Path) -> None:
    file = write(tmp_path)
    data = bytearray(file.read_bytes())
    data[4:8] = struct.pack("<I", 4)
    file.write_bytes(data)
    refuse(file, "version 4 of GGUF, only 2 and 3 are known")


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
