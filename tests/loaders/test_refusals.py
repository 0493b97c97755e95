"""What transformers cannot use is one error of the documented kind that names the file, whatever of it is at fault."""

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

import spqfmt
from spqfmt.errors import CorruptError, ImporterError, OptionError, UnsupportedError, foreign_errors
from spqfmt.importers import open_source
from spqfmt.loaders import evaluate, generate, load_model
from spqfmt.loaders.plan import plan_model
from spqfmt.loaders.settings import end_tokens
from spqfmt.models.places import unmatched

DEEP = '{"a": ' * 3000 + "1" + "}" * 3000


def _edit(file: Path, **values: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def _config(**values: object) -> Callable[[Path], None]:
    return lambda folder: _edit(folder / "config.json", **values)


def _tokenizer(**values: object) -> Callable[[Path], None]:
    return lambda folder: _edit(folder / "tokenizer_config.json", **values)


# A change of the folder, what is said of it, and whether a plan, which needs no tokenizer, meets it too.
FAULTS: dict[str, tuple[Callable[[Path], object], str, bool]] = {
    "a tokenizer of two": (
        _tokenizer(tokenizer_class="RagTokenizer"),
        "transformers cannot use its tokenizer: tokenizer_class names RagTokenizer, which cuts no text alone",
        False,
    ),
    "a tokenizer's settings, nested": (
        lambda folder: (folder / "tokenizer_config.json").write_text(DEEP),
        "tokenizer_config.json: nested deeper than any settings are",
        True,
    ),
    "a tokenizer, nested": (
        lambda folder: (folder / "tokenizer.json").write_text(DEEP),
        "transformers cannot use its tokenizer: ",
        False,
    ),
    "no heads": (
        _config(num_attention_heads=0),
        "transformers cannot use its config.json: integer modulo by zero; mend that file, or try another transformers",
        True,
    ),
    "no list of architectures": (
        _config(architectures=3),
        "architectures in its config.json is no list of names",
        True,
    ),
    **{
        f"another architecture, {name}": (
            _config(architectures=[name]),
            f"transformers cannot build the {name} of its config.json: {words}",
            True,
        )
        for name, words in {
            "BertForMaskedLM": "'LlamaConfig' object has no attribute 'is_decoder'",
            "T5ForConditionalGeneration": "'LlamaConfig' object has no attribute 'd_model'",
            "MambaForCausalLM": "'LlamaConfig' object has no attribute",
            "CLIPModel": "'LlamaConfig' object has no attribute",
            "RagModel": "config: LlamaConfig",
        }.items()
    },
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_transformers_cannot_use_is_said_with_the_file(
    tiny_folder: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    change, words, is_planned = FAULTS[name]
    folder, packed = tmp_path / "model", tmp_path / "m.spq"
    shutil.copytree(tiny_folder("llama"), folder)
    change(folder)
    spqfmt.pack(folder, packed)
    uses: list[Callable[[], object]] = [
        lambda: load_model(folder),
        lambda: load_model(packed),
        lambda: load_model(packed, packed=True),
    ]
    for use in (*uses, *([lambda: plan_model(packed)] if is_planned else [])):
        with pytest.raises(UnsupportedError) as caught:
            use()
        said = str(caught.value)
        assert said.startswith((f"{folder}: {words}", f"{packed}: {words}"))
        assert said.isprintable()


@pytest.mark.parametrize("said", ["x", [1], 4])
def test_a_quantizer_that_is_no_object_is_a_wrong_config(
    tiny_folder: Callable[[str], Path], tmp_path: Path, said: object
) -> None:
    folder, packed = tmp_path / "model", tmp_path / "m.spq"
    shutil.copytree(tiny_folder("llama"), folder)
    _config(quantization_config=said)(folder)
    spqfmt.pack(folder, packed, method="lossless")
    words = "its config.json is wrong: quantization_config is no object"
    uses: list[tuple[Path, type[Exception], Callable[[], object]]] = [
        (packed, CorruptError, lambda: load_model(packed)),
        (packed, CorruptError, lambda: load_model(packed, packed=True)),
        (packed, CorruptError, lambda: plan_model(packed)),
    ]
    for path, kind, use in uses:
        with pytest.raises(kind, match=re.escape(f"{path}: {words}")):
            use()
    for refused in (lambda: load_model(folder), lambda: spqfmt.pack(folder, tmp_path / "other.spq")):
        with pytest.raises(ImporterError, match=r"config\.json: its quantization_config is .*, no object"):
            refused()


def test_what_goes_wrong_behind_the_config_and_the_tokenizer_names_the_file_too(
    tiny_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        exec("None.zork", {"__name__": "transformers.elsewhere"})  # noqa: S102 - code of that library

    monkeypatch.setattr("spqfmt.loaders.config.find_model_class", fail)
    with pytest.raises(UnsupportedError, match="'NoneType' object has no attribute 'zork'") as caught:
        load_model(tiny_folder("llama"))
    assert str(caught.value).startswith(f"{tiny_folder('llama')}: transformers cannot make a model of it: ")


def test_a_config_that_asks_for_tuples_is_scored_alike(
    tiny_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder("llama"), folder)
    _edit(folder / "config.json", return_dict=0)
    ids = torch.tensor([(i * i * 31 + 3) % 256 for i in range(60)])
    expected, found = (evaluate(load_model(f)[0], ids, window=16) for f in (tiny_folder("llama"), folder))
    assert found == expected


@pytest.mark.parametrize("ends", [[[1]], {}, {"a": 1}, "x", [None, 257], 1.5])
def test_ends_of_a_generation_config_that_are_no_tokens_end_nothing(
    tiny_folder: Callable[[str], Path], ends: Any
) -> None:
    model, tokenizer = load_model(tiny_folder("llama"))
    model.generation_config.eos_token_id = ends
    assert end_tokens(model, tokenizer) == [257]
    assert generate(model, tokenizer, "x", max_new_tokens=2).n_new_tokens in {1, 2}


def test_a_tokenizer_that_comes_to_no_end_is_said(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder("llama"), folder)
    _edit(folder / "tokenizer_config.json", unk_token="")
    model, tokenizer = load_model(folder)
    tokenizer.convert_tokens_to_ids = lambda _: exec(  # noqa: S102 - code of that library
        "f = lambda: f()\nf()", {"__name__": "transformers.elsewhere"}
    )
    with pytest.raises(spqfmt.SpqError, match="LlamaForCausalLM cannot generate: maximum recursion depth"):
        generate(model, tokenizer, "x", max_new_tokens=1)


def test_an_error_of_the_package_is_not_called_another_library_s() -> None:
    with pytest.raises(ZeroDivisionError), foreign_errors(lambda _: UnsupportedError("m", "m")):
        exec("1 / 0", {"__name__": "spqfmt.elsewhere"})  # noqa: S102


@pytest.mark.parametrize("name", sorted(tiny.configurations()))
def test_what_a_load_will_lack_is_known_before(
    tiny_folder: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    folder = Path(shutil.copytree(tiny_folder(name), tmp_path / name))
    whole = load_file(folder / "model.safetensors")
    for left_out in (next(iter(whole)), list(whole)[len(whole) // 2], list(whole)[-1]):
        rest = {name: tensor for name, tensor in whole.items() if name != left_out}
        save_file(rest, folder / "model.safetensors", metadata={"format": "pt"})
        missing = unmatched(open_source(folder)).missing
        try:
            load_model(folder)
            said = []
        except ImporterError as error:
            said = str(error).partition("not in it: ")[2].split(", ")
        assert sorted(missing) == said, left_out


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_none_is_no_size_and_no_setting(
    tiny_folder: Callable[[str], Path], tmp_path: Path, number: float
) -> None:
    """nan is not less than 1, so that it passed for a ceiling, which it is not."""
    packed = tmp_path / "m.spq"
    spqfmt.pack(tiny_folder("llama"), packed)
    uses: list[Callable[[], object]] = [
        lambda: load_model(packed, memory=number),  # type: ignore[arg-type]
        lambda: plan_model(packed, memory=number),  # type: ignore[arg-type]
        *(
            lambda options=options: spqfmt.pack(tiny_folder("llama"), tmp_path / "n.spq", **options)
            for options in (
                {"fit": number},
                {"fit_memory": number},
                {"shard_size": number},
                {"method": "ecq", "bits": number},
                {"method": "rtn", "bits": number},
                {"method": "jsq", "range_weight": number},
            )
        ),
        lambda: generate(*load_model(packed), "x", temperature=number),
    ]
    for use in uses:
        with pytest.raises(OptionError, match=r"nan|inf|a number from 0 on"):
            use()
    assert not (tmp_path / "n.spq").exists()


def test_a_whole_number_of_bytes_may_be_a_float(tiny_folder: Callable[[str], Path], tmp_path: Path) -> None:
    packed = tmp_path / "m.spq"
    spqfmt.pack(tiny_folder("llama"), packed)
    plans = [plan_model(packed, memory=memory).to_json()["memory_bytes"] for memory in (1e6, 10**6)]  # type: ignore[arg-type]
    assert plans == [10**6, 10**6]
