"""A model card, README.md, that says what is packed: keys for the hub above, a section below, the rest as it was.

Keys are edited as lines, not as YAML: what somebody wrote stays as they wrote it, and no library is needed.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spqfmt.container.model import OpenModel, open_model
from spqfmt.errors import OptionError
from spqfmt.packed_names import packed_models

CARD = "README.md"
_BEGIN, _END = "<!-- spqfmt: begin -->", "<!-- spqfmt: end -->"
_SECTION = re.compile(rf"\n*{re.escape(_BEGIN)}.*?{re.escape(_END)}\n*", re.DOTALL)
_FRONT = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)
_KEY = re.compile(r"([A-Za-z_][\w-]*)[ \t]*:(?:[ \t]+(.*))?$")
_KEEPING = ("", "lossless", "keep")


def card_of(
    model: OpenModel,
    names: Sequence[str],
    card: str | None,
    *,
    repository: str = "",
    evaluation: Mapping[str, Any] | None = None,
) -> str:
    """The card of a packed model whose files have these names, made of `card`, its source's own or an earlier one.

    `repository` is where it will be, as owner/name; `evaluation` what `spqfmt eval --json` printed of it. Raises
    OptionError for an evaluation that has no perplexity.
    """
    metadata = model.index.metadata
    method = metadata.get("method", "")
    base = metadata.get("base_model", "")
    keys: dict[str, str] = {"library_name": "spqfmt"}
    if base:
        keys["base_model"] = base
    if base and method not in _KEEPING:
        keys["base_model_relation"] = "quantized"
    tags = ["spqfmt", *([method] if method else [])]
    facts = _facts(model, names, evaluation or {})
    table = "\n".join(f"| {key} | {value} |" for key, value in facts.items())
    [name, *_] = packed_models(names)
    get = f"spqfmt pull {repository} model && cd model\n    " if repository else ""
    section = f"""{_BEGIN}
## Packed by spqfmt

| | |
|---|---|
{table}

    pip install spqfmt
    {get}spqfmt run {name} --prompt "Once upon a time"

```python
import spqfmt

model, tokenizer = spqfmt.load_model("{name}")  # memory="2GiB" holds a ceiling
```
{_END}
"""
    return with_section(card or "", keys, tags, section)


def with_section(card: str, keys: Mapping[str, str], tags: Sequence[str], section: str) -> str:
    """The card with these keys, these tags beside its own, and the section in place of an earlier one or at its end."""
    front = _FRONT.match(card)
    body = card[front.end() :] if front else card.removeprefix("\ufeff")
    blocks = _blocks(front[1] if front else "")
    for key, value in keys.items():
        blocks[key] = [f"{key}: {_scalar(value)}"]
    own = _values(blocks.get("tags", []))
    blocks["tags"] = ["tags:", *(f"- {tag}" for tag in dict.fromkeys([*own, *map(_scalar, tags)]))]
    lines = "\n".join(line for block in blocks.values() for line in block)
    rest = _SECTION.sub("\n", body).strip("\n")
    return f"---\n{lines}\n---\n\n" + (f"{rest}\n\n" if rest else "") + section


def _blocks(front: str) -> dict[str, list[str]]:
    """Lines of the front by the key that they belong to; those before the first one by an empty one."""
    blocks: dict[str, list[str]] = {}
    key = ""
    for line in front.splitlines():
        found = _KEY.match(line)
        key = found[1] if found else key
        blocks.setdefault(key, []).append(line)
    return blocks


def _values(block: Sequence[str]) -> list[str]:
    """Items of a list, in a row or one below the other, as they are written."""
    if not block:
        return []
    found = _KEY.match(block[0])
    inline = (found[2] or "").strip() if found else ""
    if inline:
        items = inline.strip("[]").split(",") if inline.startswith("[") else [inline]
    else:
        items = [line.strip().removeprefix("-") for line in block[1:] if line.strip().startswith("-")]
    return [item.strip() for item in items if item.strip()]


def _scalar(value: str) -> str:
    """A text as YAML has it; JSON's strings are YAML's."""
    return value if re.fullmatch(r"[A-Za-z][\w./-]*", value, re.ASCII) else json.dumps(value)


def _facts(model: OpenModel, names: Sequence[str], evaluation: Mapping[str, Any]) -> dict[str, str]:
    metadata = model.index.metadata
    stored = [record for record in model.tensors.values() if record.tied_to is None]
    n_weights = sum(math.prod(record.shape) for record in stored)
    source = sum(record.source_bytes for record in stored)
    options = json.loads(metadata.get("method_options") or "{}")
    said = ", ".join(f"{key} {value}" for key, value in options.items())
    method = metadata.get("method") or "several"
    facts = {
        "file" if len(names) == 1 else "files": ", ".join(f"`{name}`" for name in packed_models(names)),
        "size": f"{model.n_bytes / 1e6:,.1f} MB, of {source / 1e6:,.1f} MB of weights",
        "method": f"{method}{f' ({said})' if said else ''}",
        "bits a weight": f"{8 * model.n_bytes / max(1, n_weights):.2f}, all that is stored counted",
        "weights": f"{n_weights:,}",
    }
    if metadata.get("base_model"):
        facts["source"] = metadata["base_model"]
    if evaluation:
        facts |= _measured(evaluation)
    return {key: _cell(value) for key, value in facts.items()}


def _measured(evaluation: Mapping[str, Any]) -> dict[str, str]:
    perplexity, kl, tokens = (evaluation.get(key) for key in ("perplexity", "kl", "tokens"))
    if not isinstance(perplexity, int | float) or not isinstance(tokens, int):
        raise OptionError("no result of `spqfmt eval --json`: it lacks perplexity or tokens")
    found = {"perplexity": f"{perplexity:.4f} over {tokens} tokens"}
    if isinstance(kl, int | float):
        found["KL to the reference"] = f"{kl:.6f} nats a token"
    return found


def _cell(text: str) -> str:
    """A cell of a table: what would end it is shown."""
    return " ".join(text.split()).replace("|", "\\|")


class PackedFiles:
    """What is sent of a packed model: a .spq file or its shards, or a folder's files, by their names there."""

    def __init__(self, path: Path) -> None:
        """Raise OptionError for a folder without a packed model or with several, FormatError for the file."""
        folder = path if path.is_dir() else None
        names = sorted(file.name for file in path.iterdir() if file.is_file()) if folder else [path.name]
        found = packed_models([name for name in names if not name.startswith(".")])
        if len(found) != 1:
            what = "no packed model" if not found else f"{len(found)} packed models"
            raise OptionError(
                f"{path}: {what} in it; give the file, or a folder of `spqfmt unpack --keep-packed`"
            )
        self._path = (folder / found[0]) if folder else path
        with open_model(self._path) as model:
            model.refuse_lone_shard()
            shards = [reader.path for reader in model.readers]
        every = [self._path, *(shard for shard in shards if shard != self._path)]
        if folder:
            every += [folder / name for name in names if not name.startswith(".")]
        self.files: dict[str, Path] = {file.name: file for file in every}
        """The files by name, without the card."""
        self._card = self.files.pop(CARD, None)
        self.names = tuple(file.name for file in dict.fromkeys([self._path, *shards]))

    def card(self, there: str | None, *, repository: str, evaluation: Mapping[str, Any] | None = None) -> str:
        """The card, made of that which is there already, else the folder's, else the source's own."""
        with open_model(self._path) as model:
            own = there
            if own is None and self._card is not None:
                own = self._card.read_text("utf-8", "replace")
            if own is None and CARD in model.asset_names:
                own = model.read_asset(CARD).decode("utf-8", "replace")
            return card_of(model, self.names, own, repository=repository, evaluation=evaluation)
