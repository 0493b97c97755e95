"""Method keep: blocks of a GGUF file are written as the codes that they are, and restore the values of the source."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import tiny_gguf
import torch

import spqfmt
from spqfmt.errors import ImporterError
from spqfmt.importers import open_source
from spqfmt.importers._gguf_reader import FORMS, read_header
from spqfmt.importers._source_file import SourceFile
from spqfmt.kernels.ggml_types import BLOCK_TYPES


def write(folder: Path, name: str, kind: str) -> Path:
    file = folder / f"{name}.gguf"
    quantize = gguf.GGMLQuantizationType[kind]
    wide = {"hidden": 256, "inner": 512} if gguf.GGML_QUANT_SIZES[quantize][0] == 256 else {}
    tiny_gguf.write(name, file, quantize=quantize, **wide)
    return file


@pytest.mark.parametrize("kind", BLOCK_TYPES)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_what_is_kept_restores_the_values_of_the_source(tmp_path: Path, name: str, kind: str) -> None:
    """Llama's queries and keys change the order of their rows, GPT-2's projections are transposed."""
    source = write(tmp_path, name, kind)
    spqfmt.pack(source, tmp_path / "kept.spq", method="keep")
    spqfmt.pack(source, tmp_path / "values.spq")
    spqfmt.verify(tmp_path / "kept.spq")
    n_coded = 0
    with spqfmt.open(tmp_path / "kept.spq") as file:
        for tensor in open_source(source).tensors:
            info = file[tensor.name].info
            assert torch.equal(file.read(tensor.name), tensor.load()), tensor.name
            if tensor.tied_to is None:
                assert (tensor.form, info.scheme) in {(kind, "grouped"), ("", "dense")}
                assert info.method == ("keep" if tensor.form else "")
                n_coded += bool(tensor.form)
    assert n_coded == {"llama": 16, "gpt2": 10}[name]
    sizes = [(tmp_path / f"{what}.spq").stat().st_size for what in ("kept", "values")]
    assert sizes[0] < 0.75 * sizes[1]


def test_the_codes_are_the_very_ones_of_the_file(tmp_path: Path) -> None:
    source = write(tmp_path, "qwen2", "Q8_0")
    [stored] = [t for t in gguf.GGUFReader(source).tensors if t.name == "blk.0.ffn_up.weight"]
    blocks = stored.data.reshape(-1, 34)
    [tensor] = [t for t in open_source(source).tensors if t.name == "model.layers.0.mlp.up_proj.weight"]
    assert tensor.stored is not None
    kept = tensor.stored()
    assert np.array_equal(kept.codes.reshape(-1, 32), blocks[:, 2:].view(np.int8))  # type: ignore[attr-defined]
    assert kept.scale.values.tobytes() == blocks[:, :2].tobytes()  # type: ignore[attr-defined]


def test_a_kept_model_runs_packed_as_its_values_do(tmp_path: Path) -> None:
    source = write(tmp_path, "llama", "Q8_0")
    spqfmt.pack(source, tmp_path / "kept.spq", method="keep")
    inputs = torch.tensor([tiny_gguf.tokens()])
    logits = []
    for path, options in (
        (source, {}),
        (tmp_path / "kept.spq", {}),
        (tmp_path / "kept.spq", {"packed": True}),
    ):
        model, _ = spqfmt.load_model(path, dtype=torch.float16, **options)  # type: ignore[arg-type]
        with torch.inference_mode():
            logits.append(model(inputs).logits.float())
    assert torch.equal(logits[0], logits[1])
    assert torch.allclose(logits[0], logits[2], atol=0.05 * float(logits[0].std()))


def test_values_that_do_not_fit_are_refused_as_without_keep(tmp_path: Path) -> None:
    source = write(tmp_path, "qwen2", "Q8_0")
    header = next(t for t in read_header(SourceFile(source)).tensors if t.name == "blk.0.ffn_up.weight")
    data = bytearray(source.read_bytes())
    data[header.offset : header.offset + 2] = np.float16(60000).tobytes()
    data[header.offset + 2] = 100
    source.write_bytes(data)
    for method in ("keep", "lossless"):
        with pytest.raises(
            ImporterError, match=r"tensor blk.0.ffn_up.weight has values that f16 cannot hold"
        ):
            spqfmt.pack(source, tmp_path / "m.spq", method=method)


def test_codes_that_no_scheme_holds_are_refused_by_name(tmp_path: Path) -> None:
    source = write(tmp_path, "qwen2", "IQ2_XXS")
    with pytest.raises(
        ImporterError, match=r"is stored as IQ2_XXS, whose codes cannot be kept; --method lossless"
    ):
        spqfmt.pack(source, tmp_path / "m.spq", method="keep")


def test_blocks_that_are_no_codes_are_refused_by_name(tmp_path: Path) -> None:
    """TQ2_0 has two bits for three codes."""
    source = write(tmp_path, "qwen2", "TQ2_0")
    header = next(t for t in read_header(SourceFile(source)).tensors if t.name == "blk.0.ffn_up.weight")
    data = bytearray(source.read_bytes())
    data[header.offset] |= 3
    source.write_bytes(data)
    with pytest.raises(ImporterError, match=r"tensor blk.0.ffn_up.weight has blocks that its type TQ2_0"):
        spqfmt.pack(source, tmp_path / "m.spq", method="keep")


def test_a_source_of_floats_has_nothing_to_keep(tmp_path: Path) -> None:
    tiny_gguf.write("llama", tmp_path / "m.gguf")
    with pytest.raises(ImporterError, match=r"the source stores no codes that method keep could keep"):
        spqfmt.pack(tmp_path / "m.gguf", tmp_path / "m.spq", method="keep")


def test_another_method_says_that_it_quantizes_again(tmp_path: Path) -> None:
    assert spqfmt.pack(write(tmp_path, "llama", "Q8_0"), tmp_path / "m.spq", method="rtn").notes == (
        "16 tensors are codes in the source (Q8_0): rtn has quantized again what they stand for; "
        "--method keep writes these codes",
    )
    book = write(tmp_path, "qwen2", "IQ2_XXS")
    [note] = spqfmt.pack(book, tmp_path / "m.spq", method="rtn", force=True).notes
    assert note.endswith("rtn has quantized again what they stand for")
    assert spqfmt.pack(book, tmp_path / "m.spq", force=True).notes == ()


def test_names_of_blocks_are_ggmls() -> None:
    assert {gguf.GGMLQuantizationType(number).name: number for number in FORMS} == {
        name: number for number, name in FORMS.items()
    }
