"""A packed model's tokens with its modules fused (spec/decisions/0052) beside the same model without, in one process.

    python tools/bench/single_tokens.py FILE.spq --context 64 --context 2000    --rounds 7 --tokens 24 --threads 1

Loaded as `spqfmt run` does. Both take turns; a round is a prompt of so many tokens and some tokens behind it, of which
the processor's time counts. Prints medians, the ratio with the lowest and the highest round, and the KL divergence of
the two at the last token, behind the same ones.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path
from typing import Any

_N_IDS = 1000


def main() -> None:
    """Run the tool, whose help is the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path)
    parser.add_argument(
        "--context", type=int, action="append", help="tokens of the prompt; may be given again"
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": str(options.threads), "SPQFMT_THREADS": str(options.threads)}
    import torch

    import spqfmt
    from spqfmt.loaders.packed.fused import SWITCH

    torch.set_num_threads(options.threads)
    fused, _ = spqfmt.load_model(options.file, dtype="fast")
    os.environ[SWITCH] = "0"
    plain, _ = spqfmt.load_model(options.file, dtype="fast")
    print("context  fused, ms  plain, ms  ratio                   KL, millinats")
    for context in options.context or [64, 2000]:
        ids = torch.randint(_N_IDS, 2 * _N_IDS, (1, context), generator=torch.Generator().manual_seed(0))
        _, tokens, found = _generated(fused, ids, [None] * options.tokens)
        _, _, expected = _generated(plain, ids, tokens)
        logs = expected.float().log_softmax(-1)
        kl = float((logs.exp() * (logs - found.float().log_softmax(-1))).sum())
        rounds = [
            [_generated(model, ids, tokens)[0] for model in (fused, plain)] for _ in range(options.rounds)
        ]
        times = [1e3 * statistics.median(column) for column in zip(*rounds, strict=True)]
        ratios = sorted(a / b for a, b in rounds)
        spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        print(f"{context:7}  {times[0]:9.1f}  {times[1]:9.1f}  {spread:22}  {1e3 * kl:.2f}")


def _generated(model: Any, ids: Any, tokens: list[Any]) -> tuple[float, list[Any], Any]:
    """Processor seconds a token, the tokens, and the logits behind the last; a token of None is the likeliest."""
    import torch
    from transformers import DynamicCache

    from spqfmt.models.caches import cache_name

    cache, taken = {cache_name(model): DynamicCache(config=model.config)}, []
    with torch.inference_mode():
        logits = model(ids, logits_to_keep=1, **cache).logits[:, -1]
        started = time.process_time()
        for token in tokens:
            taken.append(logits.argmax(-1, keepdim=True) if token is None else token)
            logits = model(taken[-1], **cache).logits[:, -1]
        return (time.process_time() - started) / len(tokens), taken, logits


if __name__ == "__main__":
    main()
