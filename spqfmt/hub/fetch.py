"""Files of a model that are on a hub, or in the cache that huggingface_hub keeps: only those that are needed."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from spqfmt.errors import OptionError, RemoteError
from spqfmt.hub.failures import NoAnswerError, hub_errors, need_library
from spqfmt.hub.names import HubName
from spqfmt.packed_names import packed_models

_SECONDS = 20.0
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
_OTHERS = (
    ".gguf",
    ".h5",
    ".msgpack",
    ".onnx",
    ".tflite",
    ".ot",
    ".npz",
    ".parquet",
    ".zip",
    ".tar",
    ".gz",
    ".spq",
)
_PICTURES = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".mp4", ".wav", ".svg", ".pdf")
_PIPELINE = "model_index.json"
_PACKED = (".spq", ".spq.index.json")


def fetch_source(name: HubName, *, shows: bool = False) -> Path:
    """The folder in the cache that holds the model, or its one GGUF file; fetched where something is missing.

    Without a network what the cache has is taken. Raises RemoteError where it has not all that is needed, OptionError
    for a repository without weights, or with several GGUF files and none named.
    """
    need_library()
    from huggingface_hub import snapshot_download

    with quiet_hub(shows=shows):
        try:
            with hub_errors(name):
                names = needed_files(name, listed(name))
                patterns = _exactly(names)
                folder = Path(
                    snapshot_download(name.repository, revision=name.revision, allow_patterns=patterns)
                )
        except NoAnswerError as error:
            with hub_errors(name):
                folder, names = _of_cache(name, error)
    # A path in the cache may be a link: the file is where its name is.
    return folder / names[0] if names[0].endswith(".gguf") else folder


def fetch_packed(name: HubName, folder: Path, *, shows: bool = False) -> list[str]:
    """Write the packed models of a repository, and the small files beside them, to `folder`; names of the models.

    What is there already and unchanged is not fetched again. Raises RemoteError, and OptionError for a repository
    without a packed model.
    """
    need_library()
    from huggingface_hub import snapshot_download

    with quiet_hub(shows=shows), hub_errors(name):
        names = packed_files(name, listed(name))
        snapshot_download(
            name.repository, revision=name.revision, allow_patterns=_exactly(names), local_dir=folder
        )
    return [name.file] if name.file else packed_models(names)


def needed_files(name: HubName, names: Sequence[str]) -> list[str]:
    """Names of the files that packing reads, weights first. Raises OptionError where there are no weights."""
    if name.file:
        if name.file not in names:
            raise RemoteError(f"{name}: the model has no such file")
        return [name.file]
    small = [n for n in names if "/" not in n and not n.lower().endswith((*_WEIGHTS, *_OTHERS, *_PICTURES))]
    if _PIPELINE in names:
        inside = [n for n in names if n.count("/") == 1 and not n.lower().endswith((*_OTHERS, *_PICTURES))]
        plain = [n for n in inside if not re.search(r"\.(fp16|bf16|non_ema)\.|\.(bin|pt|pth|ckpt)$", n)]
        return [*plain, *small]
    root = [n for n in names if "/" not in n]
    weights = [n for n in root if n.endswith(".safetensors")]
    if any(n.startswith("model") for n in weights):  # the same once more, in another library's layout
        weights = [n for n in weights if not n.startswith("consolidated")]
    weights = weights or [n for n in root if n.endswith(_WEIGHTS) and not n.startswith("training_args")]
    if weights:
        return [*weights, *small]
    blocks = [n for n in names if n.endswith(".gguf")]
    if len(blocks) > 1:
        shown = ", ".join(sorted(blocks)[:4])
        raise OptionError(f"{name}: {len(blocks)} GGUF files; give one as {name}/FILE ({shown})")
    if not blocks and packed_models(root):
        raise OptionError(f"{name}: is packed already; `spqfmt pull {name}` fetches it")
    if not blocks:
        raise OptionError(f"{name}: holds no safetensors, GGUF or torch's files of weights")
    return blocks


def packed_files(name: HubName, names: Sequence[str]) -> list[str]:
    """Names of packed models, their shards, and the small files. Raises OptionError where nothing is packed."""
    packed = [n for n in names if n.endswith(_PACKED) and "/" not in n]
    if name.file:
        stem = name.file.removesuffix(".spq.index.json").removesuffix(".spq")
        packed = [
            n for n in packed if n == name.file or re.fullmatch(rf"{re.escape(stem)}-\d+-of-\d+\.spq", n)
        ]
    if not packed:
        raise OptionError(
            f"{name}: holds no packed model; `spqfmt pack {name.repository} OUT.spq` makes one of it"
        )
    left_out = (*_WEIGHTS, *_OTHERS, *_PACKED, ".py")
    return [
        *packed,
        *(n for n in names if "/" not in n and not n.startswith(".") and not n.endswith(left_out)),
    ]


def listed(name: HubName) -> list[str]:
    """Names of all files of the repository."""
    from huggingface_hub import HfApi

    info = HfApi().model_info(name.repository, revision=name.revision, timeout=_SECONDS)
    return [sibling.rfilename for sibling in info.siblings or []]


def _of_cache(name: HubName, error: NoAnswerError) -> tuple[Path, list[str]]:
    """The folder of the cache, and what of it is needed. Raises RemoteError where it has not all of that."""
    from huggingface_hub import get_cached_repo_tree, snapshot_download
    from huggingface_hub.errors import CachedRepoTreeNotFoundError, LocalEntryNotFoundError

    names: list[str] | None = None
    try:
        with suppress(CachedRepoTreeNotFoundError):
            tree = get_cached_repo_tree(name.repository, revision=name.revision)
            names = needed_files(name, [entry.path for entry in tree])
        folder = Path(
            snapshot_download(
                name.repository,
                revision=name.revision,
                local_files_only=True,
                allow_patterns=None if names is None else _exactly(names),
            )
        )
    except LocalEntryNotFoundError:
        raise RemoteError(f"{error}; and the cache of huggingface_hub has not all that is needed") from None
    return folder, names or needed_files(name, [str(file.relative_to(folder)) for file in folder.rglob("*")])


def _exactly(names: Sequence[str]) -> list[str]:
    """Patterns that match these names alone."""
    return [re.sub(r"([*?\[])", r"[\1]", name) for name in names]


@contextmanager
def quiet_hub(*, shows: bool) -> Iterator[None]:
    """huggingface_hub's own bars, or silence; its warnings are said by what is raised."""
    utils: Any = importlib.import_module("huggingface_hub.utils")
    was, level = utils.are_progress_bars_disabled(), utils.logging.get_verbosity()
    utils.logging.set_verbosity_error()
    if not shows and not was:
        utils.disable_progress_bars()
    try:
        yield
    finally:
        utils.logging.set_verbosity(level)
        if not shows and not was:
            utils.enable_progress_bars()
