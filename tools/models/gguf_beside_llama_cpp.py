"""The small models of gguf_small_models.py beside llama.cpp: is the file that is written of one what that computes?

    python tools/models/gguf_beside_llama_cpp.py [NAME ...]

needs the package xllamacpp. Of each model a line: the largest difference of a token's log-probability after 3, 17 and
40 tokens, and the spread of these. The models are in float32 here; llama.cpp rounds GELU to float16. It has otherwise:
gpt-oss, whose YaRN it rounds to whole columns (`truncate`), and phi3_long, whose factors it chooses by the context that
it was begun with, and whose scale of attention the file does not say. Its server runs no model with an encoder: T5 is
left out.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import gguf_architectures
import torch
from gguf_small_models import CONTEXT, MODELS, VOCABULARY

_LENGTHS = (3, 17, 40)
_TOKENS = [(i * 37 + 11) % VOCABULARY for i in range(max(_LENGTHS))]
_TRIES = 20
"""An end that is sampled comes without probabilities."""


def _vocabulary(writer: gguf.GGUFWriter) -> None:
    """Write tokens that are all text, so that none waits for another."""
    tokens = ["<unk>", "<s>", "</s>", *(f"t{i}" for i in range(VOCABULARY - 3))]
    writer.kv_data[0].pop("tokenizer.ggml.model")
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * VOCABULARY)
    writer.add_token_types([2, 3, 3, *[1] * (VOCABULARY - 3)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(False)


def _server(file: Path) -> Any:
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(file)
    parameters.n_ctx = CONTEXT
    parameters.n_parallel = 1
    parameters.verbosity = 0
    parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    return xllamacpp.Server(parameters)


def _log_probabilities(server: Any, tokens: list[int]) -> dict[int, float]:
    """Return llama.cpp's for the token after these, by token."""
    wanted = {
        "prompt": tokens,
        "n_predict": 1,
        "n_probs": VOCABULARY,
        "temperature": 1.0,
        "cache_prompt": False,
    }
    for seed in range(_TRIES):
        found = server.handle_completions({**wanted, "seed": seed})["choices"][0]["logprobs"]
        if found is not None:
            return {one["id"]: one["logprob"] for one in found["content"][0]["top_logprobs"]}
    raise SystemExit("llama.cpp sampled an end each time")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Send what llama.cpp writes to stdout and stderr nowhere."""
    kept = [os.dup(number) for number in (1, 2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        for number in (1, 2):
            os.dup2(nowhere, number)
        yield
    finally:
        for number, before in zip((1, 2), kept, strict=True):
            os.dup2(before, number)
            os.close(before)
        os.close(nowhere)


def differences(name: str, folder: Path) -> tuple[float, float]:
    """Return the largest difference, and the standard deviation of the model's own log-probabilities."""
    file = folder / f"{name}.gguf"
    with _quiet():
        model = gguf_architectures.write(name, file, edit=_vocabulary)
        server = _server(file)
        found = [_log_probabilities(server, _TOKENS[:n]) for n in _LENGTHS]
    largest, spread = 0.0, 0.0
    for n, theirs in zip(_LENGTHS, found, strict=True):
        with torch.inference_mode():
            logits = model(torch.tensor([_TOKENS[:n]])).logits[0, -1].double()
        ours = logits.log_softmax(-1)
        largest = max(largest, *(abs(float(ours[token]) - value) for token, value in theirs.items()))
        spread = max(spread, float(ours.std()))
    return largest, spread


def main() -> None:
    """Compare the models that are named, or all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME")
    names = parser.parse_args().names or [
        name for name, small in MODELS.items() if small.architecture != "t5"
    ]
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            largest, spread = differences(name, Path(folder))
            print(f"{name}: {largest:.4f} of {spread:.2f}", flush=True)


if __name__ == "__main__":
    main()
