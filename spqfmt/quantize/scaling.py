"""Input-channel scaling (SmoothQuant, Double Compression): W' = W diag(s), X' = X diag(s)^-1.

The division of the input is folded into the norm that makes it, where the graph allows; else it stays with the weights
as a column scale 1/s. Either way the float model computes what it did.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from spqfmt.kernels.torch_arrays import to_numpy
from spqfmt.quantize.base import Weight
from spqfmt.quantize.calibrated import Block, Result, Site
from spqfmt.quantize.grids import ordinary_exponent
from spqfmt.schemes.dense import Dense
from spqfmt.schemes.floats import Scale, to_log8

FORMS = ("none", "activation", "smoothquant")
_SMALLEST = 1e-5
_PROBES = 4
_CLOSE = 1e-4


def channel_scale(
    largest_input: torch.Tensor, largest_weight: torch.Tensor, form: str, alpha: float
) -> torch.Tensor | None:
    """s, float32 [columns], geometric mean 1; None where there is nothing to scale by.

    `largest_input` max|X_j|, `largest_weight` max|W_j|, both [columns]. `form` activation: s = max|X|^alpha (Double
    Compression, equation 2); smoothquant: that divided by max|W|^(1 - alpha). A factor that all columns share changes
    neither weights nor inputs once they are quantized, so it is taken out. Columns without input, or without weights
    where these count, get the least scale of the others.
    """
    alive = largest_input > 0
    if form == "smoothquant":
        alive &= largest_weight > 0
    if form == "none" or not alive.any() or not torch.isfinite(largest_input).all():
        return None
    scale = _bounded(largest_input).pow(alpha)
    if form == "smoothquant":
        scale /= _bounded(largest_weight).pow(1 - alpha)
    scale[~alive] = scale[alive].min()
    return (scale / scale.log().mean().exp()).float()


def _bounded(largest: torch.Tensor) -> torch.Tensor:
    """Float64, with the quietest raised: to SmoothQuant's 1e-5, or to that part of the loudest where all are quiet."""
    largest = largest.double() * 2.0 ** -ordinary_exponent(float(largest.max()))
    return largest.clamp(min=_SMALLEST * min(1.0, float(largest.max())))


def as_column_scale(scale: torch.Tensor) -> tuple[Scale, torch.Tensor]:
    """1/s as a log8 column scale, and the s that it stands for: s lies on a grid of 16 steps an octave, exactly."""
    stored = to_log8((1 / scale).numpy(), 16)
    return stored, 1 / torch.from_numpy(stored.to_float32())


@dataclass(frozen=True)
class Fold:
    """What a norm becomes: tensors by parameter name in the block, and the s that its rounding left."""

    tensors: Mapping[str, torch.Tensor]
    scale: torch.Tensor


def fold(block: Block, site: Site, scale: torch.Tensor) -> Fold | None:
    """Divide the output of the site's producer by s [columns], through its own parameters; None where that cannot be.

    The producer must be a module of its own with one weight (and maybe a bias) a column, as norms are, and nothing else
    may read its output. Whether it multiplies by the weight or by 1 + weight is found by trying. The new weights
    are rounded to the tensor's dtype, and s is taken from the rounded ones: a fold adds no error to the product.
    """
    if not site.producer or site.shared:
        return None
    norm = block.module.get_submodule(site.producer)
    parameters = {name: f"{site.producer}.{name}" for name, _ in norm.named_parameters()}
    shaped = all(p.shape == scale.shape for p in norm.parameters())
    if not ({"weight"} <= parameters.keys() <= {"weight", "bias"} and shaped):
        return None
    if any(name not in block.tensors for name in parameters.values()) or any(True for _ in norm.children()):
        return None
    for offset in (0.0, 1.0):
        found = _try_fold(block, norm, parameters, scale=scale, offset=offset)
        if found is not None:
            return found if _leaves_block(block, site, found) else None
    return None


def _leaves_block(block: Block, site: Site, found: Fold) -> bool:
    """Whether the float block computes what it did, to rounding: something that is no module may read the norm too.

    The module is changed, run on the first batch, and put back. Channels are judged one by one, and the median counts:
    a residual stream has channels so large that they would hide a difference in all others.
    """
    module = block.module
    scaled = {f"{layer.module}.weight": found.scale for layer in site.layers}
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []
    with torch.no_grad():
        float_outputs = block.run_first()
        for name in (*found.tensors, *scaled):
            parameter: torch.Tensor = module.get_parameter(name)
            kept.append((parameter, parameter.clone()))
            if name in found.tensors:
                parameter.copy_(found.tensors[name])
            else:
                columns_first = name in _transposed(site)
                factor = found.scale.to(parameter.device)
                parameter.copy_(parameter.float() * (factor[:, None] if columns_first else factor))
        outputs = block.run_first()
        for parameter, before_fold in kept:
            parameter.copy_(before_fold)
    before = float_outputs.reshape(-1, outputs.shape[-1]).double()
    error = (outputs.reshape(before.shape).double() - before).square().mean(0).sqrt()
    relative = (error / before.square().mean(0).sqrt().clamp(min=torch.finfo(torch.float64).tiny)).median()
    return float(relative) < max(_CLOSE, 2 * torch.finfo(outputs.dtype).eps)


def _transposed(site: Site) -> frozenset[str]:
    return frozenset(f"{layer.module}.weight" for layer in site.layers if layer.weight.transposed)


def _try_fold(
    block: Block, norm: torch.nn.Module, parameters: Mapping[str, str], scale: torch.Tensor, offset: float
) -> Fold | None:
    source = block.tensors[parameters["weight"]][1]()
    old = source.float() + offset
    stored = (old / scale - offset).to(source.dtype)
    new = stored.float() + offset
    real = torch.where(new != 0, old / new, scale)
    if not (torch.isfinite(real).all() and (real > scale / 2).all() and (real < scale * 2).all()):
        return None
    tensors = {parameters["weight"]: stored}
    if "bias" in parameters:
        bias = block.tensors[parameters["bias"]][1]()
        tensors[parameters["bias"]] = (bias.float() / real).to(bias.dtype)
    before = copy.deepcopy(norm).float().cpu()
    with torch.no_grad():
        for name, full in parameters.items():
            getattr(before, name).copy_(block.tensors[full][1]().float())
        after = copy.deepcopy(before)
        for name, full in parameters.items():
            getattr(after, name).copy_(tensors[full].float())
        probe = torch.randn(_PROBES, scale.numel(), generator=torch.Generator().manual_seed(0))
        wanted = before(probe) / real
        allowed = _CLOSE * wanted.abs() + _CLOSE / 10
        if "bias" in parameters:
            # It alone is rounded again.
            bias = tensors[parameters["bias"]]
            allowed += torch.finfo(bias.dtype).eps * bias.float().abs()
        close = bool(((after(probe) - wanted).abs() <= allowed).all())
    return Fold(tensors, real) if close else None


def fold_results(block: Block, found: Fold) -> dict[str, Result]:
    """The folded norm's tensors as results, by tensor name."""
    results: dict[str, Result] = {}
    for name, value in found.tensors.items():
        weight: Weight = block.tensors[name][0]
        results[weight.name] = Result(Dense(np.ascontiguousarray(to_numpy(value)), weight.dtype))
    return results
