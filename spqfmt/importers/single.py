"""One file of weights: safetensors, or what torch.save wrote."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from spqfmt.importers._checkpoint import facts_of, read_file, source_tensors
from spqfmt.importers._quantized import quantized_by
from spqfmt.importers._source_file import SourceFile
from spqfmt.importers._weight_files import PICKLES
from spqfmt.importers.base import SourceModel
from spqfmt.importers.quantizers.registry import coded_tensors


class SingleFileImporter:
    """A file without what lies beside it."""

    kind = "file"

    def accepts(self, path: Path) -> bool:
        """Whether the suffix is that of a file of weights."""
        return path.is_file() and path.suffix.lower() in (".safetensors", *PICKLES)

    def open(self, path: Path) -> SourceModel:
        """Open one file of weights, as `Importer.open` says."""
        file = SourceFile(path)
        header = read_file(file)
        facts, lost = facts_of([header])
        tensors = header.tensors
        quantized = quantized_by({}, ((name, t.shape, t.dtype) for name, t in tensors.items()))
        return SourceModel(
            tensors=source_tensors(tensors, {}, "", path.parent),
            assets=(),
            architecture="",
            source_kind=self.kind,
            quantized=quantized,
            files=(file,),
            named_files={path.name: file},
            weight_files=frozenset({path.name}),
            own_files=frozenset({path.name}),
            facts=facts,
            left_out=lost,
            coded=partial(coded_tensors, tensors, {}, "", path.parent) if quantized else None,
        )


IMPORTER = SingleFileImporter()
