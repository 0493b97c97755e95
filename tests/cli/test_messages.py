"""What a new user is told when something is wrong: one line with what happened, in which file, and what to do."""

import ctypes
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers
import zstandard
from cli_models import Models
from safetensors.torch import load, load_file, save_file
from situations import SITUATIONS, UP
from spq_command import Done, Run
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

import spqfmt
from spqfmt.cli.failures import about, explain
from spqfmt.container.reader import Reader
from spqfmt.errors import EncodeError, OptionError, SpqError
from spqfmt.residency.decode_rates import CodecRate, DecodeRates
from spqfmt.residency.device_rates import DEFAULT


def _variant(models: Models, folder: Path, change: Callable[[Path], object]) -> Path:
    shutil.copytree(models.source, folder)
    change(folder)
    return folder


def _edit_config(folder: Path, **values: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


def _edit_tokenizer(folder: Path, **values: object) -> None:
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | values))


def _dna_tokenizer(folder: Path) -> None:
    """Knows four letters, and has no token for others."""
    backend = Tokenizer(WordLevel({"A": 0, "C": 1, "G": 2, "T": 3}, unk_token="?"))  # noqa: S106 - no password
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(folder)


def _edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _replace_by_link(file: Path, target: str) -> None:
    file.unlink()
    file.symlink_to(target)


def _replace_by_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def _add_tokens(folder: Path) -> None:
    tokenizer = tiny.byte_tokenizer()
    tokenizer.add_tokens([f"<x{i}>" for i in range(20)], special_tokens=True)
    tokenizer.save_pretrained(folder)


SMALL = {"vocab_size": tiny.VOCABULARY, "pad_token_id": 257, "eos_token_id": 257, "bos_token_id": 256}
OTHERS: dict[str, Callable[[], Any]] = {
    "whisper": lambda: transformers.WhisperForConditionalGeneration(
        transformers.WhisperConfig(
            **SMALL,
            d_model=16,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            num_mel_bins=8,
            max_source_positions=8,
            max_target_positions=8,
            suppress_tokens=None,
            begin_suppress_tokens=None,
        )
    ),
    "bert": lambda: transformers.BertForMaskedLM(
        transformers.BertConfig(**SMALL, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    ),
    "t5": lambda: transformers.T5ForConditionalGeneration(
        transformers.T5Config(**SMALL, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    ),
}


@pytest.fixture(scope="module")
def files(models: Models, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Whatever the table names, all in one folder."""
    root = tmp_path_factory.mktemp("files")
    good = models.int8.read_bytes()
    with Reader(models.int8) as reader:
        plane = reader.index.by_name[UP].by_role["codes"].chunks[0].planes[0]
        index = reader.trailer.index_offset
    written = {
        "text.spq": b"hello" * 100,
        "empty.spq": b"",
        "cut.spq": good[:-50],
        "damaged.spq": good[: plane.offset + 400]
        + bytes([good[plane.offset + 400] ^ 1])
        + good[plane.offset + 401 :],
        "index.spq": good[:index] + bytes([good[index] ^ 1]) + good[index + 1 :],
        "newer.spq": good[:8] + b"\x07" + good[9:],
        "good.spq": good,
        "token.txt": b"hello <x15> world and more text to score",
        "text.txt": b"The quick brown fox jumps over the lazy dog. " * 20,
        "blank.txt": b" \n",
        "binary.txt": b"\xff\xfe\x00",
        "no.gguf": b"nope",
        "listing.spq.index.json": b'{"a": 1}',
        "rates.json": b"{",
        "decode_rates.json": json.dumps(
            DecodeRates({"rans": CodecRate(2, 1), "zstd": CodecRate(1, 1)}).to_json()
        ).encode(),
        "device_rates.json": json.dumps(DEFAULT.to_json()).encode(),
        "long.json": b" " * ((16 << 20) + 1),
    }
    for name, data in written.items():
        (root / name).write_bytes(data)
    for name, change in {
        "no_config": lambda f: (f / "config.json").unlink(),
        "bad_config": lambda f: (f / "config.json").write_text("{"),
        "unknown": lambda f: _edit_config(f, model_type="zork", architectures=["ZorkForCausalLM"]),
        "cut_weights": lambda f: os.truncate(f / "model.safetensors", 1000),
        "no_tokenizer": lambda f: [p.unlink() for p in f.glob("*token*")],
        "not_finite": lambda f: _edit_weights(f, lambda t: t[UP].view(-1).__setitem__(5, float("nan"))),
        "rag": lambda f: _edit_tokenizer(f, tokenizer_class="RagTokenizer"),
        "nested": lambda f: (f / "config.json").write_text('{"a":' * 3000 + "1" + "}" * 3000),
        "dna": _dna_tokenizer,
        "incomplete": lambda f: _edit_weights(f, lambda t: t.pop(UP)),
        "more_tokens": _add_tokens,
        "raises": lambda f: (f / "chat_template.jinja").write_text("{{ raise_exception('no\nsystem') }}"),
        "no_syntax": lambda f: (f / "chat_template.jinja").write_text("{% for"),
        "no_name": lambda f: (f / "chat_template.jinja").write_text("{{ user.name }}"),
        "no_filter": lambda f: (f / "chat_template.jinja").write_text("{{ messages | zork }}"),
        "few_tokens": lambda f: _edit_config(f, vocab_size=100),
        "no_act": lambda f: _edit_config(f, hidden_act="zork"),
        "bad_heads": lambda f: _edit_config(f, num_attention_heads=3),
        "bad_tokenizer": lambda f: (f / "tokenizer.json").write_text('{"model": 3}'),
        "bad_generation": lambda f: (f / "generation_config.json").write_text("{"),
        "odd_generation": lambda f: (f / "generation_config.json").write_text("[1]"),
        "bad_sampling": lambda f: (f / "generation_config.json").write_text('{"repetition_penalty": -1}'),
    }.items():
        _variant(models, root / name, change)
    for name in ("unknown", "no_tokenizer", "incomplete", "few_tokens"):
        spqfmt.pack(root / name, root / f"{name}.spq")
    for name in ("whisper", "bert", "t5"):
        OTHERS[name]().save_pretrained(root / name)
        tiny.byte_tokenizer().save_pretrained(root / name)
    tiny.build("gpt2", root / "gpt2")
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 538090408\n"
    page = b"<!DOCTYPE html>\n<html><body>Sign in</body></html>"
    for path in ("spq", "gguf", "spq.index.json", "txt", "jsonl"):
        (root / f"pointer.{path}").write_bytes(pointer)
    for path in ("page.spq", "page.txt"):
        (root / path).write_bytes(page)
    (root / "marked.txt").write_bytes(b"\xef\xbb\xbf" + page)
    for path in ("empty.spq.index.json", "empty.pt"):
        (root / path).touch()
    (root / "dangling.spq").symlink_to("gone")
    for path in ("folder.spq", "folder.spq.index.json"):
        (root / path).mkdir()
    os.mkfifo(root / "pipe")
    for name, change in {
        "dangling": lambda f: _replace_by_link(f / "model.safetensors", "../blobs/gone"),
        "dangling_too": lambda f: _replace_by_link(f / "tokenizer.json", "gone"),
        "piped": lambda f: _replace_by_pipe(f / "model.safetensors"),
        "pointer": lambda f: (f / "model.safetensors").write_bytes(pointer),
        "page": lambda f: (f / "config.json").write_bytes(page),
    }.items():
        _variant(models, root / name, change)
    (root / "diffusers" / "text_encoder").mkdir(parents=True)
    (root / "diffusers" / "model_index.json").write_text('{"_class_name": "SomePipeline"}')
    for cache in (root / "models--o--n", root / "hub" / "models--o--n"):
        (cache / "blobs").mkdir(parents=True)
        shutil.copytree(models.source, cache / "snapshots" / "0a1b")
    (root / "pickle").mkdir()
    (root / "pickle" / "pytorch_model.bin").write_bytes(b"PK\x03\x04 no more")
    (root / "pickle" / "config.json").write_text("{}")
    (root / "nothing").mkdir()
    shard = sorted(models.shards.parent.glob("parts-*.spq"))
    for path in (models.shards, *shard):
        shutil.copy(path, root / path.name)
    shard[1].with_name(root.name)
    shutil.copy(models.shards, root / "moved.spq.index.json")
    text = (root / "moved.spq.index.json").read_text().replace('"parts-', '"moved-')
    (root / "moved.spq.index.json").write_text(text)
    made = {"model": models.source, "shard": root / shard[0].name, "dir": root}
    return made | {path.name: path for path in root.iterdir()} | {"shards": root / models.shards.name}


def fill(text: str, files: dict[str, Path]) -> str:
    for name in sorted(files, key=len, reverse=True):
        text = text.replace(f"{{{name}}}", str(files[name]))
    return text


def check_line(done: Done, code: int) -> None:
    assert done.code == code, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("spqfmt: ")
    assert done.stderr.count("\n") == 1
    assert done.stderr.rstrip("\n").isprintable()
    assert "an error in spqfmt" not in done.stderr


@pytest.mark.parametrize(
    ("command", "code", "words"), [row[1:] for row in SITUATIONS], ids=[r[0] for r in SITUATIONS]
)
def test_one_line_says_what_happened_where_and_what_to_do(
    spq: Run, files: dict[str, Path], command: str, code: int, words: list[str]
) -> None:
    before = sorted(path.name for path in files["dir"].iterdir())
    done = spq(*("" if word == "{none}" else fill(word, files) for word in command.split()))
    check_line(done, code)
    for word in words:
        assert fill(word, files) in done.stderr
    assert sorted(path.name for path in files["dir"].iterdir()) == before


def start(
    *arguments: object, before: Callable[[], None] | None = None, variables: Mapping[str, str] | None = None
) -> Done:
    """The program as a process of its own, with something done to it before it starts, and more variables."""
    command = [sys.executable, "-P", "-c", "from spqfmt.cli.main import main; main()", *map(str, arguments)]
    environment = os.environ | (variables or {})
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, preexec_fn=before, env=environment
    )
    return Done(done.returncode, done.stdout, done.stderr)


def small_files() -> None:
    """Files may grow to 9000 bytes, as on a full disk: a real write fails in the middle."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))


@pytest.mark.parametrize(
    ("command", "out"),
    [
        ("repack {good.spq}", "o.spq"),
        ("unpack {good.spq}", "o"),
        ("inspect {good.spq} --html", "o.html"),
    ],
    ids=lambda value: value.split()[0],
)
def test_a_disk_that_takes_no_more_is_named_and_nothing_is_left(
    files: dict[str, Path], tmp_path: Path, command: str, out: str
) -> None:
    done = start(*fill(command, files).split(), tmp_path / out, before=small_files)
    check_line(done, 1)
    assert f"{tmp_path / out}: larger than a file may be here" in done.stderr
    assert not list(tmp_path.iterdir())


def common_user() -> None:
    """Root, too, obeys permissions without these two capabilities, which the program then starts without."""
    prctl = ctypes.CDLL(None).prctl
    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP


def test_a_file_and_a_folder_without_permission_are_named(files: dict[str, Path], tmp_path: Path) -> None:
    secret = tmp_path / "secret.spq"
    shutil.copy(files["good.spq"], secret)
    secret.chmod(0)
    source = tmp_path / "source"
    shutil.copytree(files["model"], source)
    (source / "model.safetensors").chmod(0)
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    for arguments, name in (
        (["verify", secret], secret),
        (["repack", files["good.spq"], locked / "o.spq"], locked / "o.spq"),
        (["pack", source, tmp_path / "o.spq"], source / "model.safetensors"),
    ):
        done = start(*arguments, before=common_user)
        check_line(done, 1)
        assert f"{name}: no permission" in done.stderr


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        ImportError("x: failed to map segment"),
        zstandard.ZstdError("cannot compress: Allocation error : not enough memory"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_memory_that_runs_out_is_said(error: Exception) -> None:
    explained = explain(error)
    assert explained is not None
    assert "not enough memory" in explained[0]
    assert explained[1] == 1


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 1 bytes."),
    ],
    ids=lambda error: type(error).__name__,
)
def test_memory_that_runs_out_is_said_with_the_file(
    spq: Run, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(transformers.LlamaForCausalLM, "forward", fail)
    for command in ("run {good.spq} --prompt x", "eval {good.spq} --text {text.txt}"):
        done = spq(*fill(command, files).split())
        check_line(done, 1)
        assert fill("{good.spq}: not enough memory", files) in done.stderr


def test_a_full_disk_is_said_with_the_name_that_was_asked_for() -> None:
    error = OSError(28, "No space left on device", "/some/.m.spq.0123abcd.part")
    explained = explain(error)
    assert explained is not None
    assert explained[0].startswith("/some/m.spq: the disk is full")


def test_control_characters_of_a_file_s_name_do_not_reach_the_terminal() -> None:
    explained = explain(FileNotFoundError(2, "No such file", "\x1b[2Jx"))
    assert explained is not None
    assert explained[0] == r"\x1b[2Jx: No such file"


def test_about_names_the_file_once_and_leaves_options_alone(tmp_path: Path) -> None:
    for message, expected in (("tensor 'w' is bad", "m: tensor 'w' is bad"), ("m: bad", "m: bad")):
        with pytest.raises(EncodeError) as caught, about(Path("m")):
            raise EncodeError(message)
        assert str(caught.value) == expected
    with pytest.raises(OptionError, match=r"^bits$"), about(Path("m")):
        raise OptionError("bits")


@pytest.mark.parametrize("value", ["abc", "0", "-1", "1.5"])
def test_a_number_of_threads_that_is_none_is_wrong_use_of_every_command(
    files: dict[str, Path], tmp_path: Path, value: str
) -> None:
    for command in ("inspect {good.spq}", "verify {good.spq}", "plan {good.spq}"):
        done = start(*fill(command, files).split(), variables={"SPQFMT_THREADS": value})
        check_line(done, 2)
        assert f"SPQFMT_THREADS={value} is not a number of threads" in done.stderr
    assert start("--version", variables={"SPQFMT_THREADS": value}).code == 0
    assert start("verify", files["good.spq"], variables={"SPQFMT_THREADS": " 2 "}).code == 0


def test_pack_says_what_a_load_will_lack(spq: Run, files: dict[str, Path], tmp_path: Path) -> None:
    done = spq("pack", files["incomplete"], tmp_path / "m.spq")
    said = f"not in the file, but LlamaForCausalLM needs, so that it cannot be loaded: {UP}\n"
    assert done.code == 0
    assert said in done.stderr
    assert json.loads(spq("pack", files["incomplete"], tmp_path / "n.spq", "--json").stdout)["missing"] == [
        UP
    ]
    assert UP in spq("run", tmp_path / "m.spq", "--prompt", "x").stderr
    whole = spq("pack", files["model"], tmp_path / "o.spq")
    assert "not in the file" not in whole.stderr


def test_an_error_of_another_library_names_it_and_the_file() -> None:
    with pytest.raises(SpqError) as caught, about(Path("m")):
        exec("{}['zork']", {"__name__": "transformers.models.llama"})  # noqa: S102 - code of that library
    assert str(caught.value) == "m: transformers cannot go on with it (KeyError: unknown 'zork')"
    with pytest.raises(KeyError), about(Path("m")):
        exec("{}['zork']", {"__name__": "spqfmt.loaders"})  # noqa: S102 - code of the package


def test_an_error_of_spqfmt_itself_is_one_line_and_a_traceback_when_asked_for(
    spq: Run, models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise ZeroDivisionError("no\nway")

    monkeypatch.setattr("spqfmt.cli.verify.verify_file", fail)
    done = spq("verify", models.int8)
    assert done.code == 1
    assert done.stderr == (
        "spqfmt: unexpected ZeroDivisionError: no way; this is an error in spqfmt, SPQFMT_DEBUG=1 shows where\n"
    )
    monkeypatch.setenv("SPQFMT_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        spq("verify", models.int8)


def test_names_that_are_no_utf_8(spq: Run, models: Models, tmp_path: Path) -> None:
    odd = os.fsdecode(b"n\xffm")
    source, packed = tmp_path / odd, tmp_path / f"{odd}.spq"
    shutil.copytree(models.source, source)
    texts = tmp_path / f"{odd}.txt"
    texts.write_text("The quick brown fox jumps over the lazy dog.")
    for command in (
        ("pack", source, packed),
        ("pack", source, tmp_path / f"{odd}2.spq", "--method", "gptq", "--samples", "2", "--seq-len", "16"),
        ("verify", packed),
        ("inspect", packed, "--reference", source),
        ("inspect", packed, "--json"),
        ("inspect", packed, "--html", tmp_path / f"{odd}.html"),
        ("diff", packed, packed),
        ("repack", packed, tmp_path / f"{odd}3.spq", "--codec", "zstd"),
        ("unpack", packed, tmp_path / f"{odd}-out"),
        ("plan", packed, "--html", tmp_path / f"{odd}2.html"),
        ("run", packed, "--prompt", "x", "--max-new-tokens", "1"),
        ("eval", source, "--text", texts, "--html", tmp_path / f"{odd}3.html"),
    ):
        done = spq(*command)
        assert done.code == 0, (command, done.stderr)
        (done.stdout + done.stderr).encode("utf-8", "backslashreplace")
    assert load((tmp_path / f"{odd}-out" / "model.safetensors").read_bytes())
    done = spq("pack", source, tmp_path / f"{odd}4.spq", "--shard-size", "60KiB")
    check_line(done, 2)
    assert r"n\udcffm4.spq: the index of shards has only UTF-8 in it" in done.stderr
    (source / "model.safetensors").write_bytes(b"no")
    done = spq("pack", source, tmp_path / "o.spq")
    check_line(done, 1)
    assert r"n\udcffm/model.safetensors: broken safetensors file" in done.stderr
