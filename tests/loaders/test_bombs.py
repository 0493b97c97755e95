"""What a stored file says of templates, tokenizers and sizes takes no more time and memory than it may."""

import json
import re
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from spq_command import run
from tokenizers import Regex, Tokenizer, decoders, normalizers

import spqfmt
from spqfmt.calibration.text import CalibrationOptions, choose_samples
from spqfmt.calibration.tokens import leading_tokens
from spqfmt.errors import CorruptError, ImporterError, LimitError, SpqError, UnsupportedError
from spqfmt.loaders import encode_text, generate, load_model
from spqfmt.loaders.generate import encode_prompt
from spqfmt.loaders.plan import plan_model
from spqfmt.models import assets, bounded
from spqfmt.models.claims import earned
from spqfmt.models.growth import growth

DATA = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
# Which of the two comes first is a matter of the machine.
BOUND = "longer than 2 s|more than 512 MiB of memory"
LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
DOUBLED = "{% set n = namespace(s='aaaaaaaa') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}"
TEMPLATES: dict[str, tuple[str, str]] = {
    "loops": (LOOPS, "longer than 2 s"),
    "a power": ("{{ 9**(9**9) }}", BOUND),
    "repetition": ("{{ 'a' * 10**12 }}", BOUND),
    "lists": ("{{ ([0] * 10**12)|length }}", BOUND),
    "doubling": (DOUBLED, BOUND),
    "a wide field": ("{{ '%999999999999d' % 1 }}", f"{BOUND}|too big"),
    "a filter": ("{{ 'a'|center(10**12) }}", BOUND),
    "a method": ("{{ 'a'.ljust(10**12) }}", BOUND),
    "a macro": ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion"),
    "a long answer": ("{% for a in range(50000) %}a{% endfor %}", "it makes 50000 tokens of 2 bytes"),
}


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "SECONDS", 2)


@pytest.fixture
def llama(tmp_path: Path, tiny_folder: Callable[[str], Path]) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(tiny_folder("llama"), tmp_path / "llama"))


def configure(file: Path, values: dict[str, Any]) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def changed(change: Callable[[Tokenizer], None]) -> Any:
    tokenizer = tiny.byte_tokenizer()
    change(tokenizer.backend_tokenizer)
    return tokenizer


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("case", TEMPLATES)
def test_a_template_ends_and_holds_little(case: str) -> None:
    template, message = TEMPLATES[case]
    tokenizer = tiny.byte_tokenizer()
    tokenizer.chat_template = template
    begin = time.monotonic()
    with pytest.raises(SpqError, match=f"^the model's chat template failed: .*({message})"):
        encode_prompt(tokenizer, "Hi")
    assert time.monotonic() - begin < 60
    assert encode_prompt(tokenizer, "Hi", chat=False).shape == (1, 2)


def test_a_template_of_many_words_gives_them_all() -> None:
    tokenizer = tiny.byte_tokenizer()
    tokenizer.chat_template = "{% for a in range(16000) %}a{% endfor %}{{ messages[0].content }}"
    expected = [*tokenizer("a")["input_ids"] * 16000, *tokenizer("Hi")["input_ids"]]
    assert encode_prompt(tokenizer, "Hi").tolist() == [expected]


def test_a_long_text_has_room(tmp_path: Path) -> None:
    text = "The quick brown fox. " * 50_000
    tokenizer = tiny.byte_tokenizer()
    assert encode_text(tokenizer, text).tolist() == tokenizer(text, verbose=False)["input_ids"]


def times(n: int, steps: int) -> normalizers.Normalizer:
    return normalizers.Sequence([normalizers.Replace("a", "a" * n) for _ in range(steps)])


def multiply(backend: Tokenizer) -> None:
    backend.normalizer = times(10_000, 4)


def backtrack(backend: Tokenizer) -> None:
    backend.normalizer = normalizers.Replace(Regex("(a+)+(a+)+(a+)+$"), "b")


def lengthen(backend: Tokenizer) -> None:
    backend.normalizer = times(1000, 1)


CUTTERS = {
    "replacing": (multiply, BOUND),
    "an expression": (backtrack, f"{BOUND}|retry-limit"),
    "many tokens": (lengthen, "it makes 30001 tokens of 31 bytes"),
}


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("case", CUTTERS)
def test_cutting_ends_and_holds_little(tmp_path: Path, case: str) -> None:
    change, message = CUTTERS[case]
    tokenizer = changed(change)
    text = "a" * 30 + "c"
    (tmp_path / "t.txt").write_text(text)
    options = CalibrationOptions(tmp_path / "t.txt", 1, 8, no_bos=True)
    for cut in (
        lambda: encode_prompt(tokenizer, text),
        lambda: encode_text(tokenizer, text),
        lambda: choose_samples(tokenizer, options, None),
    ):
        with pytest.raises(
            SpqError, match=f"^the tokenizer cannot cut the (prompt|text|calibration text): .*({message})"
        ):
            cut()


@pytest.mark.usefixtures("short")
def test_so_does_what_stands_before_every_text() -> None:
    with pytest.raises(SpqError, match=f"cannot cut a text: it takes ({BOUND})"):
        leading_tokens(changed(multiply))


def test_growth_is_the_product_of_what_is_replaced() -> None:
    def of(part: Any) -> float:
        return growth(json.loads(part.__getstate__()))

    assert of(times(10, 3)) == 1000
    assert of(normalizers.Replace("abcd", "ab")) == 1
    assert of(normalizers.Replace(Regex("x*"), "abc")) == of(normalizers.Replace("", "abc")) == 4
    assert of(normalizers.Sequence([normalizers.Sequence([normalizers.NFKD()]), times(2, 1)])) == 36
    assert of(decoders.Sequence([decoders.Replace("\u2581", "    "), decoders.Fuse()])) == pytest.approx(
        4 / 3
    )
    assert of(normalizers.Lowercase()) == of(decoders.ByteLevel()) == 1


@pytest.mark.parametrize("part", ["normalizer", "decoder"])
def test_a_tokenizer_that_multiplies_is_refused_as_it_is_loaded(llama: Path, part: str) -> None:
    kind = "normalizers" if part == "normalizer" else "decoders"
    replace = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 1000}
    configure(llama / "tokenizer.json", {part: {"type": "Sequence", kind: [replace] * 5}})
    spqfmt.pack(llama, llama.parent / "m.spq")
    for path in (llama, llama.parent / "m.spq"):
        with pytest.raises(
            UnsupportedError, match=f"its tokenizer: its {part} can make a text 1e\\+15 times"
        ):
            load_model(path)


@pytest.mark.usefixtures("short")
def test_run_says_it_in_one_line(llama: Path) -> None:
    (llama / "chat_template.jinja").write_text(LOOPS)
    spqfmt.pack(llama, llama.parent / "m.spq")
    result = run("run", llama.parent / "m.spq", "--prompt", "Hi", "--quiet")
    assert result.code == 1
    assert result.stderr.splitlines() == [
        f"spqfmt: {llama.parent / 'm.spq'}: the model's chat template failed: it takes longer than 2 s; "
        "--raw (chat=False) goes without it"
    ]


@pytest.mark.parametrize("stops", ["abc" * 100, ["ab"] * 150])
def test_stop_strings_without_end_are_refused(llama: Path, stops: Any) -> None:
    configure(llama / "generation_config.json", {"stop_strings": stops})
    model, tokenizer = load_model(llama)
    with pytest.raises(SpqError, match="has stop strings of 300 characters, 256 are the most"):
        generate(model, tokenizer, "Hi", max_new_tokens=2)


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "layers": ({"num_hidden_layers": 10**7}, "num_hidden_layers is 10000000, with 21 tensors"),
    "fewer": ({"num_hidden_layers": 10**4}, "num_hidden_layers is 10000, with 21 tensors"),
    "as a float": ({"num_hidden_layers": 1e7}, "num_hidden_layers is 10000000.0, with 21 tensors"),
    "by another name": ({"n_layer": 10**7}, "n_layer is 10000000, with 21 tensors"),
    "below": ({"text_config": {"encoder_layers": 10**7}}, "encoder_layers is 10000000, with 21 tensors"),
    "lists": ({"attention_types": [[["global"], 10**7]]}, "attention_types is 10000000, with 21 tensors"),
    "experts": ({"num_local_experts": 10**6}, "num_local_experts is 1000000, with 21 tensors"),
    "labels": ({"num_labels": 10**9}, "num_labels is 1000000000, with 21 tensors"),
    "fewer than none": ({"num_hidden_layers": -1}, "num_hidden_layers is -1"),
    "heads": ({"num_key_value_heads": -2}, "num_key_value_heads is -2"),
    "size": ({"hidden_size": -64}, "hidden_size is -64"),
}
ASKED: dict[str, tuple[str, dict[str, Any], str]] = {
    "rows": ("llama", {"vocab_size": 10**12}, "values than its 21 tensors"),
    "columns": ("llama", {"intermediate_size": 10**12}, "values than its 21 tensors"),
    "positions": ("gpt2", {"n_positions": 10**7}, "values than its (28|29) tensors"),
    "a mask": (
        "gpt2",
        {"model_type": "gpt_bigcode", "architectures": None, "n_positions": 50_000},
        "bytes of buffers than its (28|29) tensors",
    ),
    "experts of layers": (
        "llama",
        {"model_type": "mixtral", "architectures": None, "num_hidden_layers": 200, "num_local_experts": 4000},
        "values than its 21 tensors",
    ),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_config_claims_no_more_than_there_is(llama: Path, case: str) -> None:
    values, claim = CONFIGS[case]
    configure(llama / "config.json", values)
    packed = llama.parent / "m.spq"
    spqfmt.pack(llama, packed)
    for path, kind in ((packed, CorruptError), (llama, ImporterError)):
        with pytest.raises(kind, match=f"^{re.escape(f'{path}: its config.json is wrong: {claim}')}$"):
            load_model(path)
    for call in (lambda: plan_model(packed), lambda: load_model(packed, memory="100MiB")):
        with pytest.raises(CorruptError, match=f"its config.json is wrong: {re.escape(claim)}$"):
            call()
    with pytest.raises(
        ImporterError, match=f"calibration: the model's config.json is wrong: {re.escape(claim)}"
    ):
        spqfmt.pack(llama, llama.parent / "q.spq", method="gptq", bits=4, samples=2, seq_len=16)


@pytest.mark.parametrize("case", ASKED)
def test_a_class_makes_no_more_than_there_is(tmp_path: Path, tiny_folder: Any, case: str) -> None:
    name, values, message = ASKED[case]
    folder = Path(shutil.copytree(tiny_folder(name), tmp_path / "model"))
    spqfmt.pack(folder, tmp_path / "m.spq")
    configure(folder / "config.json", values)
    spqfmt.pack(folder, tmp_path / "bad.spq")
    calls: list[Callable[[], Any]] = [
        lambda: load_model(folder),
        lambda: load_model(tmp_path / "bad.spq", memory="100MiB"),
        lambda: plan_model(tmp_path / "bad.spq"),
        lambda: spqfmt.pack(folder, tmp_path / "q.spq", method="gptq", bits=4, samples=2, seq_len=16),
    ]
    for call in calls:
        with pytest.raises(SpqError, match=f"its config asks for a model of many more {message} can fill"):
            call()
    load_model(tmp_path / "m.spq")  # nothing is left behind


def test_what_is_earned_is_counted_for_each_building_thread() -> None:
    def build(n: int) -> None:
        with torch.device("meta"):
            torch.nn.Linear(n, 1 << 10, bias=False)

    most = 8 * 1000 + (1 << 24)
    with earned("here", [(10, 100)]):
        build(most >> 10)
        with pytest.raises(
            CorruptError, match=r"^here: its config asks for a model of many more values than its 1"
        ):
            build(1)
        thread = threading.Thread(target=build, args=[1 << 20])
        thread.start()
        thread.join()
        torch.nn.Linear(1 << 5, 1 << 5)  # loaded, not claimed
    build(most)


def test_a_tokenizer_makes_no_tokens_without_end(llama: Path) -> None:
    configure(llama / "tokenizer_config.json", {"extra_ids": 10**9})
    spqfmt.pack(llama, llama.parent / "m.spq")
    for path in (llama, llama.parent / "m.spq"):
        with pytest.raises(UnsupportedError, match=r"tokenizer_config\.json: extra_ids is 1000000000"):
            load_model(path)


def test_a_source_of_deep_settings_is_named(llama: Path) -> None:
    (llama / "config.json").write_bytes(b'{"a":' * 100_000)
    with pytest.raises(ImporterError, match=r"config\.json: nested deeper than any config is"):
        spqfmt.pack(llama, llama.parent / "m.spq")


def test_small_files_are_small_together(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spqfmt.pack(llama, llama.parent / "m.spq")
    n_bytes = sum((llama / name).stat().st_size for name in DATA)
    monkeypatch.setattr(assets, "MAX_BYTES", n_bytes)
    load_model(llama.parent / "m.spq")
    monkeypatch.setattr(assets, "MAX_BYTES", n_bytes - 1)
    result = run("run", llama.parent / "m.spq", "--prompt", "Hi")
    message = f"{llama.parent / 'm.spq'}: its small files have more than {n_bytes - 1} bytes together"
    assert (result.code, result.stderr.splitlines()) == (1, [f"spqfmt: {message}"])


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json"])
def test_settings_are_small(llama: Path, name: str) -> None:
    configure(llama / name, {"x": "a" * (4 << 20)})
    spqfmt.pack(llama, llama.parent / "m.spq")
    with pytest.raises(
        LimitError, match=f"asset '{re.escape(name)}' has .* a model is loaded with 4194304 at most"
    ):
        load_model(llama.parent / "m.spq")
