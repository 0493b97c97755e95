"""Small files for pages to show: outliers, a tied head, plain tensors, and names that would be markup."""

from pathlib import Path

import numpy as np
import torch

from spqfmt.codecs.chunks import CodecPolicy
from spqfmt.importers.base import Asset, SourceModel, SourceTensor
from spqfmt.packing.options import PackOptions
from spqfmt.packing.pack import pack_model
from spqfmt.progress import Silent
from spqfmt.quantize.base import MethodOptions, Weight
from spqfmt.schemes.base import Quantized
from spqfmt.schemes.outliers import Outliers
from spqfmt.schemes.uniform import Uniform

HOSTILE = "</script><script>alert('owned')</script><img src=x onerror=alert(1)>&amp;\u2028$x_$.weight"
N_LAYERS = 4
_SHAPES = {"self_attn.q_proj": (128, 128), "mlp.up_proj": (256, 128), "mlp.down_proj": (128, 256)}


class _Given:
    """A method that hands over codes and outliers made from a seed; norms stay as they are."""

    name = "given"

    def check(self, options: MethodOptions) -> MethodOptions:
        return options

    def describe(self, weight: Weight, options: MethodOptions) -> str:
        return "as given" if weight.role != "other" else ""

    def quantize(self, weight: Weight, value: torch.Tensor, options: MethodOptions) -> Quantized:
        rng = np.random.default_rng(weight.shape[0] + len(weight.name))
        codes = np.clip(np.rint(rng.normal(0, 8 + 20 * rng.random(), weight.shape)), -127, 127)
        return Uniform(codes.astype(np.int8), np.float32(0.01), outliers=_outliers(rng, weight))


def _outliers(rng: np.random.Generator, weight: Weight) -> Outliers | None:
    if "down_proj" not in weight.name:
        return None
    rows, columns = weight.shape
    places = np.sort(rng.choice(rows * columns, rows * columns // 50, replace=False))
    values = rng.normal(0, 1, places.size).astype(np.float32)
    return Outliers(*np.divmod(places, columns), values, "f32")


def _tensor(
    name: str, shape: tuple[int, ...], segment: str, role: str, tied_to: str | None = None
) -> SourceTensor:
    def load() -> torch.Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(len(name))).bfloat16()

    return SourceTensor(name, shape, "bf16", segment, role, False, tied_to, load)  # type: ignore[arg-type]


def write_model(path: Path, *, outside: str = "model.norm.weight") -> Path:
    """A small decoder; `outside` is the name of its last tensor."""
    embedding = "model.embed_tokens.weight"
    tensors = [_tensor(embedding, (512, 128), "embed", "embedding")]
    for number in range(N_LAYERS):
        layer = f"model.layers.{number}"
        tensors.append(_tensor(f"{layer}.input_layernorm.weight", (128,), layer, "other"))
        tensors += [_tensor(f"{layer}.{n}.weight", shape, layer, "linear") for n, shape in _SHAPES.items()]
    tensors.append(_tensor(outside, (128,), "head", "other"))
    tensors.append(_tensor("lm_head.weight", (512, 128), "head", "head", embedding))
    assets = (Asset("config.json", b'{"model_type": "none"}' * 9),)
    options = PackOptions(_Given(), MethodOptions(), CodecPolicy(), None)
    pack_model(
        SourceModel(tuple(tensors), assets, "None", "memory"), path, options, force=True, progress=Silent()
    )
    return path
