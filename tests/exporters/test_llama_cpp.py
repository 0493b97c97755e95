"""llama.cpp reads what `unpack --as gguf` writes, and computes with it what the packed file and its source do."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import pytest
import tiny
import tiny_gguf
import torch
from safetensors.torch import load_file, save_file
from test_gguf_export import _CONFIGS, GROUPS, model_folder
from test_gguf_tokenizer import PIECES, sentencepiece, vocabulary

import spqfmt

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None,
    reason="llama.cpp is not installed (pip install 'spqfmt[engines]')",
)
CHILD = Path(__file__).with_name("llama_cpp_child.py")
PROMPT = [token % 256 for token in tiny_gguf.tokens()]
N_TOKENS = 6
TEXT = "Hello  w\u00f6rld,\n 12 of them"
Ask = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def llama_cpp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    """Asks llama.cpp for greedy tokens of a file, their logarithms of probabilities, and how it cuts a text."""
    log = tmp_path_factory.mktemp("llama") / "stderr"
    with (
        log.open("wb") as stderr,
        subprocess.Popen(
            [sys.executable, str(CHILD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        ) as child,
    ):

        def ask(
            file: Path, *, prompt: list[int] = PROMPT, n: int = N_TOKENS, text: str = ""
        ) -> dict[str, Any]:
            assert child.stdin is not None
            assert child.stdout is not None
            child.stdin.write(json.dumps({"file": str(file), "prompt": prompt, "n": n, "text": text}) + "\n")
            child.stdin.flush()
            line = child.stdout.readline()
            found: dict[str, Any] = json.loads(line) if line else {"error": "it ended"}
            errors = [line for line in log.read_text("utf-8", "replace").splitlines() if " E " in line]
            assert "error" not in found, (found, errors[-4:])
            return found

        yield ask
        assert child.stdin is not None
        child.stdin.close()


def large_weights(folder: Path) -> None:
    """Let logits depend on every layer: weights as they are drawn hardly change what the embedding says.

    Not those of experts and routers: which experts a token goes to would hang on roundings.
    """
    arrays = load_file(folder / "model.safetensors")
    for name, value in arrays.items():
        if value.dim() > 1 and not any(
            part in name for part in ("embed", "wte", "lm_head", "experts", "gate.")
        ):
            arrays[name] = value * 4
    save_file(arrays, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("kind", _CONFIGS)
def test_logits_are_those_of_the_packed_file(llama_cpp: Ask, tmp_path: Path, kind: str) -> None:
    """Within what llama.cpp loses by rounding inputs to 8 bits for products with blocks, and caches to F16."""
    source, path, file = model_folder(tmp_path / "source", kind), tmp_path / "m.spq", tmp_path / "m.gguf"
    large_weights(source)
    spqfmt.pack(source, path, **GROUPS)
    spqfmt.unpack(path, file, as_="gguf")
    prompt = PROMPT[: 20 if kind == "mistral" else None]  # its window is all that llama.cpp gets
    found = llama_cpp(file, prompt=prompt, text=TEXT)
    assert found["pieces"] == tiny.byte_tokenizer()(TEXT)["input_ids"]
    model, _ = spqfmt.load_model(path, dtype=torch.float32, packed=False)
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + found["tokens"]])).logits[0, len(prompt) - 1 : -1]
    due, said = torch.log_softmax(logits, -1), torch.tensor(found["logprobs"])
    assert said.shape == (N_TOKENS, 264)
    off = ((said - due).square().mean().sqrt() / due.std()).item()
    assert off < 0.05, "rows of queries in the wrong order are at 0.24 and more"
    for token, row in zip(found["tokens"], due, strict=True):
        assert row[token] > row.max() - 0.2 * due.std()


VOCABULARIES: dict[str, tuple[int, Callable[[gguf.GGUFWriter], None]]] = {
    "bytes": (261, vocabulary("smollm", bos=True)),
    "pieces": (259 + len(PIECES), sentencepiece(prefix=True)),
}
"""Their numbers of tokens, and what writes them."""


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        *((name, None, "pieces" if name == "gemma" else "bytes") for name in tiny_gguf.NAMES),
        *(("llama", kind, "pieces") for kind in ("F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")),
        *(("qwen3", kind, "bytes") for kind in ("Q4_0", "Q8_0")),
    ],
)
def test_tokens_are_those_of_the_source(
    llama_cpp: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: str | None, words: str
) -> None:
    """A GGUF file, packed without its identity and written anew, is to llama.cpp what it was."""
    quantize = gguf.GGMLQuantizationType[kind] if kind else None
    n_tokens, edit = VOCABULARIES[words]
    monkeypatch.setattr(tiny_gguf, "VOCABULARY", n_tokens)
    tiny_gguf.write(name, tmp_path / "source.gguf", quantize=quantize, edit=edit)
    spqfmt.pack(tmp_path / "source.gguf", tmp_path / "m.spq", no_identity=True)
    assert not spqfmt.unpack(tmp_path / "m.spq", tmp_path / "m.gguf", as_="gguf").identical
    due, found = (llama_cpp(tmp_path / file, text=TEXT) for file in ("source.gguf", "m.gguf"))
    assert found == due
