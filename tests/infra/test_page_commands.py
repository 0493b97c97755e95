"""The commands and programs on the pages of docs/ are run, on a toy; README and the tutorial have test_tutorial.py.

A line that is not run says so on the page, `not in CI: REASON`. Examples of docs/commands, which are the programs'
help, are not run where NOT_IN_CI says why.
"""

import contextlib
import io
import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tomllib
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hub_server import TOKEN, Repository, hub_in_place
from remote_server import serving
from spq_command import installed, run

import spqfmt
from spqfmt.cli.serve import serve
from spqfmt.residency.decode_rates import measure_decode_rates

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MARK = "not in CI: "
PROGRAMS = ("spqfmt", "python", "torchrun", "pip", "export", "curl", "grep", "openssl", "make")
ELSEWHERE = ("README.md", "tutorial.md", "commands")
"""Pages of docs/ that are looked at by other tests, or below."""
NOT_IN_CI = {
    "ssh": "another machine",
    "torchrun": "tests/packing/test_together.py runs it",
    "lm_eval": "600 MB; tests/loaders/test_harness.py runs it where that is installed",
    "--tasks": "600 MB; tests/loaders/test_harness.py runs it where that is installed",
    "transformers serve": "a server of another package; tests/loaders runs spqfmt exec",
    "--device cuda": "a GPU",
    "--method spqr": "docs/use.md runs it",
    "--method ecq": "seconds; tests/packing runs it",
    "--fit": "docs/use.md runs it",
    "--key key.pub": "tests/cli/test_sign.py runs it with its signature",
    "spqfmt bench": "minutes; tests/infra/test_bench.py runs it",
}
# What a toy is too small for, or would take long with.
SMALLER = [
    (r"--fit 90MiB", "--fit 900KiB --no-calibration"),
    (r"--fit-memory 75MiB", "--fit-memory 1900KiB --no-calibration"),
    (r"(--method (?:spqr|ecq).*)$", r"\1 --samples 2 --seq-len 16"),
    (r"(spqfmt (?:run|chat) .*?)(?= <| && |$)", r"\1 --max-new-tokens 2"),
    (r"(spqfmt eval .*?)(?: --max-tokens \d+)?(?= --json|$)", r"\1 --max-tokens 60"),
    (r"speed:25ms", "speed:0.01ms"),
    (r"@v1\.0", "@main"),
    (r"bits=3\.2\)", "bits=3.2, samples=2, seq_len=16)"),
    (r"Sampling\(200", "Sampling(2"),
    # The toy's tokenizer is none that GGUF has.
    (r"unpack model\.spq model\.gguf", "unpack of_gguf.spq model.gguf"),
]
TEMPLATE = "{% for message in messages %}{{ message['content'] }} {% endfor %}"


pytestmark = [
    pytest.mark.skipif(not installed("glassllm", "gguf"), reason="glassllm or gguf is not installed"),
    # huggingface_hub sends files in a way that its HTTP library no longer likes.
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),  # PEFT asks for it
    pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning"),
]


def smaller(text: str) -> str:
    """The same, for a toy."""
    for pattern, words in SMALLER:
        text = re.sub(pattern, words, text)
    return text


def lines(text: str) -> list[str]:
    """The command lines of a page: indented ones and those in shells' fences, continued ones put together."""
    blocks = re.findall(r"^```(?:sh|console)\n(.*?)^```$", text, re.M | re.S)
    outside = re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)
    indented = [line[4:] for line in re.sub(r"\\\n\s*", "", outside).splitlines() if line.startswith("    ")]
    found = [line for block in blocks for line in re.sub(r"\\\n\s*", "", block).splitlines()] + indented
    return [line.strip() for line in found if line.split(" ")[0] in PROGRAMS]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that pages read."""
    import gguf
    import glass
    import quantized
    import tiny
    import tiny_gguf

    root = tmp_path_factory.mktemp("world")
    model = root / "path" / "to" / "model"
    with tiny.quiet():
        glass.build(model)
        (model / "chat_template.jinja").write_text(TEMPLATE)
        (root / "path" / "to" / "hf_model").symlink_to(model)
        quantized.write(model, root / "path" / "to" / "fp8_model", "fp8")
        tiny_gguf.write("llama", root / "model.gguf", quantize=gguf.GGMLQuantizationType.Q4_0)
        for name, bits in (("model", 8), ("int4", 4)):
            spqfmt.pack(model, root / f"{name}.spq", method="rtn", bits=bits, group_size=None)
        spqfmt.pack(model, root / "lossless.spq")
        spqfmt.pack(root / "model.gguf", root / "of_gguf.spq")
        spqfmt.unpack(root / "model.spq", root / "packed-folder", keep_packed=True)
    (root / "laptop.json").write_text(json.dumps(measure_decode_rates().to_json()))
    key = Ed25519PrivateKey.generate()
    (root / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (root / "key.pub").write_bytes(public)
    for copy in ("other", "int8", "repacked"):
        shutil.copyfile(root / "model.spq", root / f"{copy}.spq")
    prose = (ROOT / "LICENSE").read_text()[:900]
    for name in ("text.txt", "wiki.txt"):
        (root / name).write_text(prose)
    (root / "question.txt").write_text("Who was Alice?\n")
    for name in ("questions.txt", "notes.txt"):
        (root / name).write_text("Who was Alice?\nWhere was she?\n")
    (root / "eval.json").write_text('{"perplexity": 9.5, "kl": 0.01, "tokens": 200, "stride": 100}\n')
    (root / "site").mkdir()
    shutil.copyfile(root / "model.spq", root / "site" / "model.spq")
    return root


class Shell:
    """So much of a shell as pages use, with spqfmt in the process of the tests."""

    def __init__(self, folder: Path, url: str, patch: pytest.MonkeyPatch) -> None:
        self.folder, self._url, self._patch = folder, url, patch

    def run(self, line: str) -> None:
        """Run a line of a page; raises where it fails."""
        line = re.sub(r"\s{2,}#.*", "", line).replace("https://host", self._url)
        for part in smaller(line).split(" && "):
            self._pipeline(part)

    def _pipeline(self, line: str) -> None:
        data = io.TextIOWrapper(io.BytesIO(b"Hello\n/exit\n"))
        for stage in line.split(" | "):
            words, out = shlex.split(stage), None
            for sign in ("<", ">>", ">"):
                if sign in words:
                    at = words.index(sign)
                    path = self.folder / Path(words[at + 1]).expanduser()
                    words[at : at + 2] = []
                    if sign == "<":
                        data = path.open()
                    else:
                        path.parent.mkdir(parents=True, exist_ok=True)
                        out = path
            with data:
                said = self._stage(words, data)
            if out is not None:
                out.write_bytes(said)
            data = io.TextIOWrapper(io.BytesIO(said))

    def _stage(self, words: list[str], data: io.TextIOWrapper) -> bytes:
        program, *rest = words
        if program == "export":
            for name, value in (word.split("=") for word in rest):
                self._patch.setenv(name, str(Path(value).expanduser()))
            return b""
        if program == "curl":
            with urllib.request.urlopen(rest[-1]) as answer:  # noqa: S310 - on the loopback address
                return bytes(answer.read())
        if program == "pip":
            extras = re.findall(r"spqfmt\[([\w-]+)\]", " ".join(rest))
            assert set(extras) <= set(PROJECT["optional-dependencies"])
            return b""
        if words == ["spqfmt", "verify", "-"]:  # it reads the descriptor
            words = [sys.executable, "-m", *words]
        if words[0] != "spqfmt":
            return subprocess.run(words, input=data.buffer.read(), capture_output=True, check=True).stdout
        if rest[0] == "serve":  # it does not end: it is only read here, and the test below starts one
            serve.make_context("serve", rest[1:])
            return b""
        if rest[0] in {"pack", "repack", "unpack", "pull"}:
            self._make_way(
                [word for word in rest[1:] if not word.startswith("-")][-1 if rest[0] == "pull" else 1]
            )
        self._patch.setattr(sys, "stdin", data)
        done = run(*rest)
        assert done.code == 0 or (rest[0], done.code) == ("diff", 1), (
            f"{words}\n{done.stdout[-500:]}{done.stderr}"
        )
        return done.stdout.encode()

    def _make_way(self, name: str) -> None:
        out = self.folder / name.rpartition("/")[2]
        if out.is_dir():
            shutil.rmtree(out)
        else:
            out.unlink(missing_ok=True)


@pytest.fixture
def shell(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    """In a copy of the world, with a server and a hub."""
    folder = tmp_path / "work"
    shutil.copytree(world, folder, symlinks=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(tmp_path))
    with serving(world / "site") as site, hub_in_place(monkeypatch, tmp_path / "hub") as hub:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        files = {path.name: path.read_bytes() for path in (world / "path" / "to" / "model").iterdir()}
        packed = {path.name: path.read_bytes() for path in (world / "packed-folder").iterdir()}
        hub.repositories |= {
            "owner/model": Repository(files | {"model.spq": (world / "model.spq").read_bytes()}),
            "owner/model-gguf": Repository({"model-Q4_K_M.gguf": (world / "model.gguf").read_bytes()}),
            "owner/models": Repository({"small.spq": (world / "model.spq").read_bytes()}),
            "owner/model-spq": Repository(packed),
        }
        yield Shell(folder, site.url, monkeypatch)


PAGES = sorted(path for path in DOCS.glob("*.md") if path.name not in ELSEWHERE)
COMMANDS = sorted((DOCS / "commands").glob("*.md"))
run_already: set[str] = set()


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_the_commands_of_a_page_run(page: Path, shell: Shell) -> None:
    text = page.read_text()
    for line in lines(text):
        if MARK not in line:
            shell.run(line)
            run_already.add(re.sub(r"\s{2,}#.*", "", line))
    for program in re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S):
        if "OpenAI" not in program:
            if 'spqfmt.pack("path/to/hf_model", "model.spq"' in program:
                Path("model.spq").unlink()
            exec(compile(smaller(program), str(page), "exec"), {})  # noqa: S102 - a page of this repository


@pytest.mark.parametrize("page", COMMANDS, ids=lambda path: path.stem)
def test_the_examples_of_a_command_run(page: Path, shell: Shell) -> None:
    for line in lines(page.read_text()):
        is_left_out = "[OPTIONS]" in line or any(words in line for words in NOT_IN_CI)
        if not is_left_out and line not in run_already:
            shell.run(line)


def test_every_page_is_looked_at_and_marks_give_reasons() -> None:
    marked = [line for page in PAGES for line in lines(page.read_text()) if MARK in line]
    assert all(len(line.partition(MARK)[2]) > 3 for line in marked)
    assert 0 < len(marked) < 40
    assert sum(len(lines(page.read_text())) for page in PAGES) > len(marked) + 30
    names = {path.name for path in PAGES} | set(ELSEWHERE)
    assert {path.name for path in DOCS.iterdir() if path.suffix == ".md" or path.is_dir()} <= names | {
        "images",
        "man",
    }
    listed = "\n".join(line for page in COMMANDS for line in lines(page.read_text()))
    assert all(words in listed for words in NOT_IN_CI)


@pytest.mark.skipif(
    not installed("openai", "starlette", "uvicorn"), reason="openai or the server is not installed"
)
def test_the_server_of_its_page_answers(shell: Shell) -> None:
    """The one with a key, on a free port, asked by the page's program."""
    text = (DOCS / "serving.md").read_text()
    [program] = re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S)
    [words] = [shlex.split(line)[1:] for line in lines(text) if "--api-key" in line]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    words[words.index("--port") + 1] = port
    command = [sys.executable, "-m", "spqfmt", *words]
    with subprocess.Popen(command, cwd=shell.folder, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            assert any("http://" in line for line in server.stderr)
            asked = program.replace("127.0.0.1:8080", f"127.0.0.1:{port}")
            asked = asked.replace("stream=True", "stream=True, max_tokens=3, temperature=0")
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(asked, "serving.md", "exec"), {})  # noqa: S102 - a page of this repository
            assert printed.getvalue()
        finally:
            server.terminate()
