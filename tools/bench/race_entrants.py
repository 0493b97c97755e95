"""One entrant of race.py in a process of its own: loads its model, then answers each line of stdin with one of stdout.

python tools/bench/race_entrants.py KIND PATH CORES

It says {"load_s"}; to "prompt N" and "tokens N" the tokens a second of a prompt of N, and of N further ones; to
"processor-tokens N" those a second of processor time, of 2 N tokens without what comes before; to "memory" the most
that its process has held, in bytes. KIND is a key of ENTRANTS. Each imports what it needs alone.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

_SHORT = 8
"""Tokens of the prompt before those that are counted."""
_CONTEXT = 2048
_VOCABULARY = 30_000
"""Numbers of tokens are below it: any model of text has as many."""


def token(n: int) -> int:
    """Return a token that means nothing, for a place in a text."""
    return (n * 7919 + 11) % _VOCABULARY


class Entrant(Protocol):
    """What a loaded model answers, in tokens a second."""

    def prompt(self, n: int) -> float:
        """Compute a prompt of `n` tokens."""
        ...

    def tokens(self, n: int) -> float:
        """Generate `n` tokens, one after the other."""
        ...


class _Torch:
    """A model of transformers, however its layers compute."""

    def __init__(self, model: Any) -> None:
        self._model = model.eval()

    def _seconds(self, **workload: Any) -> float:
        from spqfmt.loaders.speed import Workload, seconds_per_pass

        return seconds_per_pass(self._model, Workload("race", 1, **workload))

    def prompt(self, n: int) -> float:
        return n / self._seconds(prompt_tokens=n)

    def tokens(self, n: int) -> float:
        return 1 / self._seconds(steps=n)


def _spqfmt(path: str, _: int) -> Entrant:
    """What `spqfmt run` does without options."""
    import spqfmt

    model, _tokenizer = spqfmt.load_model(path, dtype="fast")
    return _Torch(model)


def _from_pretrained(path: str, dtype: str) -> Any:
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype))


def _transformers(path: str, _: int) -> Entrant:
    return _Torch(_from_pretrained(path, "bfloat16"))


def _dynamic(path: str, _: int) -> Entrant:
    """torch's own INT8: weights by a scale each, activations as they come."""
    import torch

    model = _from_pretrained(path, "float32")
    quantize: Callable[..., Any] = torch.ao.quantization.quantize_dynamic
    return _Torch(quantize(model, {torch.nn.Linear}, dtype=torch.qint8))


class _LlamaCpp:
    """llama.cpp by the package xllamacpp, with its own clocks."""

    def __init__(self, path: str, cores: int) -> None:
        import xllamacpp

        parameters = xllamacpp.CommonParams()
        parameters.model.path = path
        parameters.n_ctx = _CONTEXT
        parameters.n_parallel = 1
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = cores
        self._server = xllamacpp.Server(parameters)

    def _timings(self, n_prompt: int, n_tokens: int) -> Mapping[str, float]:
        wanted = {
            "prompt": [token(n) for n in range(n_prompt)],
            "n_predict": n_tokens,
            "ignore_eos": True,
            "cache_prompt": False,
            "temperature": 0,
        }
        found: Mapping[str, float] = self._server.handle_completions(wanted)["timings"]
        return found

    def prompt(self, n: int) -> float:
        return self._timings(n, 1)["prompt_per_second"]

    def tokens(self, n: int) -> float:
        return self._timings(_SHORT, n)["predicted_per_second"]


ENTRANTS: Mapping[str, Callable[[str, int], Entrant]] = {
    "spqfmt": _spqfmt,
    "transformers": _transformers,
    "dynamic": _dynamic,
    "llama.cpp": _LlamaCpp,
}


def _answer(entrant: Entrant, line: str) -> float:
    what, _, n = line.strip().partition(" ")
    if what == "memory":
        # Not ru_maxrss, which begins with what the process had that started this one.
        return 1024.0 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
    if what == "processor-tokens":
        marks = [time.process_time()]
        for times in (1, 3):
            entrant.tokens(times * int(n))
            marks.append(time.process_time())
        return 2 * int(n) / ((marks[2] - marks[1]) - (marks[1] - marks[0]))
    return entrant.prompt(int(n)) if what == "prompt" else entrant.tokens(int(n))


def main() -> None:
    """Serve until stdin ends."""
    kind, path, cores = sys.argv[1], sys.argv[2], int(sys.argv[3])
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library writes to stdout is no answer
    # Importing the libraries is not counted as loading.
    if kind == "llama.cpp":
        import xllamacpp  # noqa: F401
    else:
        import torch
        import transformers  # noqa: F401

        import spqfmt  # noqa: F401

        torch.set_num_threads(cores)
    started = time.perf_counter()
    entrant = ENTRANTS[kind](path, cores)
    out.write(json.dumps({"load_s": time.perf_counter() - started}) + "\n")
    for line in sys.stdin:
        out.write(json.dumps(_answer(entrant, line)) + "\n")


if __name__ == "__main__":
    main()
