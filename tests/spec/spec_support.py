"""Both readers behind one face: bytes of a file -> its content, or an error with a kind of FORMAT.md 1.2."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import reference_decoder
import torch
from spq_reference.errors import SpqRefError

import spqfmt
from spqfmt import errors
from spqfmt.wire import DTYPES

ROOT = Path(__file__).resolve().parents[2]
VECTORS = ROOT / "spec" / "vectors"
VALID = json.loads((VECTORS / "valid" / "manifest.json").read_text(encoding="utf-8"))
INVALID = json.loads((VECTORS / "invalid" / "manifest.json").read_text(encoding="utf-8"))

VECTORS_1_1 = VECTORS / "1.1"
VALID_1_1 = json.loads((VECTORS_1_1 / "valid" / "manifest.json").read_text(encoding="utf-8"))
INVALID_1_1 = json.loads((VECTORS_1_1 / "invalid" / "manifest.json").read_text(encoding="utf-8"))

FORMAT_ERROR = errors.FormatError
KINDS = {
    errors.NotSpqError: "not spq",
    errors.TruncatedError: "truncated",
    errors.ChecksumError: "checksum",
    errors.LimitError: "limit",
    errors.UnsupportedError: "unsupported",
    errors.CorruptError: "corrupt",
}


def words(text: str) -> str:
    """Return the text with every run of white space as one space."""
    return " ".join(text.split())


FORMAT = (ROOT / "FORMAT.md").read_text(encoding="utf-8")
FORMAT_WORDS = words(FORMAT)
ORIGINS = "\n\n".join(
    path.read_text(encoding="utf-8") for path in sorted((ROOT / "spec" / "origins").glob("*.md"))
)
ORIGINS_WORDS = words(ORIGINS)


def rules() -> list[str]:
    """Return the sentences and table rows of FORMAT.md and spec/origins that say MUST."""
    whole = f"{FORMAT}\n\n{ORIGINS}"
    text = re.sub(r"^```.*?^```|^#.*?$|<!--.*?-->|^\|[-|]+\|$", "", whole, flags=re.DOTALL | re.MULTILINE)
    return [part for part in re.split(r"(?<=[.:|]) (?=[A-Z`|*-])", words(text)) if "MUST" in part]


@dataclass(frozen=True)
class Content:
    """What a file holds: shape, dtype and bytes of each tensor; the assets."""

    tensors: dict[str, tuple[tuple[int, ...], str, bytes]]
    assets: dict[str, bytes]


class RefusedError(Exception):
    """A reader said that the file is bad. Any other exception of a reader passes through and fails the test."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind = kind


def by_reference(path: Path) -> Content:
    """Read a whole file with the reference decoder."""
    try:
        decoded = reference_decoder.decode(path.read_bytes())
    except SpqRefError as error:
        raise RefusedError(error.kind, str(error)) from error
    tensors = {name: (tensor.shape, tensor.dtype, tensor.data) for name, tensor in decoded.tensors.items()}
    return Content(tensors, decoded.assets)


def by_product(path: Path) -> Content:
    """Verify and read a whole file with the package."""
    try:
        spqfmt.verify(path)
        with spqfmt.open(path) as file:
            tensors = {}
            for name, handle in file.items():
                info = handle.info
                if DTYPES[info.dtype].bits < 8:
                    data = handle.read_bytes()
                else:
                    tensor = file.read(name).contiguous().flatten()
                    data = tensor.view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
                tensors[name] = (tuple(info.shape), info.dtype, data)
            assets = dict(file.assets)
    except errors.FormatError as error:
        raise RefusedError(KINDS[type(error)], str(error)) from error
    return Content(tensors, assets)


READERS: dict[str, Callable[[Path], Content]] = {"reference": by_reference, "product": by_product}
