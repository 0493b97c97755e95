"""Experts of a transformers model that can be computed one by one, and the tensors of a file that each is made of.

transformers holds a layer's experts as one parameter [experts, rows, columns] for each projection. Which parameters,
and how they are used, its interface for experts says (transformers.integrations.moe), or the operations of a class that
multiplies all experts at once; not the name of a class.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.overrides import TorchFunctionMode
from transformers.core_model_loading import Concatenate, MergeModulelist, Transpose

from spqfmt.container.stacks import matrices_of, stack_of, whole_stack_because
from spqfmt.models.targets import Conversion, Targets
from spqfmt.records import TensorRecord
from spqfmt.schemes.registry import is_packable, whole_because

Matrices = tuple[tuple[TensorRecord, ...], ...]
"""For each expert the matrices [rows, columns] whose outputs follow each other."""
_FLAGS = ("has_gate", "has_bias", "is_transposed", "has_post_expert_norm")


class NotOneByOne(Exception):  # noqa: N818 # an answer, not an error
    """Why experts are decoded whole, in a few words."""


@dataclass(frozen=True)
class ExpertsForm:
    """How a module uses its experts.

    `up` and `down` are its parameters' names. `transposed`: they are [experts, inputs, outputs]. `calls` "routed": the
    module is given the experts of each token; "batched": inputs of all experts, rows of zeros where there is nothing.
    """

    up: str
    down: str
    transposed: bool
    calls: Literal["routed", "batched"]


@dataclass(frozen=True)
class ExpertsPlace:
    """A module whose experts can be computed one by one: `matrices` by parameter, and the `tensors` that hold them.

    `top_k` of the experts are used for a token.
    """

    module: str
    form: ExpertsForm
    matrices: Mapping[str, Matrices]
    tensors: tuple[str, ...]
    top_k: int

    @property
    def n_experts(self) -> int:
        """How many there are."""
        return len(self.matrices[self.form.up])

    @property
    def share(self) -> float:
        """The part of all tokens that an expert is used for, as long as nothing is known of them."""
        return min(1.0, self.top_k / self.n_experts)

    @property
    def records(self) -> Iterator[TensorRecord]:
        """The matrices of all experts."""
        return (record for each in self.matrices.values() for pieces in each for record in pieces)


@dataclass(frozen=True)
class FoundExperts:
    """`places`, and by the names of tensors why other experts are decoded whole."""

    places: tuple[ExpertsPlace, ...]
    whole: Mapping[str, str]


def find_experts(model: Any, records: Mapping[str, TensorRecord]) -> FoundExperts:
    """Find the modules whose experts the file holds in a fitting form. `records` as in find_places."""
    kept = {*(model._keep_in_fp32_modules or ()), *(model._keep_in_fp32_modules_strict or ())}
    forms = {name: form for name, module in model.named_modules() if (form := form_of(module)) is not None}
    if not forms:
        return FoundExperts((), {})
    sources: dict[str, list[tuple[str, Conversion]]] = {}
    for tensor, conversion in Targets(model, records).conversions():
        sources.setdefault(conversion.parameter, []).append((tensor, conversion))
    places: list[ExpertsPlace] = []
    whole: dict[str, str] = {}
    for name, form in forms.items():
        module = model.get_submodule(name)
        own = {p: sources.get(f"{name}.{p}", []) for p in (form.up, form.down)}
        tensors = tuple(tensor for found in own.values() for tensor, _ in found)
        try:
            if kept & set(name.split(".")):
                raise NotOneByOne("experts that the model wants in float32")
            if any(f"{name}.{p}" in (*pair,) for p in own for pair in model.all_tied_weights_keys.items()):
                raise NotOneByOne("experts that are tied to others")
            matrices = {
                p: _matrices(getattr(module, p).shape, form, found, records) for p, found in own.items()
            }
        except NotOneByOne as reason:
            whole |= {tensor: str(reason) for tensor in tensors}
            continue
        top_k = _top_k(model, name)
        places.append(ExpertsPlace(module=name, form=form, matrices=matrices, tensors=tensors, top_k=top_k))
    return FoundExperts(tuple(places), whole)


def form_of(module: Any) -> ExpertsForm | None:
    """How a module uses experts that it holds as stacks; None where it holds none, or is not understood."""
    stacks = {name for name, value in module.named_parameters(recurse=False) if value.dim() == 3}
    if "down_proj" not in stacks or len(stacks) != 2:
        return None
    [up] = stacks - {"down_proj"}
    if all(isinstance(getattr(module, flag, None), bool) for flag in _FLAGS):
        # What the decorator puts in front of a class asks for the implementation.
        code = getattr(type(module).forward, "__code__", None)
        known = up == ("gate_up_proj" if module.has_gate else "up_proj")
        if not known or code is None or "experts_interface" not in code.co_freevars:
            return None
        return ExpertsForm(up, "down_proj", module.is_transposed, "routed")
    if up == "gate_up_proj" and _multiplies_all_at_once(module):
        return ExpertsForm(up, "down_proj", transposed=True, calls="batched")
    return None


class _Calls(TorchFunctionMode):
    """Notes the functions of torch that are called, and what batches of matrices are multiplied by."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.factors: list[Any] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.names.append(getattr(func, "__name__", ""))
        if func is torch.bmm:
            self.factors.append(args[1])
        return func(*args, **(kwargs or {}))


_OF_ONE_ROW = frozenset({"view", "reshape", "chunk", "mul", "__mul__", "bmm", "__get__", "size"})


def _multiplies_all_at_once(module: Any) -> bool:
    """Whether the module's forward is down(act_fn(gate) * up) of a batch for each expert, seen without any numbers."""
    up, down = module.gate_up_proj, module.down_proj
    if up.shape[1] != down.shape[2] or up.shape[2] != 2 * down.shape[1] or not hasattr(module, "act_fn"):
        return False
    acted: list[Any] = []

    def act(x: torch.Tensor) -> torch.Tensor:
        acted.append(x)
        return x

    tried = _bare_copy(module, act)
    x = torch.empty(up.shape[0] * 3, up.shape[1], dtype=up.dtype, device="meta")
    try:
        with _Calls() as calls:
            y = type(module).forward(tried, x)
    except Exception:  # noqa: BLE001  # whatever it is that it wants to be given
        return False
    known = set(calls.names) <= _OF_ONE_ROW
    gates = [a for a in acted if a.shape == (up.shape[0], 3, down.shape[1]) and a.storage_offset() == 0]
    return (
        known
        and len(acted) == len(gates) == 1
        and calls.names.count("bmm") == 2
        and [id(factor) for factor in calls.factors] == [id(tried.gate_up_proj), id(tried.down_proj)]
        and y.shape == x.shape
    )


class _Bare:
    """What a forward reads of its module."""


def _bare_copy(module: Any, act: Any) -> Any:
    copy: Any = _Bare()
    for name, value in vars(module).items():
        if not name.startswith("_"):
            setattr(copy, name, value)
    for name in ("gate_up_proj", "down_proj"):
        setattr(copy, name, torch.empty_like(getattr(module, name), device="meta"))
    copy.act_fn = act
    return copy


def _matrices(
    shape: torch.Size,
    form: ExpertsForm,
    found: Sequence[tuple[str, Conversion]],
    records: Mapping[str, TensorRecord],
) -> Matrices:
    """The matrices of each expert that a parameter of this shape is made of. Raises NotOneByOne."""
    n = shape[0]
    rows, columns = (shape[2], shape[1]) if form.transposed else (shape[1], shape[2])
    by_pattern: dict[str | None, list[TensorRecord]] = {}
    for tensor, conversion in found:
        by_pattern.setdefault(conversion.pattern, []).append(records[tensor])
    if not found:
        raise NotOneByOne("experts that are not in the file")
    turns, patterns = _understood(found[0][1].converter, form, fits=records[found[0][0]].shape == shape)
    groups = [by_pattern.get(pattern, []) for pattern in patterns]
    if sum(map(len, groups)) != len(found):
        raise NotOneByOne("experts that are put together in a way that is not known")
    each = [_one_by_one(group, n, turned=form.transposed != turns) for group in groups]
    matrices = tuple(zip(*each, strict=True))
    for pieces in matrices:
        sizes = [_sizes(piece) for piece in pieces]
        if sum(size[0] for size in sizes) != rows or any(size[1] != columns for size in sizes):
            raise NotOneByOne("experts of another shape than the model's")
    return matrices


def _sizes(record: TensorRecord) -> tuple[int, int]:
    rows, columns = record.matrix_shape
    return (columns, rows) if getattr(record, "turned", False) else (rows, columns)


def _understood(converter: Any, form: ExpertsForm, *, fits: bool) -> tuple[bool, list[str | None]]:
    """Whether the tensors are transposed on their way, and the patterns whose rows follow each other.

    `fits`: the first tensor has the parameter's shape. Raises NotOneByOne for what is done to them besides.
    """
    if converter is None:
        return False, [None]
    operations = list(converter.operations)
    turns = False
    if operations and isinstance(operations[0], Transpose):
        swap, *operations = operations
        if {swap.dim0, swap.dim1} != {1, 2}:
            raise NotOneByOne("experts that are put together in a way that is not known")
        turns = not (swap.check_dims and fits)
    if operations and isinstance(operations[0], MergeModulelist):
        merge, *operations = operations
        if merge.dim != 0 or form.transposed:
            raise NotOneByOne("experts that are put together in a way that is not known")
    beside = 2 if form.transposed else 1
    if len(operations) == 1 and isinstance(operations[0], Concatenate) and operations[0].dim == beside:
        operations = []
    elif len(converter.source_patterns) > 1:
        operations = [None]
    if operations:
        raise NotOneByOne("experts that are put together in a way that is not known")
    return turns, list(converter.source_patterns)


def _one_by_one(group: Sequence[TensorRecord], n: int, *, turned: bool) -> list[TensorRecord]:
    """The matrix of each of `n` experts: tensors by themselves, or those of a stack. Raises NotOneByOne."""
    if len(group) == n and all(len(record.shape) == 2 for record in group):
        if turned or any(record.transposed for record in group):
            raise NotOneByOne("experts that are stored transposed")
        for record in group:
            if not is_packable(record):
                raise NotOneByOne(whole_because(record) or f"scheme {record.scheme}")
        return list(group)
    if len(group) != 1 or len(group[0].shape) != 3 or group[0].shape[0] != n:
        raise NotOneByOne("experts that are put together in a way that is not known")
    [stack] = group
    if why := whole_stack_because(stack):
        raise NotOneByOne(why)
    if stack.scheme != "dense" and stack.transposed != turned:
        raise NotOneByOne("groups that do not run along the inputs")
    return list(matrices_of(stack, turned=turned and stack.scheme == "dense"))


_TOP_K = ("top_k", "num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k", "moe_k")


def _top_k(model: Any, name: str) -> int:
    """How many experts of a module are used for a token, as what surrounds it or its config says; else all."""
    module = model.get_submodule(name)
    parent = model.get_submodule(name.rpartition(".")[0])
    near = [parent, *parent.children(), getattr(module, "config", None), model.config.get_text_config()]
    for one in near:
        for known in _TOP_K:
            value = getattr(one, known, None)
            if type(value) is int and value > 0:
                return value
    return int(next(iter(module.parameters())).shape[0])


def tensors_of(places: Sequence[ExpertsPlace]) -> set[str]:
    """Names of the tensors of a file that the places take over."""
    return {tensor for place in places for tensor in place.tensors}


def holders_of(places: Sequence[ExpertsPlace]) -> set[str]:
    """Names of the records that hold their weights."""
    return {stack_of(record).name for place in places for record in place.records}
