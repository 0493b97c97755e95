"""A token as one graph: all that a model gives the device for it is recorded once, and given again as a whole.

Only while an answer is generated, with a cache that does not grow. The first token is computed as always, the second
one too, and recorded then; at the third the graph and the plain pass are compared, to the bit, in what they give and
in what they leave in the cache. Whatever does not go, or is not the same, ends it in words: tokens are computed as
before then.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch.nn.modules import module as torch_modules
from transformers.cache_utils import Cache, StaticCache, StaticLayer, StaticSlidingWindowLayer

from spqfmt.errors import NoGraphWarning
from spqfmt.loaders.device.engine import DeviceWeights
from spqfmt.loaders.device.seam import Graph
from spqfmt.loaders.packed.embedding import PackedEmbedding
from spqfmt.loaders.packed.experts import PackedExperts
from spqfmt.loaders.packed.modules import Packed

MOST_RECORDED = 4
"""Graphs of one answer: one is used up whenever inputs get another form, or weights other addresses."""
_Form = tuple[Any, ...]
_UNKNOWN = object()


def refusal(model: Any) -> str | None:
    """Why no token of a model is made a graph, in words; None where it may be one."""
    weights = getattr(model, "packed_weights", None)
    if not isinstance(weights, DeviceWeights):
        return "its weights are not packed on a GPU"
    if model.config.is_encoder_decoder:
        return "it has an encoder"
    for name, module in model.named_modules():
        if isinstance(module, PackedExperts):
            return f"{name}: the host asks which experts a token has"
        if isinstance(module, Packed) and module.share is not None:
            return "it is shared out among processes"
        if isinstance(module, PackedEmbedding) and not weights.looks_up_here(module.record.name):
            return f"{name}: the host looks up its rows"
    return weights.never_recorded or _no_static_cache(model)


def _no_static_cache(model: Any) -> str | None:
    """Why a model has no cache that stays where it is; None where it has one."""
    if model.is_remote_code():
        return "its code came with it"
    if not model._supports_default_dynamic_cache():
        return "its cache is of a kind of its own"
    try:
        cache = StaticCache(config=model.config, max_cache_len=1)
    except Exception as error:  # noqa: BLE001  # whatever transformers makes of a kind of layers that it has none for
        return f"it has no cache that does not grow ({type(error).__name__}: {' '.join(str(error).split())[:100]})"
    others = _Cache.of({"": cache}).others
    return f"its cache has layers of its own ({', '.join(others)})" if others else None


@contextmanager
def as_graphs(model: Any) -> Iterator[TokenGraphs]:
    """While this lasts, a model without `refusal` computes single tokens as graphs where that gives the same bits.

    One answer at a time: another one is told that it has none.
    """
    before = vars(model).get("forward")
    graphs = TokenGraphs(model)
    if not graphs.weights.recorder.acquire(blocking=False):
        graphs.end("another answer of this model has them now")
        yield graphs
        return

    @wraps(model.forward)
    def forward(*arguments: Any, **inputs: Any) -> Any:
        return graphs(*arguments, **inputs)

    model.forward = forward
    try:
        yield graphs
        graphs.check_use()
    finally:
        del model.forward
        if before is not None:
            model.forward = before
        graphs.weights.recorder.release()


class TokenGraphs:
    """Stands in for a model's forward. `why`: why there are no graphs any more; `n_replayed`: tokens that were one."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._forward: Callable[..., Any] = model.forward
        self.weights: DeviceWeights = model.packed_weights
        self._form: _Form | None = None
        self._cache: _Cache | None = None
        self._recorded: _Recorded | None = None
        self._n_tokens = 0
        self._n_begun = 0
        self._n_calls = 0
        self.n_replayed = 0
        self.why: str | None = None

    def __call__(self, *arguments: Any, **inputs: Any) -> Any:
        """What the model's forward gives."""
        self._n_calls += 1
        form = None if arguments or self.why is not None or not self._is_plain() else _form(inputs)
        if form is None:
            return self._forward(*arguments, **inputs)
        if form != self._form or (self._recorded is not None and not self._recorded.watch.holds()):
            self._begin(form, inputs)
        if self.why is not None:
            return self._forward(**inputs)
        self._n_tokens += 1
        if self._n_tokens == 1:
            # What is decoded for it, and where to, is as in the graph then, so that all of that is prepared.
            self.weights.settle()
            return self._forward(**inputs)
        if self._recorded is None:
            return self._record(inputs)
        return self._compare(inputs) if self._n_tokens == 3 else self._replay(inputs)

    def _is_plain(self) -> bool:
        kind = self.weights.torch_device.type
        return not torch.is_grad_enabled() and not torch.is_autocast_enabled(kind)

    def check_use(self) -> None:
        """Tell of an answer that was computed elsewhere, or otherwise; one of a single token has no other call."""
        if self.why is not None or self._n_begun or self._n_calls == 1:
            return
        if self._n_calls:
            self.end("no token came with a cache that does not grow")
        else:
            self.end(f"something else was called in place of {type(self._model).__name__}'s forward")

    def _begin(self, form: _Form, inputs: Mapping[str, Any]) -> None:
        """Forget what was recorded of tokens of another form."""
        self._form, self._recorded, self._n_tokens = form, None, 0
        cache = self._cache = _Cache.of(inputs)
        self._n_begun += 1
        unknown = [item[0] for item in form if item[-1] is _UNKNOWN]
        if unknown:
            self.end(f"its inputs are more than tensors ({', '.join(unknown)})")
        elif cache.others:
            self.end(f"its cache has layers of its own ({', '.join(cache.others)})")
        elif cache.is_full:
            self.end("its sliding window is full")
        elif self._n_begun > MOST_RECORDED:
            self.end("its inputs change their form, or its weights their addresses, again and again")

    def end(self, why: str) -> None:
        """Record no more, for a reason that is told."""
        self.why, self._recorded = why, None
        tell(why)

    def _record(self, inputs: dict[str, Any]) -> Any:
        result = self._forward(**inputs)
        assert self._cache is not None
        counts = self._cache.counts
        try:
            buffers = {name: _each(value, torch.clone) for name, value in inputs.items()}
            watch = _Watch.of(self._model)
            graph, outputs = self.weights.record(lambda: self._forward(**buffers))
        except Exception as error:  # noqa: BLE001  # what a model does that cannot be recorded it does as before
            self.end(f"it cannot be recorded: {' '.join(str(error).split())[:300]}")
            return result
        finally:
            self._cache.count(counts)
        if not watch.holds():
            self.end("it has hooks, or changes itself")
        elif not isinstance(outputs, dict) or not all(map(_is_plain_output, outputs.values())):
            self.end(f"it gives more than tensors: {type(outputs).__name__}")
        else:
            self._recorded = _Recorded(graph, buffers, outputs, watch)
        return result

    def _compare(self, inputs: dict[str, Any]) -> Any:
        """Compute a token both ways, from the same cache. What counts is the plain pass."""
        cache = self._cache
        assert cache is not None
        before = cache.saved()
        expected = self._forward(**inputs)
        after = cache.saved()
        cache.restore(before)
        try:
            found = self._replay(inputs)
            is_same = _same(cache.saved(), after) and _same_bits(_outputs(found), _outputs(expected))
            why = "its first graph gave other bits than the plain pass"
        except Exception as error:  # noqa: BLE001  # as above
            is_same, why = False, f"its first graph failed: {' '.join(str(error).split())[:300]}"
        if not is_same:
            cache.restore(after)
            self.end(why)
        return expected

    def _replay(self, inputs: dict[str, Any]) -> Any:
        recorded, cache = self._recorded, self._cache
        assert recorded is not None
        assert cache is not None
        for name, value in inputs.items():
            buffer = recorded.buffers[name]
            if isinstance(value, torch.Tensor):
                buffer.copy_(value)
            elif isinstance(value, dict):
                for key, tensor in value.items():
                    if tensor is not None:
                        buffer[key].copy_(tensor)
        self.weights.replay(recorded.graph)
        cache.count([n + 1 for n in cache.counts])
        self.n_replayed += 1
        outputs = recorded.outputs
        return type(outputs)(**{name: _each(value, torch.clone) for name, value in outputs.items()})


@dataclass(frozen=True)
class _Recorded:
    """A graph, where it takes its inputs from, and what it leaves its results in."""

    graph: Graph
    buffers: dict[str, Any]
    outputs: Any
    watch: _Watch


_Saved = tuple[list[torch.Tensor], list[int]]


@dataclass(frozen=True)
class _Cache:
    """The cache of an answer. Layers with a sliding window count tokens in Python too, which no graph does again.

    Until the window is full that decides nothing. `others`: kinds of layers of which nobody here knows what they do.
    """

    cache: StaticCache
    others: tuple[str, ...]

    @classmethod
    def of(cls, inputs: Mapping[str, Any]) -> _Cache:
        """The one among the inputs of a token."""
        cache = next(value for value in inputs.values() if isinstance(value, StaticCache))
        known = {StaticLayer, StaticSlidingWindowLayer}
        others = {type(layer).__name__ for layer in cache.layers if type(layer) not in known}
        return cls(cache, tuple(sorted(others)))

    @property
    def _counting(self) -> list[StaticSlidingWindowLayer]:
        return [layer for layer in self.cache.layers if type(layer) is StaticSlidingWindowLayer]

    @property
    def counts(self) -> list[int]:
        """What is counted in Python."""
        return [layer.cumulative_length_int for layer in self._counting]

    def count(self, counts: list[int]) -> None:
        """Have it counted so far."""
        for layer, n in zip(self._counting, counts, strict=True):
            layer.cumulative_length_int = n

    @property
    def is_full(self) -> bool:
        """Whether a window has no room for another token."""
        return any(layer.cumulative_length_int >= layer.max_cache_len for layer in self._counting)

    @property
    def _tensors(self) -> list[torch.Tensor]:
        found = [value for layer in self.cache.layers for value in vars(layer).values()]
        return [value for value in found if isinstance(value, torch.Tensor)]

    def saved(self) -> _Saved:
        """All of it: copies on the host, which has room for them."""
        return [tensor.to("cpu", copy=True) for tensor in self._tensors], self.counts

    def restore(self, saved: _Saved) -> None:
        """Have it as it was."""
        tensors, counts = saved
        for tensor, values in zip(self._tensors, tensors, strict=True):
            tensor.copy_(values)
        self.count(counts)


@dataclass(frozen=True)
class _Watch:
    """What a graph does not see change: modules, where their tensors are, and what is called beside them."""

    tensors: tuple[tuple[Mapping[str, Any], str, torch.Tensor | None, int], ...]
    children: tuple[tuple[Mapping[str, Any], str, Any], ...]
    hooks: tuple[Mapping[Any, Any], ...]

    @classmethod
    def of(cls, model: Any) -> _Watch:
        """The model as it is."""
        modules = list(model.modules())
        owners = [own for module in modules for own in (module._parameters, module._buffers)]
        tensors = [(own, name, tensor, _address(tensor)) for own in owners for name, tensor in own.items()]
        children = [(module._modules, name, m) for module in modules for name, m in module._modules.items()]
        hooks = [own for module in modules for own in (module._forward_hooks, module._forward_pre_hooks)]
        hooks += [torch_modules._global_forward_hooks, torch_modules._global_forward_pre_hooks]
        return cls(tuple(tensors), tuple(children), tuple(hooks))

    def holds(self) -> bool:
        """Whether all is where it was, and nothing is called beside it."""
        return (
            not any(self.hooks)
            and all(own.get(name) is module for own, name, module in self.children)
            and all(own.get(name) is t and _address(t) == at for own, name, t, at in self.tensors)
        )


def tell(why: str) -> None:
    """Warn that there are no graphs."""
    warnings.warn(f"tokens are computed without a graph: {why}", NoGraphWarning, stacklevel=3)


def _address(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _form(inputs: Mapping[str, Any]) -> _Form | None:
    """What must be the same for two tokens to be one graph; None for what is no single token with a static cache."""
    ids = inputs.get("input_ids")
    if not isinstance(ids, torch.Tensor) or ids.numel() != 1:
        return None
    if not any(isinstance(value, StaticCache) for value in inputs.values()):
        return None
    found: list[Any] = []
    for name, value in inputs.items():
        if isinstance(value, torch.Tensor):
            found.append((name, value.shape, value.dtype, value.device))
        elif isinstance(value, StaticCache):
            found.append((name, id(value), _Cache.of(inputs).is_full))
        elif isinstance(value, Cache):
            found.append((name, id(value)))
        elif isinstance(value, dict) and all(
            t is None or isinstance(t, torch.Tensor) for t in value.values()
        ):
            found += [(name, k, None if t is None else (t.shape, t.dtype)) for k, t in value.items()]
        elif value is None or isinstance(value, bool | int | float | str):
            found.append((name, type(value), value))
        elif isinstance(value, Collection):
            found.append((name, _UNKNOWN))
        else:  # a tokenizer, for one: what of it matters does not change
            found.append((name, id(value)))
    return tuple(found)


def _each(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """The value with its tensors changed; a cache stays the one it is."""
    if isinstance(value, torch.Tensor):
        return change(value)
    return {key: _each(own, change) for key, own in value.items()} if type(value) is dict else value


def _is_plain_output(value: Any) -> bool:
    return value is None or isinstance(value, torch.Tensor | Cache)


def _outputs(result: Any) -> list[torch.Tensor]:
    return [value.cpu() for value in result.values() if isinstance(value, torch.Tensor)]


def _same(one: _Saved, other: _Saved) -> bool:
    return one[1] == other[1] and _same_bits(one[0], other[0])


def _same_bits(ones: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    pairs = zip(ones, others, strict=True)
    return all(
        torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8)) for a, b in pairs
    )
