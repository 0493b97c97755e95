"""A pack whose method finds little or nothing to quantize says so, and what it left."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from spqfmt.importers.base import SourceModel, SourceTensor
from spqfmt.packing.options import pack_options
from spqfmt.packing.pack import pack_model
from spqfmt.progress import Silent

MakeTensor = Callable[..., SourceTensor]


def notes(tensors: tuple[SourceTensor, ...], out: Path, **options: Any) -> tuple[str, ...]:
    model = SourceModel(tensors, (), "", "memory")
    return pack_model(model, out, pack_options(**options), force=True, progress=Silent()).notes


def test_nothing_quantized_and_what_is_left(source_tensor: MakeTensor, tmp_path: Path) -> None:
    experts = source_tensor("layers.0.experts.up", torch.randn(4, 30, 16), role="other")
    conv = source_tensor("layers.0.conv.weight", torch.randn(8, 1, 4), role="other")
    norm = source_tensor("layers.0.norm", torch.randn(16), role="other")
    out = tmp_path / "m.spq"
    assert notes((experts, conv, norm), out, method="rtn") == (
        "rtn quantized no tensor; by name and shape no linear layers of a block: layers.0.experts.up and 1 more",
    )
    assert notes((experts, norm), out, method="rtn")[0].endswith("block: layers.0.experts.up")
    assert notes((norm,), out, method="rtn") == ("rtn quantized no tensor",)
    assert notes((experts, conv, norm), out) == ()


def test_most_weights_left(source_tensor: MakeTensor, tmp_path: Path) -> None:
    experts = source_tensor("layers.0.experts.up", torch.randn(4, 30, 16), role="other")
    layer = source_tensor("layers.0.up", torch.randn(30, 16))
    out = tmp_path / "m.spq"
    assert notes((experts, layer), out, method="rtn") == (
        "rtn left 80% of the weights as they are, by name and shape no linear layers of a block: layers.0.experts.up",
    )
    router = replace(
        layer, name="layers.0.router", role="other", shape=(2, 16), load=lambda: torch.randn(2, 16)
    )
    assert notes((router, layer), out, method="rtn") == ()


@pytest.mark.parametrize("role", ["embedding", "head"])
def test_what_the_user_keeps_is_no_news(source_tensor: MakeTensor, tmp_path: Path, role: str) -> None:
    embedding = source_tensor("embed", torch.randn(300, 16), role=role)
    layer = source_tensor("layers.0.up", torch.randn(30, 16))
    assert notes((embedding, layer), tmp_path / "m.spq", method="rtn", embedding_bits=16) == ()
