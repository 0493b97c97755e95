"""The rows of GGUF in the table of methods: what is quantized, what its bits are, and what stays as it is."""

from ctypes.util import find_library
from pathlib import Path
from typing import Any

import gguf_rows
import numpy as np
import pytest
import tiny
import torch
from gguf import GGML_QUANT_SIZES, quants
from gguf import GGMLQuantizationType as Kind

from spqfmt.importers import open_source
from spqfmt.loaders import load_model


def blocks_of_package(kind: Any, matrix: Any, importance: Any) -> Any:
    """In place of ggml: the package gguf has a quantizer of its own for the older types."""
    assert matrix.shape[1] % GGML_QUANT_SIZES[kind][0] == 0
    return quants.quantize(matrix, kind)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gguf") / "tiny"
    tiny.build("llama_tied", folder, dtype=torch.float16)
    return folder


def test_a_row_is_filled_with_zeros_for_the_quantizer_and_cut_again() -> None:
    seen = []

    def quantize(kind: Any, matrix: Any, importance: Any) -> Any:
        seen.append((matrix, importance))
        return blocks_of_package(kind, matrix, importance)

    matrix = torch.randn(3, 40, generator=torch.Generator().manual_seed(1))
    made = gguf_rows.through(quantize, Kind.Q8_0, matrix, np.full(40, 2, np.float32))
    [(filled, weights)] = seen
    assert filled.shape == (3, 64)
    assert not filled[:, 40:].any()
    assert weights.tolist() == [2.0] * 40 + [0.0] * 24
    assert made.shape == (3, 40)
    whole = quants.dequantize(quants.quantize(filled, Kind.Q8_0), Kind.Q8_0)
    assert torch.equal(made, torch.from_numpy(whole[:, :40].copy()))


@pytest.mark.parametrize(
    ("asked", "columns", "given"),
    [
        (Kind.Q4_K, 1536, Kind.Q4_K),
        (Kind.Q4_K, 576, Kind.Q5_0),
        (Kind.Q3_K, 576, Kind.Q4_0),
        (Kind.Q3_K, 341, Kind.F16),
    ],
)
def test_a_row_that_does_not_fit_gets_the_type_of_llama_cpp(asked: Any, columns: int, given: Any) -> None:
    assert gguf_rows.fallback(asked, columns) == given


def test_bits_are_those_of_the_types_and_the_rest_of_the_model_stays(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "gguf"
    costs = gguf_rows.pack(source, out, blocks_of_package, {"type": "Q4_K", "fallback": ""})
    before, after = (
        {t.name: t for t in open_source(folder).tensors if t.tied_to is None} for folder in (source, out)
    )
    assert before.keys() == after.keys()
    n_weights, n_bits, n_bytes, raw = 0, 0.0, 0, 0
    for name, tensor in before.items():
        old, new = tensor.load(), after[name].load()
        raw += old.nbytes
        if tensor.role != "linear":
            n_bytes += old.nbytes
            assert torch.equal(old, new)
            continue
        n_weights += old.numel()
        if tensor.shape[1] == 64:
            n_bits += old.numel() * 5.5  # 22 bytes for 32 weights
            expected = quants.dequantize(quants.quantize(old.float().numpy(), Kind.Q5_0), Kind.Q5_0)
            assert torch.equal(new, torch.from_numpy(expected))
        else:
            assert tensor.shape[1] == 176
            n_bits += old.numel() * 16
            assert torch.equal(new, old.float())
    assert costs["stored"] == n_bits / n_weights
    assert costs["file_bytes"] == n_bytes + n_bits / 8
    assert costs["ratio"] == raw / (n_bytes + n_bits / 8)


def test_importance_is_the_mean_square_of_what_a_layer_reads(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spqfmt.calibration.text.default_text", lambda: "A short text is soon read. " * 20)
    seen = {}

    def quantize(kind: Any, matrix: Any, importance: Any) -> Any:
        seen[matrix.tobytes()] = importance
        return blocks_of_package(kind, matrix, importance)

    options = {"type": "Q8_0", "importance": "", "samples": 3, "seq-len": 32}
    gguf_rows.pack(source, tmp_path / "gguf", quantize, options)

    model, tokenizer = load_model(source, dtype="float32")
    wanted = gguf_rows.CalibrationOptions(samples=3, seq_len=32)
    ids = gguf_rows.choose_samples(tokenizer, wanted, 128)
    with torch.no_grad():
        embedded = model.model.embed_tokens(ids)
        read = model.model.layers[0].input_layernorm(embedded).flatten(0, 1)
    weight = model.model.layers[0].self_attn.q_proj.weight.detach().numpy()
    np.testing.assert_allclose(seen[weight.tobytes()], read.square().mean(0).numpy(), rtol=1e-4)


def test_a_library_without_the_quantizer_is_said() -> None:
    library = find_library("m")
    assert library is not None
    with pytest.raises(SystemExit, match="no library with ggml_quantize_chunk"):
        gguf_rows.open_quantizer(Path(library))
    with pytest.raises(SystemExit, match="no library with ggml_quantize_chunk"):
        gguf_rows.open_quantizer(Path("not-there.so"))
