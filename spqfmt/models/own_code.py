"""What a model's own code does with `weight` of its layers, beside calling them: found in the source of its classes.

Some classes multiply by the weight of a layer themselves, or take an embedding as a table of queries; a few change
weights as they run. Loaders must know it before: values that are read are decoded, which takes room, and what changes
cannot be packed.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, NamedTuple

from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.pytorch_utils import Conv1D

Kind = Literal["values", "rows", "product", "change"]

_START = ("forward", "generate", "prepare_inputs_for_generation")
_SEEN_BY_NAME = re.compile(r"(?<!\bself)\.weight\b(?![\"'])")
_OF_THE_FORM = frozenset(
    {"device", "dim", "dtype", "element_size", "is_contiguous", "is_cuda", "is_floating_point", "layout", "ndim",
     "numel", "requires_grad", "shape", "size", "stride"}
)  # fmt: skip
_OF_THE_OBJECT = frozenset({"isinstance", "hasattr", "id", "type"})
_COMMON = frozenset({*PreTrainedModel.__mro__, *GenerationMixin.__mro__})


class Access(NamedTuple):
    """`x.y.weight` in the code: the names before `weight`, "[]" for an item and "()" for what is called."""

    names: tuple[str, ...]
    kind: Kind


class _Function(NamedTuple):
    """What a function does, and all names in it."""

    names: frozenset[str]
    accesses: tuple[Access, ...]


@dataclass(frozen=True)
class OwnCode:
    """`read` and `changed`: names of layers, by the module whose code does it ("" is the model).

    Rows that are read are not among them for an embedding, nor products for a linear layer: neither is decoded for it.
    `read_somewhere`: sets of layers of which one is meant, each by a name that does not say which. `changed`: also by
    transformers when it has loaded them.
    """

    read: Mapping[str, frozenset[str]]
    read_somewhere: frozenset[frozenset[str]]
    changed: frozenset[str]

    def values_at_once(self, model: Any, sizes: Mapping[str, int]) -> int:
        """The most that can be decoded at a time, where layers of the model have these sizes, others none.

        That is what a module reads and the most of what it calls, down to the last.
        """

        def needed(name: str, module: Any) -> int:
            own = sum(sizes.get(layer, 0) for layer in self.read.get(name, ()))
            inner = (needed(f"{name}.{own_name}".lstrip("."), m) for own_name, m in module.named_children())
            return own + max(inner, default=0)

        anywhere = (max((sizes.get(name, 0) for name in some), default=0) for some in self.read_somewhere)
        return needed("", model) + sum(anywhere)


def own_code(model: Any) -> OwnCode:
    """What the code of the model's modules does with weights of linear layers and embeddings, once it is run.

    Code that only runs in training, for weights of another quantizer, or where a model is given no ids of tokens, does
    not count. A weight that is not named from `self` is that of any layer with such a name; where there is none, it may
    be read of any layer at all.
    """
    named = dict(model.named_modules())
    names = {module: name for name, module in named.items()}
    layers = {name: m for name, m in named.items() if isinstance(m, nn.Linear | nn.Embedding | Conv1D)}
    read: dict[str, set[str]] = {}
    somewhere, changed = set(), set()
    for name, access in _accesses(named):
        if name is not None and access.names[0] == "self" and "()" not in access.names:
            found = {names[m] for m in _follow(named[name], access.names[1:]) if m in names} & layers.keys()
            reader = read.setdefault(name, set())
        else:
            found, reader = _called(access.names, layers), None
        if access.kind == "change":
            changed |= found
            continue
        if not found and reader is None:
            found = set(layers)
        decoded = {layer for layer in found if _is_decoded(layers[layer], access.kind)}
        if reader is None:
            somewhere.add(frozenset(decoded))
        else:
            reader |= decoded
    kinds: set[Any] = {type(module) for module in named.values()}
    if any(_clears_padding(kind) for kind in kinds):
        changed |= {
            name for name, m in layers.items() if isinstance(m, nn.Embedding) and m.padding_idx is not None
        }
    return OwnCode({n: frozenset(f) for n, f in read.items()}, frozenset(somewhere), frozenset(changed))


@cache
def _clears_padding(model_class: type) -> bool:
    """Whether transformers sets the row of padding to zero in loaded embeddings too, which most classes ask first."""
    try:
        source = inspect.getsource(getattr(model_class, "_init_weights", PreTrainedModel._init_weights))
    except OSError:
        return False
    return "padding_idx])" in source and "_is_hf_initialized" not in source


def _is_decoded(layer: Any, kind: Kind) -> bool:
    return kind not in {"change", "rows" if isinstance(layer, nn.Embedding) else "product"}


def _follow(module: Any, names: Collection[str]) -> list[Any]:
    """The modules that `module.names` can be."""
    found = [module]
    for name in names:
        if name == "[]":
            found = [child for one in found for child in one.children()]
        else:
            found = [m for one in found if isinstance(m := getattr(one, name, None), nn.Module)]
    return found


def _called(names: tuple[str, ...], layers: Mapping[str, Any]) -> set[str]:
    """Find the layers whose names end so."""
    unknown = [i for i, name in enumerate(names) if name in {"[]", "()"}]
    known = names[unknown[-1] + 1 :] if unknown else names
    for end in (".".join(known), ".".join(known[1:])):
        if end and (found := {layer for layer in layers if f".{layer}".endswith(f".{end}")}):
            return found
    return set()


def _accesses(named: Mapping[str, Any]) -> Iterator[tuple[str | None, Access]]:
    """What code of the modules that is run accesses, with the module's name; None for functions of no class."""
    classes = {module: _classes(module) for module in named.values()}
    files = {cls.__module__ for found in classes.values() for cls in found}
    if not any(_is_seen(file) for file in files):
        return
    functions = {(file, *key): function for file in files for key, function in _functions(file).items()}
    owners = {(cls.__module__, cls.__qualname__) for found in classes.values() for cls in found}
    owners |= {(file, "") for file in files}
    functions = {key: function for key, function in functions.items() if key[:2] in owners}
    run, last = set(_START), 0
    while len(run) > last:
        last = len(run)
        run.update(*(function.names for key, function in functions.items() if key[2] in run))
    by_owner: dict[tuple[str, str], dict[str, tuple[Access, ...]]] = {}
    for (file, owner, name), function in functions.items():
        if name in run and function.accesses:
            by_owner.setdefault((file, owner), {})[name] = function.accesses
    for file in files:
        yield from ((None, one) for accesses in by_owner.get((file, ""), {}).values() for one in accesses)
    for name, module in named.items():
        for cls in classes[module]:
            for accesses in by_owner.get((cls.__module__, cls.__qualname__), {}).values():
                yield from ((name, one) for one in accesses)


def _classes(module: Any) -> tuple[type, ...]:
    """Those whose code may be about weights of its own layers: not the ones that all models have in common."""
    if type(module).__module__.startswith("torch.nn.modules.") and not module._modules:
        return ()
    return tuple(cls for cls in type(module).__mro__ if cls not in _COMMON)


@cache
def _is_seen(file: str) -> bool:
    """Whether the text of a module of Python has what may be a weight by its name."""
    return _SEEN_BY_NAME.search(_source(file)) is not None


@cache
def _source(file: str) -> str:
    """The text of a module of Python; empty where it is not there."""
    try:
        return inspect.getsource(sys.modules[file])
    except (KeyError, OSError, TypeError):
        return ""


@cache
def _functions(file: str) -> dict[tuple[str, str], _Function]:
    """Functions of a module of Python by class ("" for none) and name."""
    found = {}
    for node in ast.parse(_source(file)).body:
        inner = node.body if isinstance(node, ast.ClassDef) else [node]
        owner = node.name if isinstance(node, ast.ClassDef) else ""
        for function in inner:
            if isinstance(function, ast.FunctionDef):
                found[owner, function.name] = _function(function)
    return found


def _function(function: ast.FunctionDef) -> _Function:
    above: dict[ast.AST, ast.AST] = {}
    names, accesses = set(), []
    for node in _run(function, above):
        if isinstance(node, ast.Name):
            names.add(node.id)
        elif isinstance(node, ast.Attribute):
            names.add(node.attr)
            before = _names(node.value)
            if node.attr == "weight" and before != ("self",) and (kind := _kind(node, above)) is not None:
                accesses.append(Access(before, kind))
    return _Function(frozenset(names), tuple(accesses))


def _run(node: ast.AST, above: dict[ast.AST, ast.AST]) -> Iterator[ast.AST]:
    """The nodes that can be run in evaluation, those that hold others first; `above` becomes what holds each."""
    yield node
    if isinstance(node, ast.If | ast.IfExp) and _is_never(node.test):
        rest = node.orelse if isinstance(node.orelse, list) else [node.orelse]
        inner = [node.test, *rest]
    else:
        inner = list(ast.iter_child_nodes(node))
    for child in inner:
        above[child] = node
        yield from _run(child, above)


def _is_never(test: ast.expr) -> bool:
    if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And):
        return any(_is_never(value) for value in test.values)
    written = ast.unparse(test)
    if written.startswith("hasattr("):
        return ".weight, " in written
    return written in {"self.training", "input_ids is None"}


def _names(node: ast.expr) -> tuple[str, ...]:
    """`a.b[0].c` as a, b, [], c."""
    if isinstance(node, ast.Name):
        return (node.id,)
    if isinstance(node, ast.Attribute):
        return (*_names(node.value), node.attr)
    return (*_names(node.value), "[]") if isinstance(node, ast.Subscript) else ("()",)


def _kind(weight: ast.Attribute, above: Mapping[ast.AST, ast.AST]) -> Kind | None:
    """What becomes of it; None where its values do not matter."""
    node: ast.expr = weight
    holder = above[node]
    while isinstance(holder, ast.Attribute) and holder.attr == "data":
        node, holder = holder, above[holder]
    if isinstance(getattr(node, "ctx", None), ast.Store):
        return "change"
    if isinstance(holder, ast.Attribute):
        called = isinstance(above[holder], ast.Call)
        if called and holder.attr.endswith("_") and not holder.attr.endswith("__"):
            return "change"
        return None if holder.attr in _OF_THE_FORM else "values"
    if isinstance(holder, ast.Subscript) and holder.value is node:
        if isinstance(holder.ctx, ast.Store):
            return "change"
        return "rows" if _is_of_rows(holder.slice) else "values"
    if isinstance(holder, ast.Call) and node in holder.args:
        name = _names(holder.func)[-1:]
        if name == ("linear",) and holder.args[1:2] == [node]:
            return "product"
        return None if name and name[0] in _OF_THE_OBJECT else "values"
    return "values"


def _is_of_rows(index: ast.expr) -> bool:
    """Whether an index takes whole rows by number."""
    first, *others = index.elts if isinstance(index, ast.Tuple) else [index]
    plain = not isinstance(first, ast.Slice | ast.Constant) or type(getattr(first, "value", None)) is int
    return plain and not isinstance(first, ast.Slice) and all(ast.unparse(other) == ":" for other in others)
