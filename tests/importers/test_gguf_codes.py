"""Method keep: blocks of a GGUF file are written as the codes that they are, and restore the values of the source."""

import json
import re
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
import reference_decoder
import tiny_gguf
import torch
from spq_command import run

import spqfmt
from spqfmt.cli.units import size
from spqfmt.container.reader import Reader
from spqfmt.errors import ImporterError, UnsupportedError
from spqfmt.importers import open_source
from spqfmt.importers._gguf_reader import FORMS, read_header
from spqfmt.importers._source_file import SourceFile
from spqfmt.kernels.ggml_types import BLOCK_TYPES
from spqfmt.packing.sources import LITERALS


def write(folder: Path, name: str, kind: str) -> Path:
    file = folder / f"{name}.gguf"
    quantize = gguf.GGMLQuantizationType[kind]
    wide = {"hidden": 256, "inner": 512} if gguf.GGML_QUANT_SIZES[quantize][0] == 256 else {}
    tiny_gguf.write(name, file, quantize=quantize, **wide)
    return file


@pytest.mark.parametrize("kind", BLOCK_TYPES)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_what_is_kept_restores_values_and_file_of_the_source(tmp_path: Path, name: str, kind: str) -> None:
    """Llama's queries and keys change the order of their rows, GPT-2's projections are transposed.

    Its head is there twice. Of neither is anything literal but the header.
    """
    source = write(tmp_path, name, kind)
    spqfmt.pack(source, tmp_path / "kept.spq", method="keep")
    spqfmt.pack(source, tmp_path / "values.spq", dequantize=True)
    spqfmt.verify(tmp_path / "kept.spq", content=True)
    assert comes_back(tmp_path / "kept.spq", tmp_path / "out") == source.read_bytes()
    header = min(t.offset for t in read_header(SourceFile(source)).tensors)
    with Reader(tmp_path / "kept.spq") as reader:
        [literals] = [asset.stream.n for asset in reader.index.assets if asset.name == LITERALS]
    assert literals < header + 1000
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
    # Values of MXFP4 are few, and their bits as well told.
    assert sizes[0] < (1 if kind == "MXFP4" else 0.75) * sizes[1]


def test_the_codes_are_the_very_ones_of_the_file(tmp_path: Path) -> None:
    source = write(tmp_path, "qwen2", "Q8_0")
    [stored] = [t for t in gguf.GGUFReader(source).tensors if t.name == "blk.0.ffn_up.weight"]
    blocks = stored.data.reshape(-1, 34)
    [tensor] = [t for t in open_source(source).tensors if t.name == "model.layers.0.mlp.up_proj.weight"]
    assert tensor.stored is not None
    kept = tensor.stored()
    assert np.array_equal(kept.codes.reshape(-1, 32), blocks[:, 2:].view(np.int8))  # type: ignore[attr-defined]
    assert kept.scale.values.tobytes() == blocks[:, :2].tobytes()  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1", "Q2_K", "Q4_K", "Q6_K", "IQ4_XS", "MXFP4", "TQ2_0"])
def test_a_kept_model_runs_decoded_and_packed_as_its_values_do(tmp_path: Path, kind: str) -> None:
    source = write(tmp_path, "llama", kind)
    spqfmt.pack(source, tmp_path / "kept.spq")
    spqfmt.pack(source, tmp_path / "values.spq", dequantize=True)

    def logits(path: Path, **options: object) -> torch.Tensor:
        model, _ = spqfmt.load_model(path, **options)  # type: ignore[arg-type]
        with torch.inference_mode():
            return model(torch.tensor([tiny_gguf.tokens()])).logits.float()

    expected = logits(source)
    assert expected.std() > 1e-3
    assert torch.equal(expected, logits(tmp_path / "values.spq", packed=False))
    assert torch.equal(expected, logits(tmp_path / "kept.spq", packed=False))
    # In float32 neither rounds the values that ggml gives.
    exact = logits(tmp_path / "kept.spq", packed=False, dtype="float32")
    assert (exact - expected).abs().mean() < 0.02 * expected.std()
    for options in ({"packed": True}, {"memory": "6MiB"}):
        packed = logits(tmp_path / "kept.spq", dtype="float32", **options)
        assert torch.allclose(exact, packed, atol=1e-3 * float(exact.std()), rtol=0)


@pytest.mark.parametrize("scale", [60000.0, np.inf, np.nan])
@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1", "Q6_K"])
def test_blocks_whose_values_do_not_fit_are_kept_as_bytes(tmp_path: Path, kind: str, scale: float) -> None:
    source = write(tmp_path, "llama", kind)
    header = next(t for t in read_header(SourceFile(source)).tensors if t.name == "blk.0.ffn_up.weight")
    data = bytearray(source.read_bytes())
    at = header.offset + (208 if kind == "Q6_K" else 0)
    data[at : at + 2] = np.float16(scale).tobytes()
    block = slice(header.offset, header.offset + header.block_bytes)
    if kind != "Q6_K":
        data[header.offset + 4 : header.offset + 6] = b"\x64\x64"
    source.write_bytes(data)
    name = "model.layers.0.mlp.up_proj.weight"
    why = "values that f16 cannot hold" if np.isfinite(scale) else "scales that are NaN or infinite"
    if not np.isfinite(scale):
        with pytest.raises(
            ImporterError, match=f"'{name}' has {why}; download .* --method keep keeps its bytes"
        ):
            spqfmt.pack(source, tmp_path / "m.spq")
        assert {file.name for file in tmp_path.iterdir()} == {source.name}
    assert spqfmt.pack(source, tmp_path / "m.spq", method="keep").notes == (
        f"15 tensors are codes in the source ({kind}): these are kept",
        f"kept as the bytes of its blocks, not as codes, because of {why}: {name}; the file comes back, but no "
        "model is loaded",
    )
    spqfmt.verify(tmp_path / "m.spq", content=True)
    with Reader(tmp_path / "m.spq") as reader:
        schemes = {record.name: record.scheme for record in reader.index.tensors}
    assert schemes.pop(name) == f"ggml.{kind.lower()}/1"
    assert set(schemes.values()) == {"grouped", "dense"}
    returned = comes_back(tmp_path / "m.spq", tmp_path / "out")
    assert returned[block] == data[block]
    assert returned == data
    for method in ("lossless", "rtn"):
        with pytest.raises(
            ImporterError, match=f"tensor blk.0.ffn_up.weight has {why}; --method keep stores its bytes"
        ):
            spqfmt.pack(source, tmp_path / "no.spq", method=method, dequantize=True)


@pytest.mark.parametrize("method", ["keep", "lossless", "rtn"])
@pytest.mark.parametrize("kind_of_none", [0, 1, 2, 19])
@pytest.mark.parametrize("shape", [(0, 256), (4, 0)])
def test_blocks_that_are_none_are_an_empty_tensor(
    tmp_path: Path, shape: tuple[int, int], kind_of_none: int, method: str
) -> None:
    """A second tensor has blocks: else there would be nothing to keep."""
    source = tmp_path / "m.gguf"
    kind = gguf.GGMLQuantizationType.Q4_0
    writer = gguf.GGUFWriter(source, "nobody")
    writer.add_tensor("a.weight", gguf.quants.quantize(np.ones((4, 32), np.float32), kind), raw_dtype=kind)
    writer.add_tensor("b.weight", np.zeros((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    data = source.read_bytes()
    at = data.index(b"b.weight") + len("b.weight") + 4
    source.write_bytes(data[:at] + struct.pack("<QQI", shape[1], shape[0], kind_of_none) + data[at + 20 :])
    spqfmt.pack(source, tmp_path / "m.spq", method=method, dequantize=method != "keep")
    spqfmt.verify(tmp_path / "m.spq", content=True)
    with spqfmt.open(tmp_path / "m.spq") as file:
        assert file["b.weight"].shape == shape
        assert file.read("b.weight").shape == shape
        assert file.read("a.weight").shape == (4, 32)
    if method == "keep":
        assert comes_back(tmp_path / "m.spq", tmp_path / "out") == source.read_bytes()


@pytest.mark.parametrize("kind", ["IQ1_S", "IQ2_XXS", "IQ3_S"])
def test_blocks_of_book_values_are_kept_as_bytes_and_only_their_values_are_refused(
    tmp_path: Path, kind: str
) -> None:
    source = write(tmp_path, "llama", kind)
    [note] = spqfmt.pack(source, tmp_path / "m.spq").notes
    assert note.startswith(
        f"16 tensors are codes in the source ({kind}): no scheme has these, so the bytes are kept"
    )
    spqfmt.verify(tmp_path / "m.spq", content=True)
    name = "model.layers.0.mlp.up_proj.weight"
    with spqfmt.open(tmp_path / "m.spq") as file:
        assert (file[name].info.scheme, file[name].shape) == (f"ggml.{kind.lower()}/1", (512, 256))
        assert file.read("model.norm.weight").shape == (256,)
        with pytest.raises(
            UnsupportedError, match=rf"'{name}' was kept as the bytes of its GGUF blocks \({kind}\)"
        ):
            file.read(name)
    with pytest.raises(UnsupportedError, match=rf"the bytes of its GGUF blocks \({kind}\)"):
        spqfmt.load_model(tmp_path / "m.spq")
    assert comes_back(tmp_path / "m.spq", tmp_path / "out") == source.read_bytes()


@pytest.mark.parametrize("kind", ["TQ1_0", "TQ2_0"])
def test_blocks_that_are_no_codes_are_kept_as_bytes(tmp_path: Path, kind: str) -> None:
    """TQ2_0 has two bits for three codes, TQ1_0 a byte for 243 numbers: the others are no codes."""
    source = write(tmp_path, "qwen2", kind)
    header = next(t for t in read_header(SourceFile(source)).tensors if t.name == "blk.0.ffn_up.weight")
    data = bytearray(source.read_bytes())
    no_number = min(set(range(256)) - {(256 * n + 242) // 243 for n in range(243)})
    data[header.offset] = 0xFF if kind == "TQ2_0" else no_number
    source.write_bytes(data)
    for options in ({}, {"no_identity": True}):
        report = spqfmt.pack(source, tmp_path / "m.spq", method="keep", force=True, **options)  # type: ignore[arg-type]
        with spqfmt.open(tmp_path / "m.spq") as file:
            schemes = {name: handle.info.scheme for name, handle in file.items()}
        assert report.notes[1].startswith(
            f"kept as the bytes of its blocks, not as codes, because of bytes that are no codes of {kind}: "
            "model.layers.0.mlp.up_proj.weight; "
        )
        assert schemes.pop("model.layers.0.mlp.up_proj.weight") == f"ggml.{kind.lower()}/1"
        assert set(schemes.values()) == {"grouped", "dense"}
        if not options:
            assert comes_back(tmp_path / "m.spq", tmp_path / "out") == data


@pytest.mark.parametrize(("name", "kind"), [("llama", "Q4_0"), ("gpt2", "MXFP4"), ("llama", "TQ2_0")])
def test_the_reference_decoder_makes_the_file_too(tmp_path: Path, name: str, kind: str) -> None:
    source = write(tmp_path, name, kind)
    spqfmt.pack(source, tmp_path / "m.spq", method="keep")
    decoded = reference_decoder.decode((tmp_path / "m.spq").read_bytes())
    assert decoded.files[source.name] == source.read_bytes()


def comes_back(path: Path, folder: Path) -> bytes:
    """What `unpack` gives for the one file of a source."""
    assert spqfmt.unpack(path, folder).identical
    [file] = folder.iterdir()
    return file.read_bytes()


def test_a_source_of_floats_has_nothing_to_keep(tmp_path: Path) -> None:
    tiny_gguf.write("llama", tmp_path / "m.gguf")
    with pytest.raises(ImporterError, match=r"the source stores no codes that method keep could keep"):
        spqfmt.pack(tmp_path / "m.gguf", tmp_path / "m.spq", method="keep")


def test_another_method_says_that_it_quantizes_again(tmp_path: Path) -> None:
    source = write(tmp_path, "llama", "Q8_0")
    assert spqfmt.pack(source, tmp_path / "m.spq", method="rtn", dequantize=True).notes == (
        "16 tensors are codes in the source (Q8_0): rtn has quantized again what they stand for",
    )


def test_codes_are_kept_where_no_method_is_asked_for(tmp_path: Path) -> None:
    source, path = write(tmp_path, "llama", "Q4_0"), tmp_path / "m.spq"
    told = "16 tensors are codes in the source (Q4_0):"
    assert spqfmt.pack(source, path).notes == (f"{told} these are kept",)
    with spqfmt.open(path) as file:
        assert file.metadata["method"] == "keep"
    sizes = [path.stat().st_size]
    report = spqfmt.pack(source, path, method="lossless", dequantize=True, force=True)
    assert report.notes == (f"{told} the values that they stand for are stored",)
    with spqfmt.open(path) as file:
        assert file["lm_head.weight"].info.scheme == "dense"
    assert 2 * sizes[0] < path.stat().st_size
    # A size is a method.
    spqfmt.pack(source, path, fit="2MiB", no_calibration=True, dequantize=True, force=True)
    with spqfmt.open(path) as file:
        assert file.metadata["method"] == "ecq"


@pytest.mark.parametrize("kind", ["Q4_0", "Q6_K", "IQ3_S"])
def test_inspect_says_what_the_blocks_took(tmp_path: Path, kind: str) -> None:
    source, path = write(tmp_path, "llama", kind), tmp_path / "m.spq"
    spqfmt.pack(source, path)
    report = spqfmt.inspect(path)
    blocks = [t for t in read_header(SourceFile(source)).tensors if t.form == kind]
    assert report.source is not None
    assert (report.source.n_files, report.source.file_bytes) == (1, source.stat().st_size)
    here = sum(t.stored_bytes for t in report.tensors if len(t.shape) == 2)
    assert report.source.forms == {f"GGUF {kind}": (len(blocks), sum(t.n_bytes for t in blocks), here)}
    assert report.totals.parts.codes > report.totals.parts.scales
    shown = run("inspect", path).stdout
    times = source.stat().st_size / path.stat().st_size
    assert f" from {size(source.stat().st_size)}, ratio {times:.2f} to the source, " in shown
    assert re.search(
        rf"source file of [\d.]+ [kM]B, this is [\d.]+ % of it: 16 tensors in GGUF {kind} [\d.]+ %", shown
    )


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0", "IQ3_S"])
def test_a_dry_run_estimates_what_coding_saves(tmp_path: Path, kind: str) -> None:
    source, path = write(tmp_path, "llama", kind), tmp_path / "m.spq"
    plan = json.loads(run("pack", source, path, "--dry-run", "--json").stdout)
    assert not path.exists()
    assert plan["method"] == "keep"
    linear = next(t for t in plan["tensors"] if t["name"] == "model.layers.0.mlp.up_proj.weight")
    assert (linear["treatment"], linear["form"]) == (f"codes of {kind}, as they are", kind)
    file_bytes = spqfmt.pack(source, path).file_bytes
    assert 0.85 * file_bytes < plan["estimate"]["file_bytes"] < 1.2 * file_bytes
    stored = spqfmt.inspect(path).totals.tensor_bytes
    assert 0.97 * stored < plan["estimate"]["tensor_bytes"] < 1.03 * stored
    assert plan["estimate"]["n_sampled"] <= 16
    shown = run("pack", source, path, "--dry-run")
    assert re.search(
        r"the file would take about [\d.]+ [kM]B, its tensors [\d.]+ [kM]B, [\d.]+ % of the source's, by \d+ of them",
        shown.stdout,
    )


def test_a_source_of_floats_is_lossless_by_default(tmp_path: Path) -> None:
    tiny_gguf.write("llama", tmp_path / "m.gguf")
    assert spqfmt.pack(tmp_path / "m.gguf", tmp_path / "m.spq").notes == ()
    with spqfmt.open(tmp_path / "m.spq") as file:
        assert file.metadata["method"] == "lossless"


def test_names_of_blocks_are_ggmls() -> None:
    assert {gguf.GGMLQuantizationType(number).name: number for number in FORMS} == {
        name: number for number, name in FORMS.items()
    }
