"""A model's small files in a folder: transformers reads config and tokenizer from nowhere else."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from spqfmt import wire
from spqfmt.asset_names import as_files
from spqfmt.errors import LimitError
from spqfmt.models.harmless import harmless

MAX_BYTES = 512 << 20
"""How large all small files are together at most; a disk, and often memory, is what they are written to."""


@contextmanager
def asset_folder(assets: Mapping[str, bytes], trusted: str = "") -> Iterator[Path]:
    """A private temporary folder with `assets`, gone when the context ends.

    Only data is written (FORMAT.md 7.1), without the settings that lead elsewhere (see `harmless`), which raises
    UnsupportedError for such a setting that cannot be left out. Weights in folders of their own stay out too. Raises
    LimitError for more than pack puts into a file. `trusted`: the model's name, where its own code is trusted. It is
    written then, and so is the folder called, for transformers keeps a copy of code by the name of its folder.
    """
    n_bytes = 0
    with tempfile.TemporaryDirectory(prefix="spqfmt-") as temporary:
        name = Path(temporary, trusted)
        name.mkdir(exist_ok=True)
        for asset, kind in as_files(assets).items():
            if (kind == "data" or trusted) and not asset.lower().endswith(wire.ASSET_FOLDER_ENDINGS):
                file = name / asset
                file.parent.mkdir(parents=True, exist_ok=True)
                data = harmless(asset, assets[asset], trusted=bool(trusted))
                n_bytes += len(data)
                if n_bytes > MAX_BYTES:
                    raise LimitError(f"its small files have more than {MAX_BYTES} bytes together")
                file.write_bytes(data)
        yield name
