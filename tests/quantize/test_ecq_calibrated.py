"""ecq on whole tiny models: sizes with calibration, gradients, experts that no token reaches, interrupted packs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import spqfmt
from spqfmt.calibration.gradients import output_gradients
from spqfmt.calibration.model import ModelShell
from spqfmt.errors import OptionError
from spqfmt.importers import open_source
from spqfmt.progress import Silent

TEXT = Path(__file__).resolve().parents[2] / "LICENSE"
FEW: dict[str, Any] = {"calibration": TEXT, "samples": 4, "seq_len": 32}


def _counted_bits(file: Path) -> float:
    report = spqfmt.inspect(file)
    dense = sum(t.stored_bytes for t in report.tensors if not t.method)
    n_weights = sum(t.n_weights for t in report.tensors if t.method)
    return 8 * (report.file_bytes - report.totals.asset_bytes - dense) / n_weights


@pytest.mark.parametrize("options", [{}, {"gradients": True}, {"effort": "fast"}], ids=str)
def test_calibrated_packs_hit_their_bits_and_share_column_scales(
    tiny_folder: Callable[[str], Path], tmp_path: Path, options: dict[str, Any]
) -> None:
    out = tmp_path / "m.spq"
    # At 6.5 bits the head of so small a model, which comes last, would be at its finest with bytes to spare.
    spqfmt.pack(tiny_folder("llama"), out, method="ecq", bits=5, **FEW, **options)
    assert 0.99 * 5 <= _counted_bits(out) <= 5
    spqfmt.verify(out)
    by_name = {t.name: t for t in spqfmt.inspect(out).tensors}
    codecs = {s.role: s.codec for s in by_name["model.layers.0.self_attn.k_proj.weight"].streams}
    assert codecs["column_scales"] == "shared"
    assert ("row_scales" in codecs) == ("gradients" in options)


@pytest.mark.parametrize("options", [{}, {"gradients": True}], ids=str)
def test_the_smallest_size_that_a_refusal_names_works_with_calibration(
    tiny_folder: Callable[[str], Path], tmp_path: Path, options: dict[str, Any]
) -> None:
    out = tmp_path / "m.spq"
    with pytest.raises(OptionError) as caught:
        spqfmt.pack(tiny_folder("llama"), out, fit=90, **FEW, **options)
    smallest = int(str(caught.value).split(" bytes is the smallest")[0].split()[-1])
    spqfmt.pack(tiny_folder("llama"), out, fit=smallest, **FEW, **options)
    assert out.stat().st_size <= smallest


class _Interrupting(Silent):
    """Stops the pack when the second block is quantized."""

    def stage(self, text: str) -> None:
        if text.startswith("model.layers.1: quantizing"):
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    "size",
    [
        {"fit": 70_000, "sequential": False},
        {"fit": 50_000, "sequential": True, "trellis": True},
        {"fit_memory": 230_000},
    ],
    ids=str,
)
def test_a_resumed_pack_gives_the_bytes_of_one_in_one_go(
    tiny_folder: Callable[[str], Path], tmp_path: Path, size: dict[str, Any]
) -> None:
    whole, resumed = tmp_path / "whole.spq", tmp_path / "resumed.spq"
    spqfmt.pack(tiny_folder("llama"), whole, **size, **FEW)
    with pytest.raises(KeyboardInterrupt):
        spqfmt.pack(tiny_folder("llama"), resumed, **size, progress=_Interrupting(), **FEW)
    spqfmt.pack(tiny_folder("llama"), resumed, **size, resume=True, **FEW)
    assert resumed.read_bytes() == whole.read_bytes()


def _keeping(kept: dict[str, torch.Tensor], name: str) -> Any:
    def hook(_module: object, _inputs: object, output: torch.Tensor) -> None:
        kept[name] = output

    return hook


def test_gradients_block_by_block_are_those_of_the_whole_model(tiny_folder: Callable[[str], Path]) -> None:
    source = open_source(tiny_folder("llama"))
    ids = torch.randint(0, 200, (2, 16), generator=torch.Generator().manual_seed(0))
    module = "mlp.down_proj"
    shell = ModelShell(source, dtype=torch.float32)
    found = output_gradients(shell, ids, lambda block: [module], seed=3, most_rows=64)
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_folder("llama"), dtype=torch.float32)
    generator = torch.Generator().manual_seed(3)
    squares = {name: torch.zeros(64, dtype=torch.float64) for name in found}
    products = {name: torch.zeros(64, 64) for name in found}
    for row in ids:
        kept: dict[str, torch.Tensor] = {}
        hooks = [model.get_submodule(name).register_forward_hook(_keeping(kept, name)) for name in found]
        logits = model(input_ids=row[None]).logits[0].float()
        for hook in hooks:
            hook.remove()
        drawn = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator)[:, 0]
        loss = torch.nn.functional.cross_entropy(logits, drawn, reduction="sum")
        for name, gradient in zip(kept, torch.autograd.grad(loss, list(kept.values())), strict=True):
            squares[name] += gradient[0].square().sum(0) / ids.numel()
            products[name] += gradient[0].t() @ gradient[0] / ids.numel()
    assert sorted(found) == ["model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj"]
    for name, gradients in found.items():
        assert gradients.mean is not None
        assert gradients.moments is not None
        assert torch.allclose(gradients.mean, squares[name], rtol=1e-3)
        largest = float(products[name].abs().max())
        assert torch.allclose(gradients.moments, products[name], rtol=1e-3, atol=1e-4 * largest)
    fewer = output_gradients(shell, ids, lambda block: [module], seed=3, most_rows=63)
    assert all(gradients.moments is None for gradients in fewer.values())


def test_experts_that_no_token_reaches_are_quantized_and_said(
    tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    out, text = tmp_path / "m.spq", tmp_path / "text.txt"
    text.write_text("a" * 100)
    report = spqfmt.pack(
        tiny_folder("mixtral"), out, method="ecq", bits=7, calibration=text, samples=1, seq_len=8
    )
    assert not report.left_dense
    experts = [t for t in spqfmt.inspect(out).tensors if ".experts." in t.name]
    assert experts
    assert {t.scheme for t in experts} == {"uniform"}
    assert any("no sample reached this expert" in note for note in report.notes)
    assert _counted_bits(out) <= 7


def test_packed_weights_stay_near_the_source(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    out = tmp_path / "m.spq"
    spqfmt.pack(tiny_folder("gpt2"), out, method="ecq", bits=7, **FEW)
    sources = {t.name: t for t in open_source(tiny_folder("gpt2")).tensors}
    with spqfmt.open(out) as packed:
        quantized = [t.name for t in spqfmt.inspect(out).tensors if t.method]
        assert quantized
        for name in quantized:
            expected = sources[name].load().float().numpy()
            error = packed.read(name).float().numpy() - expected
            assert np.sqrt(np.square(error).mean()) < 0.08 * np.sqrt(np.square(expected).mean())
