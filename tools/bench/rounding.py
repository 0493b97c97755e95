"""What rounding the inputs of packed layers changes, token by token: KL beside that of BF16 inputs, and milliseconds.

python tools/bench/rounding.py MODEL.spq --text TEXT [--tokens 512] [--threads 1]

The text goes in one token at a time, as when it is generated, through one model in BF16 loaded twice: with
`activations="float"`, and as it is where nobody says. KL of the next token's distribution is that from the same codes
computed in float32, in millinats: BF16 has one of its own. Milliseconds are the processor's, medians of calls that take
turns, with their quartiles.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch

import spqfmt
from spqfmt.models.caches import cache_name, cache_of


def step(model: Any, token: torch.Tensor, cache: Any) -> tuple[torch.Tensor, Any, float]:
    """Log-probabilities of the token after `token` [1, 1], the cache with it, and seconds of processor time."""
    started = time.process_time()
    result = model(token, use_cache=True, **{cache_name(model): cache})
    taken = time.process_time() - started
    return result.logits[0, -1].double().log_softmax(-1), cache_of(result), taken


def main() -> None:
    """Run the tool, whose help is the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    exact, tokenizer = spqfmt.load_model(arguments.file, dtype="bfloat16", packed=True, activations="float")
    reference, _ = spqfmt.load_model(arguments.file, dtype="float32", packed=True, activations="float")
    rounded, _ = spqfmt.load_model(arguments.file, dtype="bfloat16", packed=True)
    ids = tokenizer(arguments.text.read_text(), return_tensors="pt").input_ids[:, : arguments.tokens]
    names = ("float32", "BF16", "rounded")
    kl: dict[str, list[float]] = {name: [] for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    caches = dict.fromkeys(names)
    with torch.inference_mode():
        for at in range(ids.shape[1]):
            true = None
            for name, model in zip(names, (reference, exact, rounded), strict=True):
                logs, caches[name], taken = step(model, ids[:, at : at + 1], caches[name])
                true = logs if true is None else true
                kl[name].append(float((true.exp() * (true - logs)).sum()))
                seconds[name].append(taken)
    for name in names:
        low, middle, high = (1000 * value for value in statistics.quantiles(seconds[name], n=4))
        mean = 1000 * statistics.mean(kl[name])
        print(f"{name}: KL {mean:.3f} millinats, {middle:.1f} ms a token ({low:.1f} to {high:.1f})")
    more = [1000 * (b - a) for a, b in zip(kl["BF16"], kl["rounded"], strict=True)]
    error = statistics.stdev(more) / len(more) ** 0.5
    ratio = statistics.median(seconds["BF16"]) / statistics.median(seconds["rounded"])
    print(
        f"rounded over BF16: {statistics.mean(more):.3f} +- {error:.3f} millinats of {len(more)} tokens, "
        f"{ratio:.2f} times as fast, {arguments.threads} threads"
    )


if __name__ == "__main__":
    main()
