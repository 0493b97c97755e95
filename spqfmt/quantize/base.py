"""What a method is: how a float model becomes a scheme's parameters. Free to change, never needed to read a file."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, Self, runtime_checkable

import torch

from spqfmt.errors import EncodeError, OptionError
from spqfmt.importers.base import SourceTensor
from spqfmt.schemes.base import Quantized


@dataclass(frozen=True)
class Weight:
    """One tensor for a method. `role` is linear, embedding, head or other; `transposed` says that it is [in, out].

    Linear are the experts of a layer too, [experts, out, in], or transposed each.
    `form` says as what codes the source stores it; empty where it stores elements of `dtype`.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    role: Literal["linear", "embedding", "head", "other"]
    transposed: bool = False
    form: str = ""

    @classmethod
    def of(cls, source: SourceTensor) -> Self:
        """A tensor of a source, as a method sees it."""
        s = source
        return cls(
            name=s.name, shape=s.shape, dtype=s.dtype, role=s.role, transposed=s.transposed, form=s.form
        )


@dataclass(frozen=True)
class MethodOptions:
    """What the user asked for; None is the method's own default."""

    bits: int | None = None
    bits_per_weight: float | None = None
    """ecq's bits, any number: what is stored for a weight in the mean."""
    granularity: str | None = None
    group_size: int | None = None
    embedding_bits: int | None = None
    threshold: float | None = None
    damping: float | None = None
    act_order: bool | None = None
    alpha: float | None = None
    scaling: str | None = None
    pruning: str | None = None
    sparsity: float | None = None
    pattern: str | None = None
    activations: str | None = None
    range_weight: float | None = None
    saliency_tokens: str | None = None
    search_steps: int | None = None
    search_samples: int | None = None
    gradients: bool | None = None
    no_calibration: bool | None = None
    effort: str | None = None
    trellis: bool | None = None
    editing: Mapping[str, float] | None = None
    """jsq's editing vector: ratios of the clamp by the first tensor that reads the input. Not for the user to give."""


class Method(Protocol):
    """One way to quantize, found by its name."""

    name: str
    takes: frozenset[str]
    """Names of the MethodOptions that mean something to it; others are refused before `check`."""

    def check(self, options: MethodOptions) -> MethodOptions:
        """Options with every default filled in. Raises OptionError with one line for the user."""
        ...

    def describe(self, weight: Weight, options: MethodOptions) -> str:
        """What will be done with this tensor, in a few words; empty when it is stored as it is."""
        ...

    def quantize(self, weight: Weight, value: torch.Tensor, options: MethodOptions) -> Quantized:
        """`value` in the terms of a scheme. Only called where `describe` said something."""
        ...


@runtime_checkable
class GradedMethod(Method, Protocol):
    """A method that is another one under some options."""

    def grade(self, options: MethodOptions) -> Method:
        """The method for these options."""
        ...


@runtime_checkable
class KeepingMethod(Method, Protocol):
    """A method that takes tensors over as the codes that the source stores; others get the values of all tensors."""

    def keep(self, weight: Weight, stored: Quantized) -> Quantized:
        """What is written of a tensor whose `form` is not empty. Only called where `describe` said something."""
        ...


@runtime_checkable
class SizedMethod(Method, Protocol):
    """A method of which is known, by shapes alone, how large its tensors are at most."""

    def most_bytes(self, weight: Weight, options: MethodOptions) -> int:
        """The bytes of a tensor before they are compressed. Only called where `describe` said something."""
        ...


def refuse_others(method: Method, options: MethodOptions) -> None:
    """Raise OptionError when an option is given that the method does not take."""
    given = [name for name, value in vars(options).items() if value is not None]
    wrong = ["--" + name.replace("_", "-") for name in given if name not in method.takes]
    if wrong:
        raise OptionError(f"method {method.name} takes no {', '.join(wrong)}")


_LARGEST = {"f16": 2.0**15}
"""Half of what float16 holds: a grid may pass its largest weight by half a step."""
_LARGEST_IN_FLOAT32, _SMALLEST = 2.0**110, 2.0**-126
"""What sums and grids are computed of; smaller ones have no exponent of their own."""


def as_matrix(weight: Weight, value: torch.Tensor) -> torch.Tensor:
    """The matrix [out, in] in float32 (FORMAT.md 5.1), of experts [experts * out, in].

    Raises EncodeError when it holds NaN or Inf, or weights beyond what methods compute with.
    """
    turned = value.transpose(-1, -2) if weight.transposed else value
    rows = turned.reshape(-1, turned.shape[-1])
    matrix = rows.float()
    # NaN and Inf are never lost in least and largest; one pass, no memory.
    bounds = [float(bound) for bound in value.aminmax()]
    if not all(math.isfinite(bound) for bound in bounds):
        raise EncodeError(
            f"tensor {weight.name!r} holds NaN or Inf and cannot be quantized; method lossless keeps it"
        )
    largest = max(map(abs, bounds))
    in_range = not largest or _SMALLEST <= largest <= _LARGEST.get(weight.dtype, _LARGEST_IN_FLOAT32)
    if weight.dtype == "f64" and in_range:
        in_range = bool(((matrix != 0).any(1) | (rows == 0).all(1)).all())
    if not in_range:
        raise EncodeError(
            f"tensor {weight.name!r} has weights too large or too small to be quantized (up to {largest:.2g}); "
            "method lossless keeps it"
        )
    return matrix
