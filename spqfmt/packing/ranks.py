"""Which tensors of a source ranks cut, and along what."""

from spqfmt.errors import OptionError
from spqfmt.importers.base import SourceModel
from spqfmt.models.rank_plan import cut_tensors


def cut_of_source(source: SourceModel) -> dict[str, bool]:
    """Tell as `cut_tensors` does. Raises OptionError where transformers has no plan for ranks."""
    found = cut_tensors(
        source.asset_data,
        [tensor.name for tensor in source.tensors],
        [tensor.shape for tensor in source.tensors],
        source.architecture,
    )
    if not found:
        raise OptionError("--ranks: transformers has no plan for the ranks of this model")
    return found
