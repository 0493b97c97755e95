"""Method jsq: joint sparsification and quantization (ICML 2024, guo24g).

The inputs of the layers are clamped (the activation editor, equation 5), weights with the least saliency I + lambda A
(equation 4) become 0, half of them or 2 of 4 or 4 of 8, then SmoothQuant's scaling with alpha 0.5, 8 bits (or fewer)
per output channel, activations per token. The editing vector, one ratio for each input of layers, is searched for by
simulated annealing (annealing.py): every step changes one ratio, compresses the model from that block on, and takes its
perplexity on a few samples. The vector without any editing is tried at the end: it is one of the paper's choices, which
a short search need not come by.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from spqfmt.errors import OptionError
from spqfmt.models.treatments import ratio_clamp
from spqfmt.quantize.annealing import Vector, anneal
from spqfmt.quantize.base import MethodOptions
from spqfmt.quantize.calibrated import Site, Trials
from spqfmt.quantize.integer import SAR_TAKES, TAKES, IntegerMethod

RATIOS = (0.0, 4e-5, 5e-5, 6e-5, 7e-5)
"""The paper's choices of r."""


@dataclass(frozen=True)
class Jsq(IntegerMethod):
    """The row of the table that edits and searches."""

    def check(self, options: MethodOptions) -> MethodOptions:
        """Defaults filled in, those of the search too."""
        full = super().check(options)
        steps = 16 if options.search_steps is None else options.search_steps
        samples = 4 if options.search_samples is None else options.search_samples
        if steps < 0 or samples < 1:
            raise OptionError("a search has at least 0 steps and 1 sample")
        return replace(full, search_steps=steps, search_samples=samples, editing={} if steps == 0 else None)

    def edit(self, names: Sequence[str], options: MethodOptions) -> Mapping[str, object] | None:
        """The clamp record of the input that the tensors `names` read; None without one."""
        ratio = _start(names[0]) if options.editing is None else options.editing.get(names[0], 0.0)
        return ratio_clamp(ratio, "tensor") if ratio else None

    def _clamp(self, site: Site, options: MethodOptions) -> Mapping[str, object] | None:
        return self.edit([layer.weight.name for layer in site.layers], options)

    def search(self, trials: Trials, options: MethodOptions) -> MethodOptions:
        """The best editing vector that the annealing saw, or none where the model is better without."""
        assert options.search_samples is not None
        if not options.search_steps:
            return options
        trials.choose(options.search_samples)
        trials.stage("annealing: start")
        first = trials.perplexity(options)
        sites = trials.sites
        tried = 0

        def cost(vector: Vector, element: int) -> float:
            nonlocal tried
            if element < 0:
                return first
            tried += 1
            trials.stage(f"annealing: step {tried}/{options.search_steps}")
            return trials.perplexity(replace(options, editing=_by_name(vector)), sites[element][0])

        def _by_name(vector: Vector) -> dict[str, float]:
            return {name: ratio for (_, name), ratio in zip(sites, vector, strict=True)}

        start = tuple(_start(name) for _, name in sites)
        generator = np.random.default_rng(0)
        best, least = anneal(
            start, RATIOS, options.search_steps, cost=cost, accepted=trials.accept, generator=generator
        )
        trials.stage("annealing: without editing")
        unedited = trials.perplexity(replace(options, editing={}))
        return replace(options, editing={} if unedited <= least else _by_name(best))


def _start(name: str) -> float:
    """The random start: drawn by the tensor's name, so that it is known before all inputs are."""
    return RATIOS[zlib.crc32(name.encode()) % len(RATIOS)]


METHOD = Jsq(
    "jsq",
    MethodOptions(scaling="smoothquant", alpha=0.5, pruning="sar", sparsity=0.5),
    takes=TAKES | SAR_TAKES | {"search_steps", "search_samples"},
    # The editor clamps the input as the norm gives it: a scale in the norm would change what it does.
    folds=False,
)
