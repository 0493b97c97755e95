"""Modules that stand in for torch's where the weights are packed."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol, Self

import torch
from torch import nn

from spqfmt.errors import SpqError
from spqfmt.loaders.packed.room import Room
from spqfmt.loaders.packed.weight import NUMBERS, PackedWeight, Product, Rows, autocast_dtype
from spqfmt.loaders.schemes.matrix import NAMES
from spqfmt.loaders.schemes.registry import PRODUCTS
from spqfmt.models.treatments import TOKEN_INT8, treatment
from spqfmt.records import TensorRecord


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

    def matrix(self, tensor: str) -> Any:
        """What `multiply` takes, by the tensor's name."""
        ...

    def multiply(
        self, matrix: Any, x: torch.Tensor, bias: nn.Parameter | None, *, int8_activations: bool
    ) -> torch.Tensor:
        """`x` [..., columns] times a tensor's matrix: [..., rows] in x's dtype."""
        ...

    def look_up(self, tensor: str, ids: torch.Tensor) -> torch.Tensor:
        """Rows `ids` [...] of a tensor's matrix: [..., columns] in the model's dtype."""
        ...

    def values(self, tensor: str) -> torch.Tensor:
        """A tensor's matrix, [rows, columns] in the model's dtype, in memory of its own."""
        ...


class _Packed(nn.Module):
    """A module whose weight is a tensor of an engine. It has no parameter for it, and nothing to train or to save."""

    def __init__(self, record: TensorRecord, dtype: torch.dtype) -> None:
        super().__init__()
        self.record = record
        self._dtype = dtype
        self._engine: Weights | None = None
        self.is_tied = False
        """Whether its numbers are another module's too, which counts them."""

    def attach(self, engine: Weights) -> None:
        """Compute with this engine from now on."""
        self._engine = engine

    @property
    def engine(self) -> Weights:
        """What holds the weights and computes with them. SpqError: there is none yet."""
        if self._engine is None:
            raise SpqError(f"{self.record.name}: no weights are loaded")
        return self._engine

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Give what `compute` gives, into which no compiler looks."""
        if torch.compiler.is_compiling():
            y: torch.Tensor = _uncompiled(self.compute, x)
            return y
        return self.compute(x)

    def compute(self, x: torch.Tensor) -> torch.Tensor:
        """What the module makes of its input."""
        raise NotImplementedError

    def _as_torch_does(
        self, function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], x: torch.Tensor
    ) -> torch.Tensor:
        """Give what torch's own function makes of `x` and a matrix of this form, in words that name the tensor.

        That is an error, or a result without elements: the matrix is one number in no memory.
        """
        one = torch.zeros(1, dtype=self._dtype, device=x.device)
        try:
            y = function(x, one.expand(self.record.matrix_shape))
        except (RuntimeError, TypeError, IndexError) as error:
            raise type(error)(f"{self.record.name}: {error}") from None
        if y.numel():
            raise TypeError(f"{self.record.name}: packed weights take no input of {x.dtype}, {list(x.shape)}")
        return y

    @property
    def weight(self) -> torch.Tensor:
        """The weight that this stands for, decoded where its values are wanted; on meta until it is loaded."""
        if self._engine is None:
            return torch.empty(self.record.shape, dtype=self._dtype, device="meta")
        if torch.compiler.is_compiling():
            values: torch.Tensor = _uncompiled(self._decode)
            return values
        where = self._engine.torch_device
        return PackedWeight(
            name=self.record.name,
            shape=self.record.shape,
            dtype=self._dtype,
            device=where,
            values=self._values,
            product=self._product(),
            rows=self._rows(),
        )

    def _values(self) -> torch.Tensor:
        """Decode the weight for whoever reads it. Raises MemoryBudgetError where that is the model under a ceiling."""
        record = self.record
        n_bytes = record.n_weights * self._dtype.itemsize
        # A transposed matrix is decoded first, and turned then.
        return self.engine.room.decode(record.name, n_bytes * (2 if record.transposed else 1), self._decode)

    def _decode(self) -> torch.Tensor:
        matrix = self.engine.values(self.record.name)
        return matrix.t().contiguous() if self.record.transposed else matrix

    def _rows(self) -> Rows | None:
        """Looks up rows of the weight, where that can be done without decoding it."""
        return None

    def _product(self) -> Product | None:
        """The product with the weight as a tensor: without what happens to inputs of the module."""
        return None

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        self.check_move(fn)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def check_move(self, fn: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Raise SpqError where `fn`, which torch applies to all parameters, gives them another dtype or device."""
        if self._engine is None:
            return
        before = torch.empty(0, dtype=self._dtype, device=self._engine.torch_device)
        after = fn(before)
        if after.dtype != before.dtype:
            raise SpqError(
                f"{self.record.name}: its model computes from packed weights in {_short(before.dtype)}, which cannot "
                f"become {_short(after.dtype)}; load it again with the dtype that is wanted"
            )
        if after.device != before.device:
            raise SpqError(
                f"{self.record.name}: packed weights on {before.device} cannot move to {after.device}; "
                "load the model again with the device that is wanted"
            )

    def _save_to_state_dict(self, destination: Mapping[str, Any], prefix: str, keep_vars: bool) -> None:
        if self._engine is not None:
            raise SpqError(
                "a model with packed weights has no state dict; copy its .spq file, or use spqfmt unpack"
            )
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def __deepcopy__(self, memo: object) -> "_Packed":
        raise SpqError("a model with packed weights cannot be copied; load it again")


class PackedLinear(_Packed):
    """y = x W^T + bias from the codes of W, for any leading shape of x, in the dtype of the model or of autocast.

    What torch's layer refuses, such as inputs of another dtype, is refused as there. The record's activation clamp
    comes first. `int8_activations`: tokens are rounded to int8 with a scale each.
    """

    def __init__(
        self, record: TensorRecord, dtype: torch.dtype, bias: nn.Parameter | None, *, int8_activations: bool
    ) -> None:
        super().__init__(record, dtype)
        self.out_features, self.in_features = record.matrix_shape
        # Inputs of schemes without integer products are rounded, as where weights are floats.
        self.int8_activations = int8_activations and PRODUCTS[record.scheme].multiplies_integers
        rounded = TOKEN_INT8 if int8_activations and not self.int8_activations else None
        self.treatment = treatment(record.activation_clamp, rounded)
        self.bias: nn.Parameter | None = bias

    def attach(self, engine: Weights) -> None:
        """Compute with this engine from now on."""
        super().attach(engine)
        self._matrix = engine.matrix(self.record.name)

    def _product(self) -> Product | None:
        if self.record.transposed:
            return None
        return partial(self.engine.multiply, self._matrix, int8_activations=False)

    def compute(self, x: torch.Tensor) -> torch.Tensor:
        """`x` [..., in_features] -> [..., out_features]. Raises SpqError where a gradient is wanted."""
        engine = self.engine
        if isinstance(x, PackedWeight):
            x = x.decoded()
        _check(self, x)
        cast = autocast_dtype(x)
        fits = x.dtype == self._dtype if cast is None else x.dtype in NAMES
        if not fits or not x.dim() or x.shape[-1] != self.in_features:
            return self._as_torch_does(nn.functional.linear, x)
        dtype = x.dtype if cast is None else cast
        if self.treatment is not None and x.numel():
            with torch.no_grad():
                # What is rounded to integers then is not rounded to the input's dtype before (FORMAT.md 6).
                x = self.treatment(x.float() if self.int8_activations else x)
        if cast is not None and not self.int8_activations:
            x = x.to(cast)
        return engine.multiply(self._matrix, x, self.bias, int8_activations=self.int8_activations).to(dtype)

    def extra_repr(self) -> str:
        """Show what nn.Linear shows, and the scheme."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"scheme={self.record.scheme}, int8_activations={self.int8_activations}"
        )


class PackedEmbedding(_Packed):
    """Rows of a packed matrix by number."""

    def __init__(self, record: TensorRecord, dtype: torch.dtype, padding_idx: int | None) -> None:
        super().__init__(record, dtype)
        self.num_embeddings, self.embedding_dim = record.matrix_shape
        self.padding_idx = padding_idx

    def compute(self, x: torch.Tensor) -> torch.Tensor:
        """`x`, numbers [...], int32 or int64 -> [..., embedding_dim] in the model's dtype."""
        engine = self.engine
        _check(self, x)
        if x.dtype not in NUMBERS:
            return self._as_torch_does(nn.functional.embedding, x)
        return engine.look_up(self.record.name, x)

    def _rows(self) -> Rows | None:
        return partial(self.engine.look_up, self.record.name)

    def extra_repr(self) -> str:
        """Show what nn.Embedding shows, and the scheme."""
        return f"{self.num_embeddings}, {self.embedding_dim}, scheme={self.record.scheme}"


# Compilers must not look inside: buffers are lent, and numpy computes. They break the graph here.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def _uncompiled(compute: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> torch.Tensor:
    return compute(*inputs)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _check(module: _Packed, x: torch.Tensor) -> None:
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{module.record.name}: an input is a tensor, not {type(x).__name__}")
    where = module.engine.torch_device
    if x.device != where:
        raise SpqError(f"{module.record.name}: packed weights are on {where}, the input is on {x.device}")
    if x.requires_grad and torch.is_grad_enabled():
        raise SpqError(
            f"{module.record.name}: packed weights give no gradients; "
            "use torch.inference_mode(), or load without memory="
        )
