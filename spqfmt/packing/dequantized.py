"""A source as a method takes it: with values in place of codes where this is asked for, and whole matrices."""

from collections.abc import Sequence
from dataclasses import replace

from spqfmt.errors import ImporterError
from spqfmt.importers._layout import execution_key, role_of, segment_of
from spqfmt.importers._quantized import quantized_arrays, without_quantizer
from spqfmt.importers._quantizer_names import by_files
from spqfmt.importers.base import SourceModel, SourceTensor
from spqfmt.models.stacked_heads import find_wholes, has_stacks, put_together, whole_dtype, whole_shape
from spqfmt.packing.options import PackOptions
from spqfmt.packing.target import KEEPING
from spqfmt.quantize.base import KeepingMethod
from spqfmt.records import FLOATS


def as_packed(model: SourceModel, options: PackOptions) -> SourceModel:
    """The model as the method takes it: with --dequantize all values, and a config that says nothing of a quantizer.

    What is not kept as the source has it has the matrices of transformers' model, also where their rows lie apart.
    Raises ImporterError for arrays that contradict each other, and where values of codes are not known.
    """
    keeps = isinstance(options.method, KeepingMethod) or options.method.name == KEEPING
    if not options.dequantize:
        # Of codes that nobody keeps the plan says what to do.
        return model if keeps or any(tensor.form for tensor in model.tensors) else _with_matrices(model)
    weights = model.as_weights()
    if not model.quantized and not any(tensor.form for tensor in weights.tensors):
        return model if keeps else _with_matrices(model)
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
    dequantized = replace(
        weights,
        tensors=tuple(map(_values, weights.tensors)),
        assets=tuple(assets),
        named_files={name: file for name, file in weights.named_files.items() if name not in changed},
        # torchao says there what its arrays are.
        facts={key: value for key, value in weights.facts.items() if key not in names},
        is_dequantized=True,
    )
    return _with_matrices(dequantized)


def _values(tensor: SourceTensor) -> SourceTensor:
    """A tensor of which no codes are known any more; its form is, for what a report says."""
    if not tensor.form:
        return tensor
    return replace(tensor, stored=None, parts=(), view=None, has_turned_view=False)


def _with_matrices(model: SourceModel) -> SourceModel:
    """The model with the matrices that its stacks of heads are, in place of these (stacked_heads.py)."""
    if not has_stacks(model.source_kind, model.no_model):
        return model
    found = find_wholes((tensor.name, tensor.shape) for tensor in model.tensors)
    if not found:
        return model
    taken = {part for parts in found.values() for part in parts}
    stacks = {tensor.name: tensor for tensor in model.tensors if tensor.name in taken}
    made = [_matrix(name, [stacks[part] for part in parts]) for name, parts in found.items()]
    left = (tensor for tensor in model.tensors if tensor.name not in taken)
    tensors = sorted((*left, *made), key=lambda tensor: execution_key(tensor.name))
    return replace(model, tensors=tuple(tensors))


def _matrix(name: str, stacks: Sequence[SourceTensor]) -> SourceTensor:
    shape = whole_shape({stack.name: stack.shape for stack in stacks})
    return SourceTensor(
        name=name,
        shape=shape,
        dtype=whole_dtype([stack.dtype for stack in stacks]),
        segment=segment_of(name),
        role=role_of(name, shape, is_float=all(stack.dtype in FLOATS for stack in stacks)),
        transposed=False,
        tied_to=None,
        load=lambda: put_together({stack.name: stack.load() for stack in stacks}),
        form="+".join(dict.fromkeys(stack.form for stack in stacks if stack.form)),
    )
