"""Modules that stand in for torch's where the weights are packed.

Each is one of torch's class (or transformers'), so that what looks for such layers, as PEFT does, finds them.
"""

from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, Self

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from spqfmt.errors import SpqError
from spqfmt.loaders.packed import compiled
from spqfmt.loaders.packed.products import Operand, product
from spqfmt.loaders.packed.shares import is_of_each, of_all_inputs
from spqfmt.loaders.packed.weight import (
    SAVE_INSTEAD,
    UNCHANGED,
    PackedWeight,
    Product,
    Rows,
    autocast_dtype,
)
from spqfmt.loaders.packed.weights import DirectProduct, Weights, decoded
from spqfmt.loaders.schemes.matrix import NAMES
from spqfmt.loaders.schemes.registry import PRODUCTS
from spqfmt.models.places import Share
from spqfmt.models.treatments import TOKEN_INT8, treatment
from spqfmt.records import TensorRecord


class Holding(nn.Module):
    """A module with a `weight` that is no parameter: state dicts have it, and nothing changes it."""

    @property
    @abstractmethod
    def weight(self) -> torch.Tensor:
        """What state dicts have."""

    @property
    @abstractmethod
    def is_loaded(self) -> bool:
        """Whether there are weights to compute from."""

    def packed_weights(self) -> dict[str, torch.Tensor]:
        """What a state dict has for this module, beside its parameters."""
        return {"weight": self.weight}

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        if self.is_loaded:
            destination.update({f"{prefix}{name}": value for name, value in self.packed_weights().items()})
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        errors: list[str] = arguments[-1]
        for name, own in self.packed_weights().items() if self.is_loaded else ():
            given = state_dict.pop(f"{prefix}{name}", None)
            if given is not None and not (isinstance(given, PackedWeight) and given.is_same(own)):
                errors.append(f"{prefix}{name}: {UNCHANGED}")
        super()._load_from_state_dict(state_dict, prefix, *arguments)


class Packed(Holding):
    """A module whose weight is a tensor of an engine. It has no parameter for it, and nothing to train.

    `share`: what of the layer one rank of several computes, of which `record` holds the weights; None for all of it.
    """

    share: Share | None = None
    tied: str | None = None
    """The packed weight that takes its numbers from this module's, one of them where there are several."""

    def __init__(self, record: TensorRecord, dtype: torch.dtype, share: Share | None = None) -> None:
        nn.Module.__init__(self)  # the classes of torch's layers would make a parameter
        self.record = record
        self.share = share
        self.shape = record.matrix_shape if share is None else share.shape
        # transformers then leaves inputs and outputs the tensors that they are, each rank's own.
        self._hf_quantized_needs_local_tp = share is not None
        self._dtype = dtype
        self._engine: Weights | None = None
        self.is_tied = False
        """Whether its numbers are another module's too, which counts them."""

    def attach(self, engine: Weights, number: int | None = None) -> None:
        """Compute with this engine from now on. `number` is the one that compiled graphs know it by."""
        self._engine = engine
        self._device = engine.torch_device
        self._number = compiled.number_of(engine) if number is None else number

    @property
    def engine(self) -> Weights:
        """What holds the weights and computes with them. SpqError: there is none yet."""
        if self._engine is None:
            raise SpqError(f"{self.record.name}: no weights are loaded")
        return self._engine

    @property
    def is_loaded(self) -> bool:
        """Whether an engine is attached."""
        return self._engine is not None

    @property
    def n_weights(self) -> int:
        """Weights of the whole layer."""
        return self.record.n_weights if self.share is None else self.shape[0] * self.shape[1]

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
            shape = self.record.shape if self.share is None else self.shape
            return torch.empty(shape, dtype=self._dtype, device="meta")
        record = self.record
        if self.share is not None:
            return self._weight_of_share()
        if torch.compiler.is_compiling():
            values: torch.Tensor = compiled.values(
                weights=self._number,
                tensor=record.name,
                shape=record.shape,
                dtype=self._dtype,
                device=self._device,
                transposed=record.transposed,
            )
            return values
        n_bytes = record.n_weights * self._dtype.itemsize
        return PackedWeight(
            name=record.name,
            shape=record.shape,
            dtype=self._dtype,
            device=self._device,
            owner=self._engine,
            values=partial(decoded, self._engine, record.name, n_bytes, transposed=record.transposed),
            product=self._product(),
            rows=self._rows(),
            tied=self.tied,
        )

    @weight.setter
    def weight(self, value: object) -> None:
        if not (isinstance(value, PackedWeight) and value.is_same(self.weight)):
            raise SpqError(f"{self.record.name}: {UNCHANGED}")

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Add a parameter; SpqError where it would stand in place of the packed weight, or be it (torch prunes so)."""
        given: object = param
        if isinstance(given, PackedWeight) or (name == "weight" and given is not None):
            raise SpqError(f"{self.record.name}: {UNCHANGED}")
        super().register_parameter(name, param)

    def _weight_of_share(self) -> torch.Tensor:
        """The form of the whole weight, as transformers has it of parameters that ranks share; values are refused."""
        name = self.record.name

        def values() -> torch.Tensor:
            raise SpqError(f"{name}: this rank has a part of the weight, whose values are nowhere together")

        return PackedWeight(
            name=name,
            shape=self.shape,
            dtype=self._dtype,
            device=self._device,
            owner=self._engine,
            values=values,
            product=None,
        )

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

    def __deepcopy__(self, memo: object) -> "Packed":
        raise SpqError(
            f"{self.record.name}: packed weights cannot be copied; load with packed=False to copy them"
        )

    def __reduce_ex__(self, protocol: object) -> Any:
        raise SpqError(f"{self.record.name}: packed weights cannot be pickled: {SAVE_INSTEAD}")


class PackedProduct(Packed):
    """y = x W^T + bias from the codes of W, for any leading shape of x, in the dtype of the model or of autocast.

    What torch's layer refuses, such as inputs of another dtype, is refused as there. The record's activation clamp
    comes first. `int8_activations`: tokens are rounded to int8 with a scale each; None: few tokens may be rounded
    finely.
    """

    def __init__(
        self,
        record: TensorRecord,
        dtype: torch.dtype,
        bias: nn.Parameter | None,
        *,
        int8_activations: bool | None,
        share: Share | None = None,
    ) -> None:
        super().__init__(record, dtype, share)
        self.out_features, self.in_features = self.shape
        of_columns = share if share is not None and share.of_columns else None
        self._n_inputs = self.in_features if of_columns is None else len(of_columns.wanted)
        # Inputs of schemes without integer products are rounded, as where weights are floats; so is a part of a token,
        # whose integers have the scale of all of it.
        multiplies = PRODUCTS[record.scheme].multiplies_integers and of_columns is None
        self.int8_activations = bool(int8_activations) and multiplies
        self._rounding = None if int8_activations is None else self.int8_activations
        rounded = TOKEN_INT8 if int8_activations and not self.int8_activations else None
        self.treatment = treatment(record.activation_clamp, rounded)
        of_each = is_of_each(record.activation_clamp, rounded)
        if of_columns is not None and self.treatment is not None and not of_each:
            self.treatment = of_all_inputs(self.treatment, of_columns)
        self.bias: nn.Parameter | None = bias
        self._direct: DirectProduct | None = None

    def attach(self, engine: Weights, number: int | None = None) -> None:
        """Compute with this engine from now on."""
        super().attach(engine, number)
        self._operand = Operand.of(engine, self._number, self.record)
        is_plain = self.treatment is None and not self.int8_activations
        is_plain = is_plain and (self.share is None or self.share.is_exact)
        self._direct = (
            engine.direct_product(self._operand.matrix, rounds=self._rounding is None) if is_plain else None
        )

    def _product(self) -> Product | None:
        if self.record.transposed:
            return None
        return partial(product, self._operand, int8_activations=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x` [..., in_features] -> [..., out_features], with gradients for `x`; rounding has those of no rounding."""
        if not torch.compiler.is_compiling() and (direct := self._direct) is not None:
            y = direct(x, self.bias)
            if y is not None:
                return y
        if isinstance(x, PackedWeight):
            x = x.decoded()
        check_input(self, x)
        cast = autocast_dtype(x)
        fits = x.dtype == self._dtype if cast is None else x.dtype in NAMES
        if not fits or not x.dim() or x.shape[-1] != self._n_inputs:
            return self._as_torch_does(nn.functional.linear, x)
        dtype = x.dtype if cast is None else cast
        if self.treatment is not None and x.numel():
            # What is rounded to integers then is not rounded to the input's dtype before (FORMAT.md 6).
            x = self.treatment(x.float() if self.int8_activations else x)
        if cast is not None and not self.int8_activations:
            x = x.to(cast)
        return self._multiply(x).to(dtype)

    def _multiply(self, x: torch.Tensor) -> torch.Tensor:
        """The product and the bias, where there is one: of a share those of its rows, or a part of each sum."""
        share = self.share
        if share is None or share.is_exact:
            return product(self._operand, x, self.bias, int8_activations=self._rounding)
        if share.of_columns:
            before, after = share.inside.start, len(share.held) - share.inside.stop
            x = nn.functional.pad(x, (before, after))
            return product(self._operand, x, self.bias, int8_activations=self._rounding)
        y = product(self._operand, x, None, int8_activations=self._rounding)[..., share.inside].contiguous()
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        """Show what nn.Linear shows, and the scheme."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"scheme={self.record.scheme}, int8_activations={self.int8_activations}"
        )


class PackedLinear(PackedProduct, nn.Linear):  # type: ignore[misc]  # the weight is no parameter
    """In the place of an nn.Linear."""


class PackedConv1D(PackedProduct, Conv1D):  # type: ignore[misc]  # transformers has no types
    """In the place of transformers' Conv1D, whose weight is [in_features, out_features]."""

    def __init__(
        self,
        record: TensorRecord,
        dtype: torch.dtype,
        bias: nn.Parameter | None,
        *,
        int8_activations: bool | None,
        share: Share | None = None,
    ) -> None:
        super().__init__(record, dtype, bias, int8_activations=int8_activations, share=share)
        self.nf, self.nx = record.matrix_shape

    __repr__ = nn.Module.__repr__


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def check_input(module: Packed, x: torch.Tensor) -> None:
    """Raise where `x` is no tensor, or not where the weights are. SpqError: there are none yet."""
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{module.record.name}: an input is a tensor, not {type(x).__name__}")
    if module._engine is None:
        raise SpqError(f"{module.record.name}: no weights are loaded")
    where = module._device
    if x.device != where:
        raise SpqError(f"{module.record.name}: packed weights are on {where}, the input is on {x.device}")
