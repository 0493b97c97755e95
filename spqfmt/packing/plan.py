"""The plan of a pack: pure, printable, made from names and shapes alone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from math import prod
from typing import TypeAlias

from spqfmt import wire
from spqfmt.container.stacks import cut_at_matrices
from spqfmt.errors import ImporterError
from spqfmt.importers.base import SourceModel, SourceTensor
from spqfmt.packing.options import PackOptions
from spqfmt.packing.target import KEEPING, KEEPING_CODES
from spqfmt.quantize.base import KeepingMethod, Weight
from spqfmt.quantize.calibrated import Result
from spqfmt.records import FLOATS, TensorRecord, dense_bytes
from spqfmt.schemes.base import Encoded, Quantized
from spqfmt.schemes.codes import Layout
from spqfmt.schemes.registry import scheme_of
from spqfmt.schemes.uniform import Uniform
from spqfmt.sizes import segment_alignment


@dataclass(frozen=True)
class PlannedTensor:
    """What will happen to one tensor. `treatment` is empty for one that is stored as it is."""

    source: SourceTensor
    treatment: str
    raw_bytes: int

    @property
    def n_weights(self) -> int:
        """Weights that the file will hold for this tensor; none for a tied one."""
        return prod(self.source.shape) if self.source.tied_to is None else 0

    @property
    def weight(self) -> Weight:
        """The tensor as a method sees it."""
        return Weight.of(self.source)

    def encode(self, quantized: Quantized) -> Encoded:
        """The tensor in the terms of its scheme. Of experts each can be read without the others."""
        shape = self.source.shape
        are_experts = self.source.role == "linear" and len(shape) == 3 and 0 not in shape
        if isinstance(quantized, Uniform) and quantized.trellis_rows is not None:
            # Its layout is the one that its paths were chosen in.
            quantized = replace(quantized, stacked_rows=self._stacked_rows)
        elif isinstance(quantized, Uniform) and are_experts:
            # Without the order and the classes that may have been chosen for all matrices together.
            known = {field.name: getattr(quantized, field.name) for field in fields(Uniform)}
            quantized = Uniform(**known | {"layout": Layout()})
        encoded = quantized.encode()
        return cut_at_matrices(encoded, shape[0]) if are_experts else encoded

    @property
    def _stacked_rows(self) -> int:
        """Rows of each of the matrices that a quantized tensor stacks."""
        source = self.source
        shape = source.shape if source.view is None else source.view
        is_turned = source.transposed if source.view is None else source.has_turned_view
        return shape[-1 if is_turned else -2] if len(shape) > 1 else 1

    def tied_record(self) -> TensorRecord:
        """The record of a tensor that is tied to another."""
        s = self.source
        return TensorRecord(s.name, s.shape, s.dtype, "tied", tied_to=s.tied_to)

    def record(self, encoded: Encoded, method: str, result: Result | None = None) -> TensorRecord:
        """The record of the tensor as it was encoded, its own streams without chunks. `method` "": as it is."""
        s = self.source
        is_quantized = scheme_of(encoded.scheme).is_quantized
        return TensorRecord(
            name=s.name,
            shape=s.shape,
            dtype=s.dtype,
            scheme=encoded.scheme,
            method=method,
            parameters=encoded.parameters,
            streams=tuple(stream.record for stream in encoded.streams),
            transposed=(s.transposed if s.view is None else s.has_turned_view) and is_quantized,
            view=s.view if is_quantized else None,
            activation_clamp=None if result is None else result.activation_clamp,
            activation_quantization=None if result is None else result.activation_quantization,
        )


PlannedSegment: TypeAlias = tuple[str, tuple[PlannedTensor, ...]]
"""A segment's name and its tensors."""


@dataclass(frozen=True)
class PackPlan:
    """Segments of planned tensors, in execution order, tied ones right behind what they are tied to."""

    segments: tuple[PlannedSegment, ...]
    raw_bytes: int
    segment_alignment: int

    @property
    def tensors(self) -> Iterator[PlannedTensor]:
        """Give the tensors of all segments, in the order of the file."""
        return (tensor for _, tensors in self.segments for tensor in tensors)


def plan_pack(model: SourceModel, options: PackOptions) -> PackPlan:
    """Decide what becomes of every tensor. Reads no weights.

    Raises ImporterError where a method is to quantize what is quantized already, and nobody asked for that.
    """
    keeps = isinstance(options.method, KeepingMethod)
    model = model.as_weights() if keeps else model
    if model.quantized and options.method.name != KEEPING:
        is_known = has_codes(model)
        codes = f", and --method {KEEPING_CODES} its codes" if is_known else ""
        raise ImporterError(
            f"the model is quantized already ({model.quantized}): only --method {KEEPING} keeps it as it is{codes}; "
            f"for {options.method.name} give the model that it was made from{_OR_VALUES if is_known else ''}"
        )
    if not keeps and not model.is_dequantized and (coded := next((t for t in model.tensors if t.form), None)):
        raise ImporterError(
            f"tensor {coded.name!r} is stored as codes ({coded.form}), which --method {KEEPING_CODES} keeps; for "
            f"{options.method.name} give the model that it was made from{_OR_VALUES}"
        )
    _check_limits(model)
    if keeps:
        _check_kept(model, options.method.name)
    planned = [_plan_tensor(tensor, options) for tensor in _tied_behind_target(model.tensors)]
    segments: list[tuple[str, list[PlannedTensor]]] = []
    for tensor in planned:
        # A tied tensor has no bytes and stays with its target, which its own file must hold.
        if not segments or (tensor.source.tied_to is None and segments[-1][0] != tensor.source.segment):
            segments.append((tensor.source.segment, []))
        segments[-1][1].append(tensor)
    raw_bytes = sum(tensor.raw_bytes for tensor in planned)
    return PackPlan(
        tuple((name, tuple(tensors)) for name, tensors in segments),
        raw_bytes,
        segment_alignment(raw_bytes, options.chunk_alignment),
    )


_OR_VALUES = ", or add --dequantize to take what its codes stand for"
_MAX_ELEMENTS = 1 << 53
"""A tensor may have so many with its dimensions of 0 taken as 1: integers of an index end there, strides soon after."""


def _check_limits(model: SourceModel) -> None:
    """Raise ImporterError for the tensors that no file can hold (FORMAT.md section 9)."""
    for tensor in model.tensors:
        if len(tensor.shape) > wire.MAX_DIMENSIONS:
            raise ImporterError(
                f"tensor {tensor.name[:80]!r} has {len(tensor.shape)} dimensions, and .spq holds at most "
                f"{wire.MAX_DIMENSIONS}; reshape it in the source"
            )
        if prod(max(n, 1) for n in tensor.shape) > _MAX_ELEMENTS:
            raise ImporterError(
                f"tensor {tensor.name[:80]!r} has dimensions that no machine can count through"
            )
        try:
            n_bytes = len(tensor.name.encode())
        except UnicodeEncodeError:
            raise ImporterError(
                f"tensor {tensor.name[:80]!r} has a name with half of a surrogate pair; rename it in the source"
            ) from None
        if not 1 <= n_bytes <= wire.MAX_NAME_BYTES or "\0" in tensor.name:
            raise ImporterError(
                f"tensor {tensor.name[:80]!r} has a name of {n_bytes} bytes, and .spq holds 1 to {wire.MAX_NAME_BYTES} "
                "without U+0000; rename it in the source"
            )


def has_codes(model: SourceModel) -> bool:
    """Whether method keep would find codes of a quantizer in the source."""
    try:
        return any(tensor.stored for tensor in model.as_weights().tensors)
    except ImporterError:
        return False


def _check_kept(model: SourceModel, method: str) -> None:
    """Raise ImporterError where the source has no codes to keep, or some that no scheme holds."""
    coded = [tensor for tensor in model.tensors if tensor.form]
    if not coded:
        raise ImporterError(
            f"the source stores no codes that method {method} could keep; --method {KEEPING} keeps its tensors as "
            "they are"
        )
    for tensor in coded:
        if tensor.stored is None:
            raise ImporterError(
                f"tensor {tensor.name!r} is stored as {tensor.form}, whose codes cannot be kept; "
                f"--method {KEEPING} stores the values that they stand for"
            )


def _plan_tensor(source: SourceTensor, options: PackOptions) -> PlannedTensor:
    if source.tied_to is not None:
        return PlannedTensor(source, f"tied to {source.tied_to}", 0)
    raw_bytes = dense_bytes(source.dtype, prod(source.shape))
    if isinstance(options.method, KeepingMethod):
        raw_bytes = sum(part.n_bytes for part in source.parts) or raw_bytes
    quantizable = source.dtype in FLOATS and raw_bytes > 0
    treatment = options.method.describe(Weight.of(source), options.method_options) if quantizable else ""
    return PlannedTensor(source, treatment, raw_bytes)


def _tied_behind_target(tensors: Sequence[SourceTensor]) -> Iterator[SourceTensor]:
    followers: dict[str, list[SourceTensor]] = {}
    for tensor in tensors:
        if tensor.tied_to is not None:
            followers.setdefault(tensor.tied_to, []).append(tensor)
    for tensor in tensors:
        if tensor.tied_to is None:
            yield tensor
            yield from followers.get(tensor.name, ())
