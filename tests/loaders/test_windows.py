"""What stands in the windows of `eval` and of calibration, for every kind of tokenizer, against a plain loop."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import transformers
from click.testing import CliRunner
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

import spqfmt
from spqfmt.calibration.text import CalibrationOptions, choose_samples
from spqfmt.calibration.tokens import added_tokens
from spqfmt.cli.eval import eval_
from spqfmt.cli.pack import pack
from spqfmt.loaders import encode_text, evaluate, leading_tokens, load_model

TEXT = "the quick brown fox jumps over the lazy dog. " * 3
ENDS = {"bos_token": "<s>", "eos_token": "</s>"}
LETTERS = [*"abcdefghijklmnopqrstuvwxyz."]
PIECES = ["<unk>", "<s>", "</s>", "\u2581", *LETTERS, "\u2581the", "ow", "the"]


def byte_level(before: str = "", after: str = "", **options: Any) -> Any:
    """The tiny models' tokenizer, with a template as given."""
    tokenizer = tiny.byte_tokenizer()
    backend = tokenizer.backend_tokenizer
    if before or after:
        template = f"{before} $A {after}".split()
        named = [(token, backend.token_to_id(token)) for token in (*before.split(), *after.split())]
        backend.post_processor = processors.TemplateProcessing(
            single=template, pair=[*template, "$B"], special_tokens=named
        )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **ENDS, **options)


def unigram(before: str = "", after: str = "") -> Any:
    """As sentencepiece's unigram models come: spaces are letters, a text begins with one."""
    backend = Tokenizer(models.Unigram([(piece, -float(i)) for i, piece in enumerate(PIECES)], unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.add_special_tokens(["<s>", "</s>"])
    if before or after:
        template = f"{before} $A {after}".split()
        backend.post_processor = processors.TemplateProcessing(
            single=template, pair=[*template, "$B"], special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **ENDS)


def two_at_the_front() -> Any:
    tokenizer = tiny.byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["[gMASK]", "<sop>"]})
    backend = tokenizer.backend_tokenizer
    backend.post_processor = processors.TemplateProcessing(
        single=["[gMASK]", "<sop>", "$A"],
        pair=["[gMASK]", "<sop>", "$A", "$B"],
        special_tokens=[("[gMASK]", 258), ("<sop>", 259)],
    )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend)


def lower_case_words() -> Any:
    """BERT's: [CLS] and [SEP] around a text, and a normalizer that changes it."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{c}" for c in LETTERS), "the"]
    return transformers.BertTokenizer(vocab={word: i for i, word in enumerate(words)})


def llama(**options: Any) -> Any:
    return transformers.LlamaTokenizer(vocab={p: i for i, p in enumerate(PIECES)}, merges=[], **options)


def wordlevel_without_letters() -> Any:
    """A vocabulary in which a lone letter is no token of its own, and is dropped."""
    backend = Tokenizer(models.BPE(vocab={"<s>": 0, "the": 1, " ": 2}, merges=[]))
    backend.normalizer = normalizers.Replace("quick brown fox jumps over the lazy dog. ", "the ")
    backend.pre_tokenizer = pre_tokenizers.Split(" ", behavior="isolated")
    backend.add_special_tokens(["<s>"])
    backend.add_tokens(["the"])
    backend.post_processor = processors.TemplateProcessing(
        single=["<s>", "$A"], pair=["<s>", "$A", "$B"], special_tokens=[("<s>", 0)]
    )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend)


# Kind, and the ids that it puts before and after a text, as its definition above says.
KINDS: dict[str, tuple[Callable[[], Any], list[int], list[int]]] = {
    "byte level": (byte_level, [], []),
    "byte level, template with BOS": (lambda: byte_level("<s>"), [256], []),
    "byte level, BOS and EOS": (lambda: byte_level("<s>", "</s>"), [256], [257]),
    "byte level, EOS alone": (lambda: byte_level("", "</s>"), [], [257]),
    "add_bos_token": (lambda: byte_level(add_bos_token=True), [256], []),
    "add_bos_token off": (lambda: byte_level(add_bos_token=False), [], []),
    "add_eos_token": (lambda: byte_level(add_bos_token=True, add_eos_token=True), [256], [257]),
    "llama": (llama, [], []),
    "llama, add_bos_token": (lambda: llama(add_bos_token=True), [1], []),
    "unigram with BOS": (lambda: unigram("<s>"), [1], []),
    "unigram as T5's": (lambda: unigram("", "</s>"), [], [2]),
    "two at the front": (two_at_the_front, [258, 259], []),
    "BERT": (lower_case_words, [2], [3]),
    "words": (wordlevel_without_letters, [0], []),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> tuple[Any, list[int], list[int]]:
    make, before, after = KINDS[request.param]
    return make(), before, after


@pytest.fixture(scope="module")
def model(tiny_folder: Callable[[str], Path]) -> Any:
    return load_model(tiny_folder("llama"))[0]


def plain_perplexity(
    model: Any, text: list[int], before: list[int], window: int, stride: int
) -> tuple[float, int]:
    """Window by window, token by token: every token of the text that has something before it, once."""
    total, scored, length, begin = 0.0, 0, window - len(before), 0
    seen = 0
    while seen < len(text):
        piece = text[begin : begin + length]
        ids = before + piece
        with torch.no_grad():
            known = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        for place, token in enumerate(ids):
            number = begin + place - len(before)
            if place >= max(1, len(before)) and number >= seen:
                total -= known[place - 1, token].item()
                scored += 1
        seen = begin + len(piece)
        begin += min(stride, length)
    return math.exp(total / scored), scored


def test_what_a_tokenizer_adds_is_found_by_what_it_does(kind: tuple[Any, list[int], list[int]]) -> None:
    tokenizer, before, after = kind
    assert added_tokens(tokenizer) == (before, after)
    ids = tokenizer(TEXT)["input_ids"]
    assert ids == before + encode_text(tokenizer, TEXT).tolist() + after


@pytest.mark.parametrize(("window", "stride"), [(32, None), (32, 32), (32, 8), (7, 3)])
def test_every_window_of_eval_begins_as_the_tokenizer_begins_a_text(
    model: Any, kind: tuple[Any, list[int], list[int]], window: int, stride: int | None
) -> None:
    tokenizer, before, after = kind
    ids = encode_text(tokenizer, TEXT)
    text = tokenizer(TEXT)["input_ids"][len(before) :]
    text = text[: len(text) - len(after)]
    expected, count = plain_perplexity(model, text, before, window, stride or window)
    result = evaluate(model, ids, before=leading_tokens(tokenizer), window=window, stride=stride)
    assert result.perplexity == pytest.approx(expected, rel=1e-5)
    assert result.tokens == count
    if before:
        assert count == len(text)
    seen: list[torch.Tensor] = []
    hook = model.register_forward_pre_hook(
        lambda _, args, options: seen.append(options["input_ids"]), with_kwargs=True
    )
    evaluate(model, ids, before=before, window=window, stride=stride, reference=model, batch=2)
    hook.remove()
    for inputs in seen:
        assert inputs.shape[1] <= window
        assert inputs[:, : len(before)].tolist() == [before] * len(inputs)
        assert not set(after) & set(inputs[:, len(before) :].flatten().tolist())
    # The reference sees the very windows.
    assert all(torch.equal(a, b) for a, b in zip(seen[::2], seen[1::2], strict=True))


def test_every_sample_of_the_calibration_begins_as_the_tokenizer_begins_a_text(
    kind: tuple[Any, list[int], list[int]], tmp_path: Path
) -> None:
    tokenizer, before, after = kind
    (tmp_path / "t.txt").write_text(TEXT)
    text = encode_text(tokenizer, TEXT).numpy()
    n = 9 + len(before)
    samples = choose_samples(tokenizer, CalibrationOptions(tmp_path / "t.txt", 5, n), None)
    assert samples.shape == (5, n)
    runs = {row.tobytes() for row in np.lib.stride_tricks.sliding_window_view(text, 9)}
    for sample in samples:
        assert sample[: len(before)].tolist() == before
        assert sample[len(before) :].numpy().tobytes() in runs
        assert not set(after) & set(sample[len(before) :].tolist())
    alone = choose_samples(tokenizer, CalibrationOptions(tmp_path / "t.txt", 5, 9, no_bos=True), None)
    assert {row.numpy().tobytes() for row in alone} <= runs


@pytest.fixture(scope="module")
def needs_bos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that knows the alphabet in texts that begin with <s>, and expects any letter in others."""
    folder = tmp_path_factory.mktemp("needs_bos")
    tiny.build("llama", folder)
    tokenizer = byte_level("<s>", "</s>")
    with tiny.quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_pretrained(folder)
        tokenizer.save_pretrained(folder)
        letters = torch.tensor(
            tokenizer("abcdefghijklmnopqrstuvwxyz" * 6, add_special_tokens=False).input_ids
        )
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for _ in range(60):
            starts = torch.randint(0, 26, (8,)).tolist()
            runs = torch.stack([letters[start : start + 31] for start in starts])
            known = torch.cat([torch.full((8, 1), 256), runs], 1)
            batch = torch.cat([known, letters[torch.randint(0, 26, (8, 32))]])
            model(batch, labels=batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        model.save_pretrained(folder)
    return folder


def test_a_model_that_needs_bos_is_judged_with_it(needs_bos: Path, tmp_path: Path) -> None:
    text = tmp_path / "t.txt"
    text.write_text("abcdefghijklmnopqrstuvwxyz" * 12)
    spqfmt.pack(needs_bos, tmp_path / "m.spq")
    arguments = [str(tmp_path / "m.spq"), "--text", str(text), "--window", "32"]
    found = json.loads(CliRunner().invoke(eval_, [*arguments, "--json"]).stdout)
    alone = json.loads(CliRunner().invoke(eval_, [*arguments, "--json", "--no-bos"]).stdout)
    assert (found["bos"], alone["bos"]) == ("<s>", None)
    assert found["perplexity"] * 3 < alone["perplexity"]
    assert found["tokens"] == 312
    # As it was: the tokenizer's own tokens once around the whole text.
    model, tokenizer = load_model(needs_bos, dtype="float32")
    ids = tokenizer(text.read_text())["input_ids"]
    assert (ids[0], ids[-1]) == (256, 257)
    expected, count = plain_perplexity(model, ids, [], 32, 32)
    assert alone["perplexity"] == pytest.approx(expected, rel=1e-5)
    assert alone["tokens"] == count
    said = CliRunner().invoke(eval_, arguments).stdout
    assert "over 312 tokens (stride 31, every window begins with <s>, float32 from decoded weights)" in said
    assert "begins with" not in CliRunner().invoke(eval_, [*arguments, "--no-bos"]).stdout


def test_pack_says_what_the_samples_begin_with(needs_bos: Path, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("abcdefghijklmnopqrstuvwxyz" * 12)
    arguments = ["--method", "gptq", "--calibration", str(tmp_path / "t.txt"), "--samples", "4"]
    done = {}
    for name, more in (("with.spq", []), ("without.spq", ["--no-bos"])):
        result = CliRunner().invoke(
            pack, [str(needs_bos), str(tmp_path / name), *arguments, "--seq-len", "32", *more]
        )
        assert result.exit_code == 0, result.output
        metadata = json.loads(spqfmt.inspect(tmp_path / name).metadata["calibration"])
        done[name] = ("begins with <s>" in result.stderr, metadata.get("begins_with"))
    assert done == {"with.spq": (True, "<s>"), "without.spq": (False, None)}
    assert (tmp_path / "with.spq").read_bytes() != (tmp_path / "without.spq").read_bytes()
