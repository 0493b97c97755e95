"""What a calibrated method is: one that quantizes a block of the model at a time, knowing the inputs of its layers.

spqfmt.calibration runs the model and calls the method, block by block; see CalibratedMethod for what to write.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeGuard, runtime_checkable

import torch

from spqfmt.quantize.base import Method, MethodOptions, Weight
from spqfmt.quantize.drift import Drift
from spqfmt.schemes.base import Encoded, Quantized
from spqfmt.schemes.floats import Scale


class Accumulator(Protocol):
    """Gathers what a method wants to know of one input; spqfmt.quantize.statistics has ready ones."""

    def add(self, inputs: torch.Tensor) -> None:
        """More inputs, [samples, tokens, columns] in most layers, [tokens, columns] where a layer sees only some."""
        ...


@dataclass(frozen=True)
class Layer:
    """A linear layer of a block. `matrix` gives its weights as float32 [out, in], in memory of the caller's own."""

    weight: Weight
    module: str
    """Name of the module inside the block, such as "self_attn.q_proj"."""
    matrix: Callable[[], torch.Tensor]


@dataclass(frozen=True)
class Site:
    """Layers of a block that read the very same input, and the statistics of it.

    `inputs` runs the block again and yields the input batch by batch, in the order and shape that `Accumulator.add`
    saw. `producer` is the module inside the block whose output the input is ("" when none is: a sum, a product), and
    `shared` says that something else than these layers may read it too.
    """

    layers: tuple[Layer, ...]
    statistics: Accumulator
    inputs: Callable[[], Iterator[torch.Tensor]]
    producer: str = ""
    shared: bool = False
    drift: Drift | None = None
    """How the input differs from the unquantized model's, for a method that corrects; None where nobody can tell."""


@dataclass(frozen=True)
class Block:
    """One block of the model before it is quantized.

    `module` holds the float weights of the source, on the device of the calibration; a method leaves it as it was.
    `tensors` are the block's other quantizable or foldable tensors by parameter name inside the block
    ("input_layernorm.weight"), with a way to read each. `run_first` computes the hidden states after the block for the
    first batch, [samples, tokens, columns].
    """

    name: str
    sites: tuple[Site, ...]
    module: torch.nn.Module
    tensors: Mapping[str, tuple[Weight, Callable[[], torch.Tensor]]]
    run_first: Callable[[], torch.Tensor]


@dataclass(frozen=True)
class Result:
    """What a method made of one tensor.

    `activation_clamp` and `activation_quantization` are the records of FORMAT.md section 6, made by
    spqfmt.models.treatments; the simulation treats the layer's input as they say. `formula_bits` is the tensor's
    size by the count of the method's paper.
    """

    quantized: Quantized
    activation_clamp: Mapping[str, object] | None = None
    activation_quantization: Mapping[str, object] | None = None
    formula_bits: float | None = None
    notes: tuple[str, ...] = field(default=())
    """Fallbacks that the user should know of, each one line."""


@runtime_checkable
class CalibratedMethod(Method, Protocol):
    """A method that needs calibration. `describe` says which tensors of the blocks it wants, as for any method.

    Linear tensors that the engine finds in no block, and those that `quantize_block` leaves out, are stored as they
    are. `quantize` is called for other tensors only (embedding and head).
    """

    calibrated: bool
    """False for a grade of the method that needs none."""

    def accumulator(self, n_columns: int, options: MethodOptions) -> Accumulator:
        """A fresh accumulator for one input of this many columns."""
        ...

    def quantize_block(self, block: Block, options: MethodOptions) -> Mapping[str, Result]:
        """Results by tensor name, for layers and, where a method changes them, for other tensors of the block."""
        ...


class LookingMethod(ABC):
    """A calibrated method that leaves everything as it is: it only sees the blocks, and what their layers read."""

    name: str = "looking"
    takes: frozenset[str] = frozenset()
    calibrated: bool = True

    def check(self, options: MethodOptions) -> MethodOptions:
        """Return the options as they are."""
        return options

    def describe(self, weight: Weight, options: MethodOptions) -> str:
        """Say that layers are looked at."""
        return "looked at" if weight.role == "linear" else ""

    def quantize(self, weight: Weight, value: torch.Tensor, options: MethodOptions) -> Quantized:
        """Raise TypeError: nothing is quantized."""
        raise TypeError(f"{weight.name}: who only looks quantizes nothing")

    @abstractmethod
    def accumulator(self, n_columns: int, options: MethodOptions) -> Accumulator:
        """Return what gathers an input of this many columns."""

    @abstractmethod
    def quantize_block(self, block: Block, options: MethodOptions) -> Mapping[str, Result]:
        """Look at a block; return nothing."""


@runtime_checkable
class EditingMethod(CalibratedMethod, Protocol):
    """A method that edits the inputs of layers: the block is run with the edits when statistics are gathered."""

    def edit(self, names: Sequence[str], options: MethodOptions) -> Mapping[str, object] | None:
        """The clamp record (FORMAT.md section 6) of the input that the tensors `names` read; None without one."""
        ...


class Trials(Protocol):
    """Lets a method try options on the whole model, compressed block after block on a few samples."""

    def choose(self, n_samples: int) -> None:
        """Use the first so many samples of the calibration; starts anew."""
        ...

    @property
    def sites(self) -> tuple[tuple[int, str], ...]:
        """Block number and name of the first tensor of every input of layers, once a perplexity was computed."""
        ...

    def perplexity(self, options: MethodOptions, first_block: int = 0) -> float:
        """The perplexity of the compressed model on the samples, inf where it overflows.

        `options` must do the same to the blocks before `first_block` as those that were accepted last.
        """
        ...

    def accept(self) -> None:
        """The options tried last are what the next trial starts from."""
        ...

    def stage(self, text: str) -> None:
        """Tell the user what goes on."""
        ...


@runtime_checkable
class CorrectingMethod(CalibratedMethod, Protocol):
    """A method that makes up for what quantization has done to the layers before, where `corrects`.

    `quantize_block` is then called for one site after the other, with the drift of its inputs; sites that see only some
    of the tokens come last, together and without.
    """

    corrects: bool


@runtime_checkable
class ResumedMethod(CalibratedMethod, Protocol):
    """A method that keeps count of what it has made, also of what an interrupted pack has."""

    def take_up(self, encoded: Mapping[str, Encoded]) -> None:
        """Tensors that an interrupted pack has quantized, by name."""
        ...

    @property
    def counted(self) -> object:
        """All that is counted so far, as plain data."""
        ...

    def take_over(self, counted: object) -> None:
        """Go on from what the method has counted in another process, in place of what it has here."""
        ...


@runtime_checkable
class SearchingMethod(CalibratedMethod, Protocol):
    """A method that looks for its options on the model itself before anything is quantized."""

    def search(self, trials: Trials, options: MethodOptions) -> MethodOptions:
        """The options to quantize with."""
        ...


def is_calibrated(method: Method) -> TypeGuard[CalibratedMethod]:
    """Whether the method needs calibration: a grade of it may not."""
    return isinstance(method, CalibratedMethod) and method.calibrated


@runtime_checkable
class ScaledColumns(Protocol):
    """A tensor in the terms of a scheme with column scales, which layers of integer activations apply to inputs."""

    column_scale: Scale | None


def column_scale(quantized: Quantized) -> Scale | None:
    """The column scales of a tensor; None without any."""
    return quantized.column_scale if isinstance(quantized, ScaledColumns) else None


def simulate(quantized: Quantized) -> torch.Tensor:
    """The matrix that a reader of the file restores, before it is rounded to the tensor's dtype; float32."""
    return torch.from_numpy(quantized.dequantize())
