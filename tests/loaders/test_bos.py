"""What begins a text is found for tokenizers that know no word of any language that spqfmt could think of."""

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tiny
import transformers
from click.testing import CliRunner
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

import spqfmt
from spqfmt.calibration.text import CalibrationOptions, choose_samples
from spqfmt.calibration.tokens import added_tokens
from spqfmt.cli.eval import eval_
from spqfmt.cli.pack import pack
from spqfmt.errors import SpqError
from spqfmt.loaders import encode_text, generate

SPECIAL = ["[UNK]", "<s>", "</s>", "[CLS]", "[SEP]"]
ENDS = {"bos_token": "<s>", "eos_token": "</s>"}
UNK, BOS, EOS, CLS, SEP = range(5)


class Alphabet(NamedTuple):
    """A tokenizer without a post-processor, and a text that it can cut."""

    make: Callable[[], Tokenizer]
    text: str


def _vocabulary(letters: str) -> dict[str, int]:
    return {token: i for i, token in enumerate([*SPECIAL, *letters])}


def _letters(letters: str, unknown: str = "<unk>") -> Tokenizer:
    """One token a letter. It refuses a text with another letter where the token `unknown` is not in the vocabulary."""
    tokenizer = Tokenizer(models.WordLevel(_vocabulary(letters), unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", behavior="isolated")
    return tokenizer


def _deletes(letters: str) -> Tokenizer:
    """Its normalizer leaves out what the vocabulary has not."""
    tokenizer = _letters(letters)
    tokenizer.normalizer = normalizers.Replace(Regex(f"[^{letters}]"), "")
    return tokenizer


def _bpe(letters: str) -> Tokenizer:
    """Without a token for unknown letters, which it drops."""
    vocabulary = _vocabulary(letters)
    vocabulary[letters[:2]] = len(vocabulary)
    return Tokenizer(models.BPE(vocabulary, merges=[(letters[0], letters[1])]))


def _unigram(letters: str) -> Tokenizer:
    tokens = [*SPECIAL, "\u2581", *letters, letters[:2]]
    tokenizer = Tokenizer(models.Unigram([(token, -float(i)) for i, token in enumerate(tokens)], unk_id=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def _byte_level(_: str) -> Tokenizer:
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate([*SPECIAL, *symbols])}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


DNA, CYRILLIC, NOTES = "ACGT", "абвгдежзийклмнопрстуфхцчшщъыьэюя", "♩♪♫♬"
ALPHABETS = {
    f"{kind}, {name}": Alphabet(lambda make=make, letters=letters: make(letters), letters * 8)
    for (name, letters), (kind, make) in product(
        {"DNA": DNA, "Cyrillic": CYRILLIC, "notes": NOTES}.items(),
        {
            "letters": _letters,
            "letters or unknown": lambda letters: _letters(letters, "[UNK]"),
            "begins with what is unknown": lambda letters: _letters(letters, "<s>"),
            "deletes": _deletes,
            "BPE": _bpe,
            "unigram": _unigram,
            "byte level": _byte_level,
        }.items(),
    )
}


def _template(before: str, after: str) -> Any:
    single = f"{before} $A {after}".split()
    named = [(token, SPECIAL.index(token)) for token in (*before.split(), *after.split())]
    return processors.TemplateProcessing(single=single, pair=[*single, "$B"], special_tokens=named)


# Post-processors, and the ids that each puts before and after a text, by its definition.
PROCESSORS: dict[str, tuple[Any, list[int], list[int]]] = {
    "none": (None, [], []),
    "BOS": (_template("<s>", ""), [BOS], []),
    "BOS and EOS": (_template("<s>", "</s>"), [BOS], [EOS]),
    "EOS": (_template("", "</s>"), [], [EOS]),
    "two before": (_template("[CLS] <s>", ""), [CLS, BOS], []),
    "BERT's template": (_template("[CLS]", "[SEP]"), [CLS], [SEP]),
    "BERT's": (processors.BertProcessing(("[SEP]", SEP), ("[CLS]", CLS)), [CLS], [SEP]),
    "RoBERTa's": (processors.RobertaProcessing(("</s>", EOS), ("<s>", BOS)), [BOS], [EOS]),
    "byte level": (processors.ByteLevel(trim_offsets=False), [], []),
    "a sequence": (
        processors.Sequence([processors.ByteLevel(trim_offsets=False), _template("<s>", "")]),
        [BOS],
        [],
    ),
}


def _tokenizer(alphabet: Alphabet, processor: Any) -> Any:
    backend = alphabet.make()
    backend.add_special_tokens(SPECIAL)
    if processor is not None:
        backend.post_processor = processor
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **ENDS)


@pytest.mark.parametrize("processor", PROCESSORS)
@pytest.mark.parametrize("alphabet", ALPHABETS)
def test_what_is_put_around_a_text_is_found_in_every_alphabet(alphabet: str, processor: str) -> None:
    given, before, after = PROCESSORS[processor]
    tokenizer = _tokenizer(ALPHABETS[alphabet], given)
    text = ALPHABETS[alphabet].text
    assert added_tokens(tokenizer) == (before, after)
    assert added_tokens(tokenizer, text) == (before, after)
    # By what the library says itself of each token: whether it comes of the text.
    backend = tokenizer.backend_tokenizer.encode(text)
    own = [index for index, of in zip(backend.ids, backend.sequence_ids, strict=True) if of is not None]
    assert backend.ids == before + own + after
    assert encode_text(tokenizer, text).tolist() == own


def test_a_text_of_its_own_alphabet_decides_where_no_token_can_stand_alone() -> None:
    """Letters in threes: a token of the vocabulary is no text that it cuts."""
    codons = ["".join(three) for three in product(DNA, repeat=3)]
    tokenizer = Tokenizer(models.WordLevel(_vocabulary("") | {f"x{c}": 5 + i for i, c in enumerate(codons)}))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Replace(Regex("[^ACGT]"), ""), normalizers.Replace(Regex("([ACGT]{6})"), "xACG")]
    )
    tokenizer.post_processor = _template("<s>", "")
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    assert added_tokens(fast) == ([], [])
    assert added_tokens(fast, "ACGACG") == ([BOS], [])


@pytest.fixture(scope="module")
def dna(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dna")
    tiny.build("llama", folder)
    for file in folder.glob("*token*"):
        file.unlink()
    _tokenizer(Alphabet(lambda: _letters(DNA), ""), _template("<s>", "</s>")).save_pretrained(folder)
    return folder


def test_eval_and_calibration_of_another_alphabet_begin_with_bos(dna: Path, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("GATTACA" * 40)
    text = ["--text", str(tmp_path / "t.txt"), "--window", "32", "--json"]
    done = CliRunner().invoke(eval_, [str(dna), *text])
    assert json.loads(done.stdout)["bos"] == "<s>"
    assert json.loads(done.stdout)["tokens"] == 280
    arguments = ["--method", "gptq", "--calibration", str(tmp_path / "t.txt"), "--samples", "4"]
    done = CliRunner().invoke(pack, [str(dna), str(tmp_path / "m.spq"), *arguments, "--seq-len", "16"])
    assert "begins with <s>" in done.stderr, done.stderr
    calibration = json.loads(spqfmt.inspect(tmp_path / "m.spq").metadata["calibration"])
    assert calibration["begins_with"] == "<s>"


def test_a_prompt_of_another_alphabet_has_no_eos_behind_it(dna: Path) -> None:
    model, tokenizer = spqfmt.load_model(dna)
    assert generate(model, tokenizer, "GATTACA", max_new_tokens=1).n_prompt_tokens == 8


def test_a_text_that_a_tokenizer_cannot_cut_is_named(dna: Path, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("GATTXCA" * 40)
    tokenizer = transformers.AutoTokenizer.from_pretrained(dna)
    with pytest.raises(SpqError, match="the tokenizer cannot cut the text: WordLevel"):
        encode_text(tokenizer, "GATTXCA")
    with pytest.raises(SpqError, match="the tokenizer cannot cut the calibration text: WordLevel"):
        choose_samples(tokenizer, CalibrationOptions(tmp_path / "t.txt", 1, 8, no_bos=True), None)
