"""Tokenizers rebuilt from GGUF metadata."""

import json
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
import tiny_gguf
import transformers

import spqfmt
from spqfmt.importers import SourceModel, open_source


def write(tmp_path: Path, name: str = "llama", *, edit: Callable[[gguf.GGUFWriter], None]) -> Path:
    file = tmp_path / f"{name}.gguf"
    tiny_gguf.write(name, file, edit=edit)
    return file


def assets(model: SourceModel) -> dict[str, bytes]:
    return {asset.name: asset.data for asset in model.assets}


def left_out(file: Path, what: str) -> None:
    """The model comes without its tokenizer."""
    model = open_source(file)
    assert model.left_out == {"tokenizer.json": f"{what} is not known; the model takes tokens, no text"}
    assert "config.json" in assets(model)
    assert "tokenizer.json" not in assets(model)


def contradicts(file: Path, message: str) -> None:
    """The model comes without its tokenizer, and why is said."""
    model = open_source(file)
    assert message in model.left_out["tokenizer.json"]
    assert "config.json" in assets(model)


BYTES = [chr(i) for i in (*range(33, 127), *range(161, 173), *range(174, 256))] + [
    chr(256 + i) for i in range(68)
]


def vocabulary(pre: str, *, bos: bool = False) -> Callable[[gguf.GGUFWriter], None]:
    """A byte-level vocabulary with a few merges, special tokens and a chat template."""
    tokens = [*BYTES, "\u0120\u0120", "12", "<s>", "</s>", "<think>"]
    kinds = [1] * 258 + [3, 3, 4]

    def edit(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
        writer.add_token_list(tokens)
        writer.add_token_types(kinds)
        writer.add_token_merges(["\u0120 \u0120", "1 2"])
        writer.add_bos_token_id(258)
        writer.add_eos_token_id(259)
        writer.add_add_bos_token(bos)
        writer.add_chat_template("{% for m in messages %}<s>{{ m['content'] }}</s>{% endfor %}")

    return edit


def tokenizer_of(file: Path, folder: Path) -> transformers.PreTrainedTokenizerFast:
    for name, data in assets(open_source(file)).items():
        (folder / name).write_bytes(data)
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        # One digit at a time: 12 never forms. Three spaces before a word: two belong together, one to the word.
        ("smollm", ["a", "\u0120\u0120", "\u0120", "b", "1", "2"]),
        ("gpt-2", ["a", "\u0120\u0120", "\u0120", "b", "12"]),
        ("qwen2", ["a", "\u0120\u0120", "\u0120", "b", "1", "2"]),
        ("llama-bpe", ["a", "\u0120\u0120", "\u0120", "b", "12"]),
    ],
)
def test_text_is_split_as_the_vocabulary_was_trained(tmp_path: Path, pre: str, pieces: list[str]) -> None:
    tokenizer = tokenizer_of(write(tmp_path, edit=vocabulary(pre)), tmp_path)
    assert tokenizer.tokenize("a   b12") == pieces
    text = "Hi </s>there <think>\n\n\u00e9 \u65e5\u672c  12"
    ids = tokenizer(text)["input_ids"]
    assert ids.count(259) == ids.count(260) == 1
    assert tokenizer.decode(ids) == text
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (258, 259)
    assert tokenizer.apply_chat_template([{"content": "x"}], tokenize=False) == "<s>x</s>"


SHOWN = "_ e t a o h l w r d i _t he _the _h el lo _hel _hello wor _w ld _wor _world or hel ll th the hello world __"
PIECES = SHOWN.replace("_", "\u2581").split()


def sentencepiece(*, prefix: bool) -> Callable[[gguf.GGUFWriter], None]:
    """<unk>, <s>, </s>, 256 bytes, and pieces from number 259 on, the best first."""
    n = len(PIECES)

    def edit(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model("llama")
        writer.add_token_list(["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *PIECES])
        writer.add_token_types([2, 3, 3, *[6] * 256, *[1] * n])
        writer.add_token_scores([*[0.0] * 259, *(-float(i) for i in range(n))])
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_unk_token_id(0)
        writer.add_add_space_prefix(prefix)

    return edit


# As llama.cpp (llama-cpp-python 0.3.36) cuts these texts with this vocabulary, a leading <s> included.
@pytest.mark.parametrize(
    ("prefix", "text", "pieces"),
    [
        (True, "hello world", "<s> _hello _world"),
        (True, "the  hello\nworld", "<s> _the _ _hello <0x0A> world"),
        (True, "\u00e9 the", "<s> _ <0xC3> <0xA9> _the"),
        (True, "  hello", "<s> __ _hello"),
        (True, " lead", "<s> __ l e a d"),
        (True, "the    hello  ", "<s> _the __ _ _hello __"),
        (False, "hello world", "<s> hello _world"),
        (False, "the    hello  ", "<s> the __ _ _hello __"),
        (False, "  hello", "<s> _ _hello"),
    ],
)
def test_sentencepiece_cuts_as_llama_cpp_does(tmp_path: Path, prefix: bool, text: str, pieces: str) -> None:
    tokenizer = tokenizer_of(write(tmp_path, edit=sentencepiece(prefix=prefix)), tmp_path)
    ids = tokenizer(text)["input_ids"]
    assert " ".join(tokenizer.convert_ids_to_tokens(ids)).replace("\u2581", "_") == pieces
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


WHOLE = ["<pad>", "<eos>", "<bos>", "<unk>"]
JOINED = "__ he ll hell hello _hello th the _the or wor ld world _world ___"
MERGES = "\n+\n _+_ __+_ h+e l+l he+ll hell+o _+hello t+h th+e _+the o+r l+d w+or wor+ld _+world"


def pieces_with_merges(writer: gguf.GGUFWriter) -> None:
    """Four tokens, 256 bytes, letters, and what the merges make of them."""
    pieces = ["\n\n", *JOINED.replace("_", "\u2581").split(" ")]
    letters = [letter for letter in "\u2581thelowrdi\n" if letter not in pieces]
    tokens = [*WHOLE, *(f"<0x{i:02X}>" for i in range(256)), *letters, *pieces]
    writer.add_tokenizer_model("gemma4")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3, 3, *[6] * 256, *[1] * (len(tokens) - 260)])
    writer.add_token_merges([merge.replace("_", "\u2581").replace("+", " ") for merge in MERGES.split(" ")])
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(3)
    writer.add_add_space_prefix(False)
    writer.add_add_bos_token(True)


# As llama.cpp (xllamacpp 2026.10) cuts these texts with this vocabulary.
@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("hello world", "<bos> hello _world"),
        ("the  hello\nworld", "<bos> t he __ hello \n world"),
        ("\u00e9 the", "<bos> <0xC3> <0xA9> _ t he"),
        (" lead", "<bos> _ l e <0x61> d"),
        ("the    hello  ", "<bos> t he __ __ hello __"),
        ("a\n\n\nthe", "<bos> <0x61> \n\n \n t he"),
        ("\n the\n\n hello", "<bos> \n _ t he \n\n _hello"),
        ("hello<eos>world", "<bos> hello <eos> world"),
    ],
)
def test_pieces_with_merges_are_cut_as_llama_cpp_does(tmp_path: Path, text: str, pieces: str) -> None:
    tokenizer = tokenizer_of(write(tmp_path, edit=pieces_with_merges), tmp_path)
    ids = tokenizer(text)["input_ids"]
    assert " ".join(tokenizer.convert_ids_to_tokens(ids)).replace("\u2581", "_") == pieces
    assert tokenizer.decode(ids[1:]) == text


def unigrams(writer: gguf.GGUFWriter) -> None:
    """Sentencepiece's unigrams, as T5 has them, some better than their halves."""
    pieces = ["_", "a", "b", "c", "_a", "ab", "_ab", "_the", "the", "t", "h", "e", "_in", "in", "(", "."]
    tokens = ["<pad>", "</s>", "<unk>", *(piece.replace("_", "\u2581") for piece in pieces), "<extra_id_0>"]
    writer.add_tokenizer_model("t5")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([*tokens, "[PAD20]"])
    writer.add_token_scores([0.0] * 3 + [-2.0 - 0.3 * i for i in range(len(pieces))] + [0.0, -1000.0])
    writer.add_token_types([3, 3, 2] + [1] * len(pieces) + [4, 5])
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_remove_extra_whitespaces(True)


# As llama.cpp (xllamacpp 2026.10) cuts these texts with such a vocabulary.
@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("ab the in (ab.", "_ab _the _in _ ( ab . </s>"),
        ("  ab   a. ", "_ab _a . </s>"),
        ("x yz ab", "_ <unk> _ <unk> _ab </s>"),
        ("the<extra_id_0>in", "_the <extra_id_0> _in </s>"),
        ("", "</s>"),
    ],
)
def test_unigrams_are_cut_as_llama_cpp_does(tmp_path: Path, text: str, pieces: str) -> None:
    tokenizer = tokenizer_of(write(tmp_path, edit=unigrams), tmp_path)
    ids = tokenizer(text)["input_ids"]
    assert " ".join(tokenizer.convert_ids_to_tokens(ids)).replace("\u2581", "_") == pieces
    assert tokenizer.decode(tokenizer("ab  the")["input_ids"], skip_special_tokens=True) == "ab the"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("scores", [1.0], "tokens and scores differ in length"),
        ("scores", [float("nan")] * 21, "tokenizer.ggml.scores are no finite numbers"),
        ("unknown_token_id", 21, "tokenizer.ggml.unknown_token_id is 21, no token"),
        ("precompiled_charsmap", [1], "tokenizer.ggml.precompiled_charsmap: "),
        ("precompiled_charsmap", [300], "tokenizer.ggml.precompiled_charsmap is no list of bytes"),
    ],
)
def test_unigrams_that_contradict_themselves(tmp_path: Path, key: str, value: object, message: str) -> None:
    def edit(writer: gguf.GGUFWriter) -> None:
        unigrams(writer)
        writer.kv_data[0].pop(f"tokenizer.ggml.{key}", None)
        if isinstance(value, list):
            writer.add_array(f"tokenizer.ggml.{key}", value)
        else:
            writer.add_uint32(f"tokenizer.ggml.{key}", value)  # type: ignore[arg-type]

    contradicts(write(tmp_path, edit=edit), message)


def test_old_files_without_a_way_to_split(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(write(tmp_path, "gpt2", edit=vocabulary("default")), tmp_path)
    assert tokenizer.tokenize("b12") == ["b", "12"]
    left_out(
        write(tmp_path, "llama", edit=vocabulary("default")), "tokenizer 'gpt2' that splits text as 'default'"
    )


@pytest.mark.parametrize("bos", [True, False])
def test_a_leading_token_where_the_file_asks_for_one(tmp_path: Path, bos: bool) -> None:
    tokenizer = tokenizer_of(write(tmp_path, edit=vocabulary("llama-bpe", bos=bos)), tmp_path)
    assert (tokenizer("a")["input_ids"][0] == 258) == bos


def test_generation_config_has_the_end_token(tmp_path: Path) -> None:
    model = open_source(write(tmp_path, edit=vocabulary("gpt-2")))
    assert json.loads(assets(model)["generation_config.json"]) == {"bos_token_id": 258, "eos_token_id": 259}


def test_every_end_that_the_metadata_names_is_in_the_generation_config(tmp_path: Path) -> None:
    def edit(writer: gguf.GGUFWriter) -> None:
        writer.add_eos_token_id(257)
        writer.add_eot_token_id(258)
        writer.add_eom_token_id(9)

    found = json.loads(assets(open_source(write(tmp_path, edit=edit)))["generation_config.json"])
    assert found == {"eos_token_id": [257, 258, 9]}


@pytest.mark.parametrize(
    ("last", "kinds", "ends"),
    [
        (["<|im_end|>", "<|eom_id|>"], [3, 3], [259, 261, 262]),
        (["<end_of_turn>", "<|eot_id|>"], [4, 1], [259, 261]),
        (["<|im_start|>", "<|box_end|>"], [3, 3], 259),
        (["<|end|>", "<|call|>", "<|return|>"], [3, 3, 3], [259, 262, 263]),
        (["<|end|>", "<|call|>"], [3, 3], [259, 261, 262]),
        (["<|end|>", "<|calls|>", "<|flush|>"], [4, 4, 4], [259, 262, 263]),
        (["<|tool_response>", "<turn|>"], [3, 3], [259, 261, 262]),
        (["<|eot|>", "<|eom|>"], [3, 3], [259, 261, 262]),
    ],
)
def test_known_ends_of_the_vocabulary_end_a_generation_and_are_no_text(
    tmp_path: Path, last: list[str], kinds: list[int], ends: int | list[int]
) -> None:
    def edit(writer: gguf.GGUFWriter) -> None:
        vocabulary("gpt-2")(writer)
        metadata = writer.kv_data[0]
        metadata["tokenizer.ggml.tokens"].value += last
        metadata["tokenizer.ggml.token_type"].value += kinds

    file = write(tmp_path, edit=edit)
    found = json.loads(assets(open_source(file))["generation_config.json"])["eos_token_id"]
    assert found == ends
    tokenizer = tokenizer_of(file, tmp_path)
    for index in [found] if isinstance(found, int) else found:
        assert tokenizer.decode([65, index], skip_special_tokens=True) == tokenizer.decode([65])
    # Where <|end|> only parts an answer, it is text, as the file says.
    if last[0] == "<|end|>" and 261 not in found and kinds[0] == 4:
        assert tokenizer.decode([261], skip_special_tokens=True) == "<|end|>"


def test_an_unknown_tokenizer(tmp_path: Path) -> None:
    def edit(writer: gguf.GGUFWriter) -> None:
        vocabulary("gpt-2")(writer)
        writer.kv_data[0]["tokenizer.ggml.model"].value = "rwkv"

    file = write(tmp_path, edit=edit)
    left_out(file, "tokenizer 'rwkv' that splits text as 'gpt-2'")
    path = tmp_path / "m.spq"
    spqfmt.pack(file, path)
    assert spqfmt.load_model(path)[1] is None
    assert spqfmt.unpack(path, tmp_path / "out").identical


def test_a_way_to_split_that_transformers_alone_knows(tmp_path: Path) -> None:
    """The one of gpt-oss and Llama 4: three digits, and what is short for a word stays with it."""
    tokenizer = tokenizer_of(write(tmp_path, "gpt2", edit=vocabulary("gpt-4o")), tmp_path)
    cut = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("It's 12345 a/b")
    assert [piece for piece, _ in cut] == ["It's", "\u0120", "123", "45", "\u0120a", "/b"]


def test_a_vocabulary_that_contradicts_itself(tmp_path: Path) -> None:
    def merges(writer: gguf.GGUFWriter) -> None:
        vocabulary("gpt-2")(writer)
        writer.kv_data[0]["tokenizer.ggml.merges"].value = ["a b"]

    def scores(writer: gguf.GGUFWriter) -> None:
        sentencepiece(prefix=True)(writer)
        writer.kv_data[0]["tokenizer.ggml.scores"].value = [0.0]

    contradicts(write(tmp_path, edit=merges), "merge 'a b' is not of the vocabulary")
    contradicts(write(tmp_path, edit=scores), "tokens, scores and token_type differ in length")


def test_pieces_are_short(tmp_path: Path) -> None:
    """Every way to cut one is tried: a piece of a MB would take a day."""

    def of(n: int) -> Callable[[gguf.GGUFWriter], None]:
        def edit(writer: gguf.GGUFWriter) -> None:
            sentencepiece(prefix=True)(writer)
            writer.kv_data[0]["tokenizer.ggml.tokens"].value[-1] = "x" * n

        return edit

    assert "tokenizer.json" in assets(open_source(write(tmp_path, edit=of(512))))
    for n in (513, 1 << 20):
        contradicts(
            write(tmp_path, edit=of(n)), f"a piece of the vocabulary has {n} characters, 512 are the most"
        )
