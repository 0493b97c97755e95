"""A model's small files in a folder: transformers reads config and tokenizer from nowhere else."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from spqfmt.calibration.harmless import harmless
from spqfmt.errors import CorruptError

# Read by transformers and never code: what else a file may carry stays out of the folder.
_SUFFIXES = frozenset({".json", ".txt", ".model", ".jinja", ".tiktoken"})


@contextmanager
def asset_folder(assets: Mapping[str, bytes]) -> Iterator[Path]:
    """A private temporary folder with `assets`, gone when the context ends.

    Only kinds of files that hold data are written, without the settings that lead elsewhere (see `harmless`). Raises
    CorruptError for a name that would leave the folder, UnsupportedError for such a setting that cannot be left out.
    """
    with tempfile.TemporaryDirectory(prefix="spqfmt-") as name:
        folder = Path(name)
        for asset, data in assets.items():
            path = PurePosixPath(asset)
            if path.is_absolute() or ".." in path.parts or not path.parts:
                raise CorruptError(f"asset {asset!r} is not a path inside the model")
            if path.suffix in _SUFFIXES:
                file = folder / path
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(harmless(asset, data))
        yield folder
