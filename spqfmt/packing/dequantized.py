"""A source whose codes a pack turns into the values that they stand for, where it is asked to."""

from dataclasses import replace

from spqfmt.errors import ImporterError
from spqfmt.importers._quantized import quantized_arrays, without_quantizer
from spqfmt.importers._quantizer_names import by_files
from spqfmt.importers.base import SourceModel, SourceTensor
from spqfmt.packing.options import PackOptions
from spqfmt.packing.target import KEEPING


def as_packed(model: SourceModel, options: PackOptions) -> SourceModel:
    """The model as the method takes it: with --dequantize all values, and a config that says nothing of a quantizer.

    Raises ImporterError for arrays that contradict each other, and where values of codes are not known.
    """
    if not options.dequantize:
        return model
    weights = model.as_weights()
    if not model.quantized and not any(tensor.form for tensor in weights.tensors):
        return model
    facts = [(tensor.name, tensor.shape, tensor.dtype) for tensor in weights.tensors]
    if by := quantized_arrays(facts):
        left = [t for t, fact in zip(weights.tensors, facts, strict=True) if quantized_arrays([fact])]
        named = f"tensor {left[0].name!r} is one of" if left else "the model has"
        why = f", because of {left[0].why_no_codes}" if left and left[0].why_no_codes else ""
        raise ImporterError(
            f"{named} a quantizer's arrays ({by}) that --dequantize does not take apart{why}; without it "
            f"--method {KEEPING} keeps them as they are"
        )
    assets, changed = [], set()
    for asset in weights.assets:
        plain = without_quantizer(asset.data) if asset.name.rpartition("/")[2] == "config.json" else None
        if plain is not None or by_files([asset.name.rpartition("/")[2]]):
            changed.add(asset.name)
        if plain is not None:
            assets.append(replace(asset, data=plain))
        elif asset.name not in changed:
            assets.append(asset)
    names = {tensor.name for tensor in weights.tensors}
    return replace(
        weights,
        tensors=tuple(map(_values, weights.tensors)),
        assets=tuple(assets),
        named_files={name: file for name, file in weights.named_files.items() if name not in changed},
        # torchao says there what its arrays are.
        facts={key: value for key, value in weights.facts.items() if key not in names},
        is_dequantized=True,
    )


def _values(tensor: SourceTensor) -> SourceTensor:
    """A tensor of which no codes are known any more; its form is, for what a report says."""
    if not tensor.form:
        return tensor
    return replace(tensor, stored=None, parts=(), view=None, has_turned_view=False)
