"""llama.cpp in a process of its own, which may end by a signal: xllamacpp's wheel, whose server answers on loopback.

Each line of stdin is `{"file", "prompt", "n", "text"}`, each of stdout `{"tokens", "logprobs", "pieces"}`: the `n`
greedy tokens after the tokens `prompt`, for each the logarithms of all tokens' probabilities by number, and the tokens
of `text`; or `{"error"}`. What llama.cpp says goes to stderr.
"""

import json
import os
import sys
import urllib.request
from typing import Any

import xllamacpp


def ask(server: Any, path: str, **what: Any) -> dict[str, Any]:
    """An endpoint's answer."""
    request = urllib.request.Request(  # noqa: S310 - the address is the server's own
        server.listening_address + path, json.dumps(what).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310
        answer: dict[str, Any] = json.load(response)
    return answer


def answer(file: str, prompt: list[int], n: int, text: str) -> dict[str, Any]:
    """Load the file, ask, let it go."""
    parameters = xllamacpp.CommonParams()
    parameters.model.path = file
    parameters.n_ctx, parameters.n_parallel, parameters.warmup = 256, 1, False
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(parameters)
    wanted = {"ignore_eos": True, "temperature": 0, "return_tokens": True}
    tokens = ask(server, "/completion", prompt=prompt, n_predict=n, **wanted)["tokens"]
    # The server holds back tokens that end within a character, and their probabilities: each step is asked for with a
    # letter forced to follow, which changes none of them.
    *_, letter = ask(server, "/tokenize", content="a", add_special=False)["tokens"]
    wanted |= {"n_predict": 1, "n_probs": 1 << 20, "logit_bias": [[letter, 1e6]]}
    logprobs = []
    for step in range(n):
        said = ask(server, "/completion", prompt=prompt + tokens[:step], **wanted)
        of_token = {
            each["id"]: each["logprob"] for each in said["completion_probabilities"][0]["top_logprobs"]
        }
        logprobs.append([of_token[token] for token in sorted(of_token)])
    pieces = ask(server, "/tokenize", content=text, add_special=False)["tokens"] if text else []
    return {"tokens": tokens, "logprobs": logprobs, "pieces": pieces}


def main() -> None:
    """Answer until stdin ends."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        try:
            said = answer(**json.loads(line))
        except Exception as error:  # noqa: BLE001 - whatever it is, the test shows it
            said = {"error": f"{type(error).__name__}: {error}"}
        out.write(json.dumps(said) + "\n")


if __name__ == "__main__":
    main()
