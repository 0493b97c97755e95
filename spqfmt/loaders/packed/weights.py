"""What packed modules compute with."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from torch import nn

from spqfmt.kernels.context import Context
from spqfmt.kernels.multiply import CodeMatrices
from spqfmt.loaders.packed.room import Room

DirectProduct: TypeAlias = Callable[[torch.Tensor, nn.Parameter | None], torch.Tensor | None]
"""(x, bias): the product with a matrix in one native call, or None where `x` or the moment wants more than that."""

DirectProducts: TypeAlias = Callable[
    [torch.Tensor, Sequence[nn.Parameter | None]], Sequence[torch.Tensor] | None
]
"""(x, biases): the products with some matrices in one native call, or None likewise."""


class NativeProducts(NamedTuple):
    """Some matrices whose inputs are the same, for whoever computes more than their products in a native call."""

    matrices: CodeMatrices
    dtype: torch.dtype
    """That of inputs and outputs."""
    context: Context
    """With which they are multiplied: whoever has one of his own computes otherwise."""


class Weights(Protocol):
    """What modules compute with: packed.HostWeights on the CPU, device.DeviceWeights elsewhere."""

    @property
    def torch_device(self) -> torch.device:
        """Where inputs are, and outputs."""
        ...

    @property
    def room(self) -> Room:
        """What a ceiling leaves for weights that the model's own code reads."""
        ...

    @property
    def held_bytes(self) -> int:
        """Memory of weights where inputs are, but for ordinary parameters."""
        ...

    @property
    def host_held_bytes(self) -> int:
        """Memory of weights on the host besides."""
        ...

    def is_recordable(self, tensor: str) -> bool:
        """Whether products with a tensor's matrix may stand in a CUDA graph of a compiler: it stays decoded."""
        ...

    def looks_up_here(self, tensor: str) -> bool:
        """Whether rows of a tensor's matrix are looked up where inputs are."""
        ...

    def matrix(self, tensor: str) -> Any:
        """What `multiply` takes, by the tensor's name."""
        ...

    def multiply(
        self, matrix: Any, x: torch.Tensor, bias: nn.Parameter | None, *, int8_activations: bool | None
    ) -> torch.Tensor:
        """`x` [..., columns] times a tensor's matrix: [..., rows] in x's dtype."""
        ...

    def direct_product(self, matrix: Any, *, rounds: bool) -> DirectProduct | None:
        """`multiply` for whoever calls it often, with few tokens; None: there is none.

        `rounds` is an `int8_activations` of None, and else it is False.
        """
        ...

    def direct_products(self, matrices: Sequence[Any], *, rounds: bool) -> DirectProducts | None:
        """`direct_product` with some matrices whose inputs are the same."""
        ...

    def native_products(self, matrices: Sequence[Any]) -> NativeProducts | None:
        """What `direct_products` multiplies by."""
        ...

    def multiply_transposed(self, matrix: Any, y: torch.Tensor) -> torch.Tensor:
        """`y` [..., rows] times a tensor's matrix, not transposed: [..., columns] in y's dtype. What gradients take."""
        ...

    def part_numbers(self, tensors: Iterable[str]) -> tuple[int, ...]:
        """What `as_they_come` knows the parts of some tensors by."""
        ...

    def as_they_come(self, experts: Mapping[int, Sequence[int]], n_tokens: int) -> Iterator[int]:
        """Give each of some experts, known by the numbers of its parts, when it can be computed, soonest first.

        Each is computed for up to `n_tokens` tokens.
        """
        ...

    def look_up(self, tensor: str, ids: torch.Tensor) -> torch.Tensor:
        """Rows `ids` [...] of a tensor's matrix: [..., columns] in the model's dtype."""
        ...

    def values(self, tensor: str) -> torch.Tensor:
        """A tensor's matrix, [rows, columns] in the model's dtype, in memory of its own."""
        ...


def decoded(weights: Weights, tensor: str, n_bytes: int, *, transposed: bool) -> torch.Tensor:
    """A tensor of `n_bytes` for whoever reads it, as the model has it.

    Raises MemoryBudgetError where that is the model under a ceiling.
    """

    def decode() -> torch.Tensor:
        matrix = weights.values(tensor)
        return matrix.t().contiguous() if transposed else matrix

    # A transposed matrix is decoded first, and turned then.
    return weights.room.decode(tensor, n_bytes * (2 if transposed else 1), decode)
