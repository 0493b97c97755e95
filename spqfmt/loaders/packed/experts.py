"""Experts that are computed one by one from packed weights, in place of the module that holds them as stacks.

The module stays what it is, with its biases, its gate and its norm, as one of a class that stands in front of its own:
without the stacks, and with a `forward` that multiplies by the matrices of the experts that were chosen. What comes out
is what transformers' own functions for experts give, up to the order of sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from itertools import accumulate
from typing import Any

import torch

from spqfmt.loaders.packed import compiled_experts
from spqfmt.loaders.packed.engine import HostWeights
from spqfmt.loaders.packed.modules import Packed, check_input
from spqfmt.loaders.packed.products import Operand, product
from spqfmt.loaders.packed.weight import PackedWeight, autocast_dtype
from spqfmt.loaders.packed.weights import Weights
from spqfmt.models.experts import ExpertsPlace
from spqfmt.records import TensorRecord


class PackedExperts(Packed):
    """What stands in front of a class of experts. `record` is one of all of them together, which is in no file."""

    place: ExpertsPlace
    # What the class of the module brings.
    act_fn: Callable[[torch.Tensor], torch.Tensor]
    _apply_gate: Callable[[torch.Tensor], torch.Tensor]
    post_expert_norm: Callable[[torch.Tensor], torch.Tensor]

    def prepare(self, place: ExpertsPlace, dtype: torch.dtype) -> None:
        """Become what `place` says, once, in place of a constructor."""
        n_weights = sum(record.n_weights for record in place.records)
        self.record = TensorRecord(place.module, (n_weights,), "", "")
        self.place, self._dtype, self._engine, self.is_tied = place, dtype, None, False
        self._shapes = {name: self._parameters.pop(name).shape for name in place.matrices}  # type: ignore[union-attr]
        # transformers is not to fill the stacks with numbers of its own.
        self._is_hf_initialized = True

    def attach(self, engine: Weights, number: int | None = None) -> None:
        """Compute with this engine from now on."""
        super().attach(engine, number)
        self._module_number = compiled_experts.number_of(self)
        form = self.place.form
        self._up, self._down = (self._factors(engine, name) for name in (form.up, form.down))
        self._parts = [
            engine.part_numbers(record.name for pieces in each for record in pieces)
            for each in zip(*self.place.matrices.values(), strict=True)
        ]
        if form.calls == "batched":
            self._act: Callable[[torch.Tensor], torch.Tensor] = self._gated
        else:
            self._act = self._apply_gate if self.has_gate else self.act_fn

    def _in_turn(self, experts: Iterable[int], n_tokens: int) -> Iterator[int]:
        """Give these experts, each when it can be computed, with up to so many tokens."""
        return self.engine.as_they_come({expert: self._parts[expert] for expert in experts}, n_tokens)

    def _factors(self, engine: Weights, name: str) -> tuple[tuple[Callable[..., torch.Tensor], ...], ...]:
        """For each expert the products whose outputs follow each other."""
        biases = getattr(self, f"{name}_bias") if getattr(self, "has_bias", False) else None
        if not isinstance(engine, HostWeights):
            return self._device_factors(engine, name, has_bias=biases is not None)

        def products(expert: int) -> tuple[Callable[..., torch.Tensor], ...]:
            found, first = [], 0
            for record in self.place.matrices[name][expert]:
                stop = first + outputs_of(record)
                bias = None if biases is None else biases[expert, first:stop]
                operand = Operand.of(engine, self._number, record)
                found.append(partial(product, operand, bias=bias, int8_activations=False))
                first = stop
            return tuple(found)

        return tuple(map(products, range(self.place.n_experts)))

    def _device_factors(
        self, engine: Weights, name: str, *, has_bias: bool
    ) -> tuple[tuple[Callable[..., torch.Tensor], ...], ...]:
        """The same with what is prepared there for few tokens; biases are looked up when they are on the device."""

        def one(record: TensorRecord, expert: int, outputs: slice) -> Callable[..., torch.Tensor]:
            operand = Operand.of(engine, self._number, record)
            direct = engine.direct_product(operand.matrix, rounds=False)

            def compute(x: torch.Tensor) -> torch.Tensor:
                bias = getattr(self, f"{name}_bias")[expert, outputs] if has_bias else None
                y = None if direct is None or torch.compiler.is_compiling() else direct(x, bias)
                return product(operand, x, bias, int8_activations=False) if y is None else y

            return compute

        found = []
        for expert, records in enumerate(self.place.matrices[name]):
            ends = list(accumulate(map(outputs_of, records), initial=0))
            runs = map(slice, ends, ends[1:])
            found.append(tuple(one(record, expert, run) for record, run in zip(records, runs, strict=True)))
        return tuple(found)

    def forward(self, hidden_states: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        """Give what the module's own class gives for these arguments. No compiler looks inside."""
        routing = self._routing(*args, **options)
        x, dtype = self._input(hidden_states), hidden_states.dtype
        if not torch.compiler.is_compiling():
            return self.computed(x, routing, dtype)
        if any(parameter.requires_grad for parameter in self.parameters()):
            y: torch.Tensor = _uncompiled(self.computed, x, routing, dtype)
        else:
            y = compiled_experts.experts(
                x, routing, module=self._module_number, dtype=dtype, n_columns=x.shape[-1]
            )
        return y

    def _routing(
        self, top_k_index: torch.Tensor | None = None, top_k_weights: torch.Tensor | None = None
    ) -> list[torch.Tensor]:
        """What a module is given besides its input: of each token its experts [n, k], and weights of these."""
        return [tensor for tensor in (top_k_index, top_k_weights) if tensor is not None]

    def computed(self, x: torch.Tensor, routing: list[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        """Give what the experts make of `x`, which is in the dtype to compute in, in `dtype`."""
        return (self._batched(x) if self.place.form.calls == "batched" else self._routed(x, *routing)).to(
            dtype
        )

    def stack(self, name: str) -> torch.Tensor:
        """A stack as the class has it, decoded; on meta until it is loaded."""
        shape = self._shapes[name]
        if self._engine is None:
            return torch.empty(shape, dtype=self._dtype, device="meta")
        # An expert is decoded first, and put into its place then.
        n_bytes = self._dtype.itemsize * shape.numel()
        what = f"{self.place.module}.{name}"
        return self.engine.room.decode(
            what, n_bytes + 2 * n_bytes // shape[0], lambda: self._decode_stack(name)
        )

    def _decode_stack(self, name: str) -> torch.Tensor:
        out = torch.empty(self._shapes[name], dtype=self._dtype, device=self._device)
        for expert, pieces in enumerate(self.place.matrices[name]):
            matrix = torch.cat([self.engine.values(record.name) for record in pieces])
            out[expert] = matrix.t() if self.place.form.transposed else matrix
        return out

    def packed_weights(self) -> dict[str, torch.Tensor]:
        """The stacks by the names that the class has for them."""
        return {
            name: PackedWeight(
                name=f"{self.place.module}.{name}",
                shape=shape,
                dtype=self._dtype,
                device=self._device,
                values=partial(self.stack, name),
                product=None,
                owner=self._engine,
            )
            for name, shape in self._shapes.items()
        }

    @property  # type: ignore[misc]  # nor can one be set
    def weight(self) -> torch.Tensor:
        """Raise AttributeError: experts have no weight of this name."""
        raise AttributeError(f"{type(self).__name__} has no weight")

    def _routed(
        self, x: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        """Answer as transformers' interface does: tokens [n, hidden], their experts [n, k], and weights of these."""
        n_tokens, top_k = top_k_index.shape
        found = torch.zeros(n_tokens * top_k, x.shape[-1], dtype=x.dtype, device=x.device)
        places = _places(top_k_index, self.place.n_experts)
        for expert in self._in_turn(places, n_tokens):
            slots = places[expert]
            found[slots] = self._expert(expert, x if n_tokens == 1 else x[slots // top_k])
        if self.has_post_expert_norm:
            found = self.post_expert_norm(found)
        weighted = found * top_k_weights.reshape(-1, 1)
        return weighted.view(n_tokens, top_k, -1).sum(1)

    def _batched(self, x: torch.Tensor) -> torch.Tensor:
        """Rows [experts * n, hidden], of each expert its own: those of zeros stay zeros, without a product."""
        given = x.view(self.place.n_experts, -1, x.shape[-1])
        some = (given != 0).any(-1)
        out = torch.zeros_like(given)
        for expert in self._in_turn(some.any(-1).nonzero()[:, 0].tolist(), given.shape[1]):
            tokens = some[expert].nonzero()[:, 0]
            out[expert, tokens] = self._expert(expert, given[expert, tokens])
        return out.view(-1, x.shape[-1])

    def _input(self, x: torch.Tensor) -> torch.Tensor:
        check_input(self, x)
        cast = autocast_dtype(x)
        if cast is not None:
            return x.to(cast)
        if x.dtype != self._dtype:
            raise TypeError(f"{self.place.module}: experts in {self._dtype} take no input of {x.dtype}")
        return x

    def _expert(self, expert: int, x: torch.Tensor) -> torch.Tensor:
        """`x` [n, hidden] through an expert, [n, hidden], without the weight that the router gives it."""
        up, down = self._up[expert], self._down[expert]
        inner = up[0](x) if len(up) == 1 else torch.cat([part(x) for part in up], -1)
        inner = self._act(inner)
        return down[0](inner) if len(down) == 1 else torch.cat([part(inner) for part in down], -1)

    def _gated(self, both: torch.Tensor) -> torch.Tensor:
        gate, up = both.chunk(2, -1)
        y: torch.Tensor = self.act_fn(gate) * up
        return y

    def extra_repr(self) -> str:
        """Show how many experts there are, and the schemes of their matrices."""
        schemes = ", ".join(sorted({record.scheme for record in self.place.records}))
        return f"experts={self.place.n_experts}, top_k={self.place.top_k}, scheme={schemes}"


# For parameters of their own that are trained: the graph breaks here.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def _uncompiled(compute: Callable[..., torch.Tensor], *args: Any, **options: Any) -> torch.Tensor:
    return compute(*args, **options)


def _places(top_k_index: torch.Tensor, n_experts: int) -> dict[int, Any]:
    """The experts that are chosen, and for each the numbers of its places in [n, k], flattened.

    Numbers beyond the experts are those of tokens that another process has.
    """
    if len(top_k_index) == 1:
        chosen = top_k_index[0].tolist()
        if len(set(chosen)) == len(chosen):
            return {expert: slice(slot, slot + 1) for slot, expert in enumerate(chosen) if expert < n_experts}
    flat = top_k_index.reshape(-1)
    order = torch.argsort(flat, stable=True)
    experts, counts = torch.unique_consecutive(flat[order], return_counts=True)
    runs = torch.split(order, counts.tolist())
    return {e: run for e, run in zip(experts.tolist(), runs, strict=True) if e < n_experts}


def outputs_of(record: TensorRecord) -> int:
    """How many outputs a matrix of an expert has."""
    return record.matrix_shape[1 if getattr(record, "turned", False) else 0]


def _stack(name: str, module: PackedExperts) -> torch.Tensor:
    return module.stack(name)


@cache
def _class_of(experts_class: type, stacks: tuple[str, ...]) -> type:
    """`experts_class` by its name, computed from packed weights; `stacks` are decoded where they are asked for."""
    members: dict[str, Any] = {
        "__module__": experts_class.__module__,
        "__qualname__": experts_class.__qualname__,
    }
    members |= {name: property(partial(_stack, name)) for name in stacks}
    return type(experts_class.__name__, (PackedExperts, experts_class), members)


def pack_experts(module: Any, place: ExpertsPlace, dtype: torch.dtype) -> None:
    """Let a module of experts compute from packed weights, once these are attached."""
    experts_class: type = type(module)
    module.__class__ = _class_of(experts_class, tuple(place.matrices))
    module.prepare(place, dtype)
