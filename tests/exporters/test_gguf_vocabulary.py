"""Vocabularies in GGUF's terms: those that were imported from GGUF come back, others are refused."""

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
import tiny_gguf
from test_gguf_tokenizer import PIECES, sentencepiece, vocabulary
from tokenizers import Tokenizer, models, pre_tokenizers

from spqfmt.errors import EncodeError
from spqfmt.exporters.gguf_vocabulary import vocabulary_keys
from spqfmt.importers import open_source


def imported(tmp_path: Path, edit: Any) -> tuple[dict[str, bytes], dict[str, Any]]:
    """The small files that a GGUF file gives, and its metadata."""
    tiny_gguf.write("llama", tmp_path / "m.gguf", edit=edit)
    files = {asset.name: asset.data for asset in open_source(tmp_path / "m.gguf").assets}
    fields = gguf.GGUFReader(tmp_path / "m.gguf").fields
    return files, {key: field.contents() for key, field in fields.items() if key.startswith("tokenizer.")}


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "tekken", "qwen2"])
def test_byte_level_vocabularies_come_back(tmp_path: Path, pre: str, bos: bool) -> None:
    files, said = imported(tmp_path, vocabulary(pre, bos=bos))
    n = len(said["tokenizer.ggml.tokens"])
    keys = vocabulary_keys(files, {}, n + 1)
    assert keys.pop("tokenizer.ggml.tokens") == [*said.pop("tokenizer.ggml.tokens"), f"[PAD{n}]"]
    assert keys.pop("tokenizer.ggml.token_type") == [*said.pop("tokenizer.ggml.token_type"), 5]
    assert keys.pop("tokenizer.ggml.add_eos_token") is False
    assert keys == said


@pytest.mark.parametrize("prefix", [False, True])
def test_pieces_come_back(tmp_path: Path, prefix: bool) -> None:
    """Scores are ranks of merges: their order is that of the pieces that are made of others."""
    files, said = imported(tmp_path, sentencepiece(prefix=prefix))
    keys = vocabulary_keys(files, {}, len(said["tokenizer.ggml.tokens"]))
    for key in ("model", "tokens", "token_type", "add_space_prefix", "bos_token_id", "eos_token_id"):
        assert keys[f"tokenizer.ggml.{key}"] == said[f"tokenizer.ggml.{key}"], key
    assert keys["tokenizer.ggml.unknown_token_id"] == 0
    assert keys["tokenizer.ggml.add_bos_token"] is True
    scores = dict(zip(keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.scores"], strict=True))
    made = [piece for piece in PIECES if len(piece) > 1 and scores[piece] > min(scores.values())]
    assert made == sorted(made, key=lambda piece: -scores[piece])
    assert len(made) > 10
    # What is imported of these cuts texts alike.
    again, _ = imported(tmp_path, lambda writer: _add(writer, keys))
    text = "hello  world\nthe \u00e9"
    first, second = (
        Tokenizer.from_str(f["tokenizer.json"].decode()).encode(text).ids for f in (files, again)
    )
    assert first == second


def _add(writer: gguf.GGUFWriter, keys: dict[str, Any]) -> None:
    writer.add_tokenizer_model("llama")
    writer.add_token_list(keys["tokenizer.ggml.tokens"])
    writer.add_token_types(keys["tokenizer.ggml.token_type"])
    writer.add_token_scores(keys["tokenizer.ggml.scores"])
    writer.add_bos_token_id(keys["tokenizer.ggml.bos_token_id"])
    writer.add_eos_token_id(keys["tokenizer.ggml.eos_token_id"])
    writer.add_unk_token_id(keys["tokenizer.ggml.unknown_token_id"])
    writer.add_add_space_prefix(keys["tokenizer.ggml.add_space_prefix"])


def test_several_ends_and_no_tokenizer(tmp_path: Path) -> None:
    files, said = imported(tmp_path, vocabulary("gpt-2"))
    files["generation_config.json"] = json.dumps({"eos_token_id": [259, 258]}).encode()
    keys = vocabulary_keys(files, {}, len(said["tokenizer.ggml.tokens"]))
    assert (keys["tokenizer.ggml.eos_token_id"], keys["tokenizer.ggml.eot_token_id"]) == (259, 258)
    assert vocabulary_keys({}, {}, 8) == {"tokenizer.ggml.model": "none"}


def test_what_gguf_does_not_hold(tmp_path: Path) -> None:
    files, said = imported(tmp_path, vocabulary("gpt-2"))
    n = len(said["tokenizer.ggml.tokens"])
    with pytest.raises(EncodeError, match=f"has a token {n - 1}, and the embedding {n - 1} rows"):
        vocabulary_keys(files, {}, n - 1)
    words = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))  # noqa: S106 - no password
    with pytest.raises(EncodeError, match="a tokenizer of the kind 'WordLevel' is not written"):
        vocabulary_keys({"tokenizer.json": words.to_str().encode()}, {}, 8)
    split = Tokenizer(models.BPE({"a": 0}, []))
    split.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(EncodeError, match="how it splits text has no name"):
        vocabulary_keys({"tokenizer.json": split.to_str().encode()}, {}, 8)
    with pytest.raises(EncodeError, match=r"tokenizer\.json is no JSON object"):
        vocabulary_keys({"tokenizer.json": b"[]"}, {}, 8)
