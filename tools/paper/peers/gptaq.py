"""GPTAQ (arXiv 2504.02692) for the table of methods: gptq of weights that make up for what the layers before have lost.

Beside the package's methods only where tools/paper/evaluate_methods.py packs its row. The paper corrects column after
column; here all is corrected before the first one, the same but for what rounding leaves to later columns.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch

from spqfmt.quantize.base import MethodOptions
from spqfmt.quantize.calibrated import Block, Layer, Result, Site
from spqfmt.quantize.feedback import Factor, factorize
from spqfmt.quantize.gptq import Gptq
from spqfmt.quantize.statistics import Hessian


class Gptaq(Gptq):
    """Options, defaults and files as gptq has them."""

    name = "gptaq"
    corrects = True

    def quantize_block(self, block: Block, options: MethodOptions) -> Mapping[str, Result]:
        """Correct the weights of each site, then quantize them as gptq does."""
        assert options.damping is not None
        sites = tuple(_corrected(site, options.damping) for site in block.sites)
        return super().quantize_block(replace(block, sites=sites), options)


def _corrected(site: Site, damping: float) -> Site:
    drift = None if site.drift is None else site.drift.inputs
    if drift is None:
        return site
    assert isinstance(site.statistics, Hessian)
    factor = factorize(site.statistics.matrix, damping, act_order=False)

    def of(layer: Layer) -> Layer:
        return replace(layer, matrix=lambda: corrected(layer.matrix(), drift, factor))

    return replace(site, layers=tuple(of(layer) for layer in site.layers))


def corrected(matrix: torch.Tensor, drift: torch.Tensor, factor: Factor) -> torch.Tensor:
    """W + W E[(x - x^) x^^T] (H + damping)^-1, float32 [out, in]; the inverse is U^T U."""
    return matrix + matrix @ drift @ factor.upper.t() @ factor.upper


METHOD = Gptaq()
