"""`pack OWNER/NAME`, `push` and `pull` against a hub on the loopback address, through huggingface_hub itself."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import spq_command
import torch
from hub_server import TOKEN, Hub, Repository, hub_in_place

import spqfmt
from spqfmt.hub import failures
from spqfmt.hub.fetch import needed_files, packed_files
from spqfmt.hub.names import HubName, hub_name

# huggingface_hub sends files in a way that its HTTP library no longer likes.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
NAME = "me/model"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub, asked without a token and with a cache of its own."""
    with hub_in_place(monkeypatch, tmp_path) as served:
        yield served


@pytest.fixture
def token(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hub.url
    monkeypatch.setenv("HF_TOKEN", TOKEN)


@pytest.fixture(scope="module")
def packed(tiny_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("packed") / "m.spq"
    spqfmt.pack(tiny_folder("llama"), path, method="rtn", bits=4, group_size=16)
    return path


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and not file.relative_to(folder).as_posix().startswith(".cache")
    }


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("owner/name", HubName("owner/name")),
        ("owner/na.me-1_2@v1.0", HubName("owner/na.me-1_2", "v1.0")),
        ("hf://owner/name@refs%2Fpr%2F1/a/b.gguf", HubName("owner/name", "refs/pr/1", "a/b.gguf")),
        ("owner/name/m.spq", HubName("owner/name", None, "m.spq")),
        ("name", None),
        ("./owner/name", None),
        ("/owner/name", None),
        ("owner/../name", None),
        ("owner/name@", None),
        ("owner/na me", None),
        ("owner/name/", None),
        ("https://host/owner/name", None),
    ],
)
def test_names(text: str, found: HubName | None) -> None:
    assert hub_name(text) == found
    if found and not text.startswith("hf:"):
        assert str(found) == text


def test_only_what_is_needed_is_fetched() -> None:
    small = ["config.json", "README.md", "LICENSE", "tokenizer.model"]
    others = ["onnx/model.onnx", "original/model.safetensors", "a.png", "flax_model.msgpack", "m.gguf"]
    name = HubName("o/n")

    def needed(*names: str) -> set[str]:
        return set(needed_files(name, [*small, *others, *names])) - set(small)

    assert needed("model.safetensors", "pytorch_model.bin") == {"model.safetensors"}
    sharded = {"model-1-of-2.safetensors", "model-2-of-2.safetensors", "model.safetensors.index.json"}
    assert needed(*sharded, "consolidated.safetensors") == sharded
    assert needed("consolidated.safetensors") == {"consolidated.safetensors"}
    assert needed("pytorch_model.bin", "training_args.bin") == {"pytorch_model.bin"}
    assert needed() == {"m.gguf"}
    assert needed_files(HubName("o/n", None, "m.gguf"), others) == ["m.gguf"]
    pipeline = [
        "model_index.json",
        "unet/config.json",
        "unet/x.safetensors",
        "unet/x.fp16.safetensors",
        "unet/x.bin",
    ]
    assert needed(*pipeline) >= set(pipeline[:3])
    assert not needed(*pipeline) & set(pipeline[3:])
    with pytest.raises(spqfmt.OptionError, match=r"2 GGUF files; give one as o/n/FILE \(a.gguf, b.gguf\)"):
        needed_files(name, ["a.gguf", "b.gguf"])
    with pytest.raises(spqfmt.OptionError, match="holds no safetensors"):
        needed_files(name, small)
    shards = ["a-1-of-2.spq", "a-2-of-2.spq", "a.spq.index.json"]
    every = [*shards, "b.spq", "config.json", "model.safetensors", "code.py", ".gitattributes"]
    assert packed_files(name, every) == [*shards, "b.spq", "config.json"]
    assert packed_files(HubName("o/n", None, "a.spq.index.json"), every) == [*shards, "config.json"]


def test_a_model_on_a_hub_is_packed(
    hub: Hub, tiny_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = files_of(tiny_folder("llama"))
    more = {"README.md": b"# Mine", "onnx/model.onnx": b"0" * 99, "pytorch_model.bin": b"0"}
    hub.repositories[NAME] = Repository(files | more)
    done = spq_command.run("pack", f"{NAME}@v1", tmp_path / "m.spq", "--quiet")
    assert (done.code, done.stderr) == (0, "")
    assert not [line for line in hub.asked if "onnx" in line or "pytorch" in line]
    with spqfmt.open(tmp_path / "m.spq") as file:
        assert file.metadata["base_model"] == NAME
    spqfmt.pack(tiny_folder("llama"), tmp_path / "due.spq")
    for name, value in _values(tmp_path / "due.spq").items():
        assert torch.equal(_values(tmp_path / "m.spq")[name], value)
    # Once more without a network: the cache has it.
    monkeypatch.setattr(failures_constants(), "HF_HUB_OFFLINE", True)
    n_asked = len(hub.asked)
    done = spq_command.run("pack", f"{NAME}@v1", tmp_path / "again.spq", "--quiet")
    assert (done.code, done.stderr, len(hub.asked)) == (0, "", n_asked)
    spqfmt.pack(f"{NAME}@v1", tmp_path / "in-python.spq")
    for other in ("again", "in-python"):
        assert (tmp_path / f"{other}.spq").read_bytes() == (tmp_path / "m.spq").read_bytes()
    done = spq_command.run("pack", "me/other", tmp_path / "other.spq", "--quiet")
    assert (done.code, done.stderr.count("\n")) == (1, 1)
    assert "me/other: HF_HUB_OFFLINE is set; and the cache of huggingface_hub has not all" in done.stderr
    with pytest.raises(spqfmt.RemoteError, match="me/other: HF_HUB_OFFLINE is set"):
        spqfmt.pack("me/other", tmp_path / "other.spq")
    # A Path is a path, and so is what has a folder here.
    (tmp_path / "me").mkdir()
    monkeypatch.chdir(tmp_path)
    for path in (Path("me/other"), "me/other"):
        with pytest.raises(spqfmt.ImporterError, match="me/other: no such file or folder"):
            spqfmt.pack(path, tmp_path / "other.spq")
    assert not (tmp_path / "other.spq").exists()


def failures_constants() -> object:
    from huggingface_hub import constants

    return constants


def _values(path: Path) -> dict[str, torch.Tensor]:
    with spqfmt.open(path) as file:
        return {name: file.read(name) for name in file}


@pytest.mark.usefixtures("token")
def test_a_file_goes_there_and_comes_back(
    hub: Hub, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluation = tmp_path / "eval.json"
    evaluation.write_text(json.dumps({"perplexity": 7.25, "kl": 0.0125, "tokens": 99, "stride": 9}))
    done = spq_command.run("push", packed, NAME, "--private", "--evaluation", evaluation)
    assert done.code == 0, done.stderr
    repository = hub.repositories[NAME]
    assert done.stderr.startswith(f"{hub.url}/{NAME}/commit/{repository.commit}: 2 files, ")
    assert (repository.private, hub.messages) == (True, ["Upload m.spq with spqfmt"])
    assert repository.files["m.spq"] == packed.read_bytes()
    card = repository.files["README.md"].decode()
    for said in ("library_name: spqfmt\n", "- rtn\n", "| KL to the reference | 0.012500 nats a token |",
                 f"spqfmt pull {NAME} model", 'load_model("m.spq")'):  # fmt: skip
        assert said in card
    # What is written there stays, but for the section.
    repository.files["README.md"] = b"---\nlicense: mit\ntags: [mine]\n---\n# Hello\n" + card.encode()
    assert spq_command.run("push", packed, NAME, "--quiet", "--message", "Again").code == 0
    again = repository.files["README.md"].decode()
    assert again.startswith(
        "---\nlicense: mit\ntags:\n- mine\n- spqfmt\n- rtn\nlibrary_name: spqfmt\n---\n\n# Hello\n"
    )
    assert again.count("## Packed by spqfmt") == 1
    monkeypatch.chdir(tmp_path)
    done = spq_command.run("pull", NAME)
    assert (done.code, done.stderr) == (0, "model/m.spq: sound\n")
    assert files_of(tmp_path / "model") == repository.files
    # Unchanged files are not fetched again; folders that are something else are not touched.
    hub.asked.clear()
    assert spq_command.run("pull", NAME, "--quiet").code == 0
    assert not [line for line in hub.asked if line.startswith("GET") and "/resolve/" in line]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/a").write_text("")
    done = spq_command.run("pull", NAME, tmp_path / "mine")
    assert (done.code, "is there already" in done.stderr) == (2, True)


@pytest.mark.usefixtures("token")
def test_a_folder_goes_there(hub: Hub, packed: Path, tmp_path: Path) -> None:
    spqfmt.unpack(packed, tmp_path / "folder", keep_packed=True)
    before = (tmp_path / "folder/README.md").read_text()
    assert "library_name: spqfmt" in before
    assert spq_command.run("push", tmp_path / "folder", NAME, "--quiet").code == 0
    sent, here = hub.repositories[NAME].files, files_of(tmp_path / "folder")
    assert sent.keys() == here.keys() >= {"m.spq", "config.json", "tokenizer.json"}
    assert {name for name in sent if sent[name] != here[name]} == {"README.md"}  # it says where it is
    shutil.copy(packed, tmp_path / "folder/second.spq")
    done = spq_command.run("push", tmp_path / "folder", NAME)
    assert (done.code, "2 packed models in it" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    ("command", "case", "code", "said"),
    [
        ("push {m} me/model", "no token", 1, "me/model: no token for {url}; `hf auth login` keeps one"),
        ("push {m} me/model", "wrong token", 1, "me/model: {url} wants a token that it knows"),
        ("push {m} me/model", "forbidden", 1, "me/model: the token may not do this at {url}"),
        ("push {m} model", "", 2, "model: no model on a hub; give OWNER/NAME"),
        ("pull me/none {out}", "", 1, "me/none: {url} has no such model, or shows it to others only"),
        ("pull me/secret {out}", "", 1, "me/secret: {url} has no such model, or shows it to others only"),
        ("pull me/gated {out}", "", 1, "me/gated: its owner gives access at {url}/me/gated"),
        ("pull me/full@v9 {out}", "", 1, "me/full@v9: {url} has the model, and no revision 'v9' of it"),
        ("pull me/full/other.spq {out}", "", 2, "me/full/other.spq: holds no packed model"),
        ("pull me/plain {out}", "", 2, "me/plain: holds no packed model; `spqfmt pack me/plain OUT.spq` makes"),
        ("pull me/full {out}", "broken", 1, "me/full: no whole answer from {url}"),
        ("pull me/full {out}", "gone", 1, "me/full: no whole answer from {url}"),
        ("pull me/full {out}", "page", 1, "me/full: no whole answer from {url}"),
        ("pull me/damaged {out}", "", 1, "checksum"),
        ("pack me/none {out}.spq", "", 1, "me/none: {url} has no such model, or shows it to others only"),
        ("pack me/full {out}.spq", "", 2, "me/full: is packed already; `spqfmt pull me/full` fetches it"),
        ("pack me/plain {out}.spq", "gone", 1, "and the cache of huggingface_hub has not all that is needed"),
    ],
)  # fmt: skip
def test_what_goes_wrong_is_one_line(
    hub: Hub,
    packed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    case: str,
    code: int,
    said: str,
) -> None:
    data = packed.read_bytes()
    middle = len(data) // 2
    damaged = data[:middle] + bytes([data[middle] ^ 255]) + data[middle + 1 :]
    hub.repositories = {
        "me/full": Repository({"m.spq": data}),
        "me/damaged": Repository({"m.spq": damaged}),
        "me/plain": Repository({"model.safetensors": b"", "config.json": b"{}"}),
        "me/secret": Repository({"m.spq": data}, private=True),
        "me/gated": Repository({"m.spq": data}, gated=True),
    }
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    if case in {"wrong token", "forbidden"}:
        monkeypatch.setenv("HF_TOKEN", "hf_bad" if case == "wrong token" else TOKEN)
    hub.forbids, hub.page, hub.breaks = (
        case == "forbidden",
        case == "page",
        "m.spq" if case == "broken" else "",
    )
    if case == "gone":
        unused = "http://127.0.0.1:9"
        monkeypatch.setattr(failures_constants(), "ENDPOINT", unused)
        hub.url = unused
    done = spq_command.run(*command.format(m=packed, out=tmp_path / "out").split())
    assert (done.code, done.stdout) == (code, "")
    assert said.format(url=hub.url) in done.stderr
    asked = command.split()[2 if command.startswith("push") else 1]
    assert said == "checksum" or done.stderr.startswith(f"spqfmt: {asked}: ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out/m.spq").exists() or (case == "" and "damaged" in command)


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(spqfmt.OptionError, match="pip install huggingface_hub"):
        failures.need_library()


def test_paths_that_are_misspelt_are_not_asked_for_on_a_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    done = spq_command.run("pack", "here/none", "m.spq")
    assert (done.code, "here/none: no such file or folder" in done.stderr) == (2, True)
