"""An open file format for compressed language models.

import spqfmt
spqfmt.pack("path/to/hf_model", "m.spq", method="rtn", bits=8)
with spqfmt.open("m.spq") as f:
    f["model.layers.0.mlp.up_proj.weight"].info
model, tokenizer = spqfmt.load_model("m.spq")
model = AutoModelForCausalLM.from_pretrained("folder_with_m.spq")  # transformers', once spqfmt is imported
"""

import importlib
from typing import TYPE_CHECKING

from spqfmt.errors import (
    BackendError,
    ChecksumError,
    CorruptError,
    EncodeError,
    FormatError,
    ImporterError,
    LimitError,
    MemoryBudgetError,
    NotSpqError,
    OptionError,
    RemoteError,
    SpqError,
    TruncatedError,
    UnsupportedError,
    UnusedTensorsWarning,
    needed_by,
)
from spqfmt.transformers_hook import install as _install_hook

if TYPE_CHECKING:
    from spqfmt.kernels.backend import backend
    from spqfmt.loaders.model import load_model
    from spqfmt.packing.pack import pack
    from spqfmt.packing.report import PackReport
    from spqfmt.reading.diff import diff_files as diff
    from spqfmt.reading.file import SpqFile, TensorHandle
    from spqfmt.reading.file import open_file as open  # noqa: A004
    from spqfmt.reading.report import inspect_file as inspect
    from spqfmt.reading.unpack import unpack
    from spqfmt.reading.verify import verify_file as verify
    from spqfmt.rewriting.repack import RepackReport, repack
    from spqfmt.version import __version__

# Names that are imported when first used: torch takes seconds, and reading a file's index needs none of it. The version
# is asked of the installation, which imports as much as all else that a command starts with.
_LAZY = {
    "PackReport": ("spqfmt.packing.pack", "PackReport"),
    "RepackReport": ("spqfmt.rewriting.repack", "RepackReport"),
    "SpqFile": ("spqfmt.reading.file", "SpqFile"),
    "TensorHandle": ("spqfmt.reading.file", "TensorHandle"),
    "__version__": ("spqfmt.version", "__version__"),
    "backend": ("spqfmt.kernels.backend", "backend"),
    "diff": ("spqfmt.reading.diff", "diff_files"),
    "inspect": ("spqfmt.reading.report", "inspect_file"),
    "load_model": ("spqfmt.loaders.model", "load_model"),
    "open": ("spqfmt.reading.file", "open_file"),
    "pack": ("spqfmt.packing.pack", "pack"),
    "repack": ("spqfmt.rewriting.repack", "repack"),
    "unpack": ("spqfmt.reading.unpack", "unpack"),
    "verify": ("spqfmt.reading.verify", "verify_file"),
}

__all__ = [
    "BackendError",
    "ChecksumError",
    "CorruptError",
    "EncodeError",
    "FormatError",
    "ImporterError",
    "LimitError",
    "MemoryBudgetError",
    "NotSpqError",
    "OptionError",
    "PackReport",
    "RemoteError",
    "RepackReport",
    "SpqError",
    "SpqFile",
    "TensorHandle",
    "TruncatedError",
    "UnsupportedError",
    "UnusedTensorsWarning",
    "__version__",
    "backend",
    "diff",
    "inspect",
    "load_model",
    "open",
    "pack",
    "repack",
    "unpack",
    "verify",
]

_install_hook()


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _LAZY[name]
    with needed_by(f"spqfmt.{name}"):
        value = getattr(importlib.import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
