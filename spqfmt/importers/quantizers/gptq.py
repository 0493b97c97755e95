"""GPTQ as AutoGPTQ and GPTQModel store it: codes of 2, 3, 4 or 8 bits with a scale and a zero point for each group.

    NAME.qweight  I32 [in * bits / 32, out], codes from 0, those of an output in words one below the other
    NAME.qzeros   I32 [groups, out * bits / 32], zero points, which version 1 stores less one
    NAME.scales   F16 [groups, out]
    NAME.g_idx    I32 [in], the group of each input, with act-order in any order; it may be missing

Words may be of 8, 16 or 64 bits as well, but for codes of 3. What is restored is (code - zero point) * scale in the
dtype of the scales, as the libraries compute; that of F32 scales is rounded to the model's dtype.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from spqfmt.errors import ImporterError
from spqfmt.importers.quantizers.base import Checkpoint, CodedWeight, LeftAsArrays
from spqfmt.importers.quantizers.gptq_config import METHODS, GptqSettings, settings_of
from spqfmt.importers.quantizers.gptq_zeros import Zeros, zero_points
from spqfmt.importers.quantizers.packed_layers import PackedLayer, StaysError
from spqfmt.importers.quantizers.words import code_dtype, unpacked
from spqfmt.schemes.group_numbers import GroupValues
from spqfmt.schemes.grouped import Grouped

_FORM = "GPTQ"
_BITS = (2, 3, 4, 8)
_PADDED = "numbers that do not fill whole words"
_PLANAR_BITS = (5, 6, 7)
"""GPTQModel cuts these into planes: they stay arrays."""


class GptqFamily:
    """Knows the codes of GPTQ."""

    def find(self, checkpoint: Checkpoint) -> Iterator[CodedWeight | LeftAsArrays]:
        """The weights of layers that have `qweight`, as `Family.find` says."""
        quantizer = checkpoint.quantizer
        for name in checkpoint.arrays:
            layer = PackedLayer.of(checkpoint, name)
            if layer is None:
                if quantizer.method in METHODS and PackedLayer.is_codes(name):
                    yield _left(checkpoint, name)
                continue
            if quantizer.method == "awq":  # whose layouts are for its own family to tell
                continue
            # By their shapes they may be AWQ's.
            if quantizer.method not in METHODS and layer.shape("qweight")[1] != layer.shape("scales")[1]:
                continue
            if not quantizer.writes(_FORM, dict.fromkeys(METHODS, quantizer.formats), name):
                continue
            try:
                settings = settings_of(quantizer.said, name)
                grid = _grid(layer, settings)
                of_zeros = layer.name("qzeros")
                zeros = zero_points(partial(checkpoint.read, of_zeros), settings, grid.bits, of_zeros)
            except StaysError as why:
                yield LeftAsArrays(name, str(why))
            else:
                yield _weight(layer, grid, zeros)


def _left(checkpoint: Checkpoint, name: str) -> LeftAsArrays:
    """Codes of a format that lays them out in another way. Raises ImporterError for those that should be GPTQ's."""
    try:
        settings_of(checkpoint.quantizer.said, name)
    except StaysError as why:
        return LeftAsArrays(name, str(why))
    raise PackedLayer.broken(checkpoint, name, _FORM)


@dataclass(frozen=True)
class _Grid:
    """How the codes of a layer lie. `permutation`: None where the groups are in the inputs' own order."""

    bits: int
    columns: int
    group_size: int
    permutation: NDArray[np.int64] | None = None


def _grid(layer: PackedLayer, settings: GptqSettings) -> _Grid:
    """How a layer's codes lie. Raises StaysError, and ImporterError."""
    bits = _bits(layer, settings)
    groups = layer.shape("scales")[0]
    columns, rest = divmod(layer.shape("qweight")[0] * layer.word_bits, bits)
    has_order = layer.name("g_idx") in layer.checkpoint.arrays
    if has_order and layer.shape("g_idx") != (columns,):
        unused = columns - layer.shape("g_idx")[0] if len(layer.shape("g_idx")) == 1 else 0
        if unused > 0 and unused * bits < layer.word_bits:
            raise StaysError(_PADDED)
        raise layer.misfit("g_idx", "qweight")
    sizes = [size for said, size in settings.grids if said in (None, bits)]
    fitting = (min(_size(size, columns, groups), columns) for size in sizes)
    size = next((size for size in fitting if -(-columns // size) == groups), 0)
    if rest or not size:
        said = f", {columns} columns in groups of {sizes[0]}" if sizes[0] else ""
        raise layer.misfit("scales", "qweight", said)
    # One group of all columns has them in no order.
    if settings.is_ordered and not has_order and groups > 1:
        raise ImporterError(
            f"tensor {layer.name('g_idx')!r} is missing, but config.json says desc_act true; download both again"
        )
    return _ordered(layer, _Grid(bits, columns, size)) if has_order else _Grid(bits, columns, size)


def _size(said: int | None, columns: int, groups: int) -> int:
    """Columns of a group."""
    return -(-columns // groups) if said is None else columns if said == -1 else said


def _bits(layer: PackedLayer, settings: GptqSettings) -> int:
    """Bits of a code."""
    (groups, rows), zeros = layer.shape("scales"), layer.shape("qzeros")
    of_layers = [bits for bits, _ in settings.grids]
    if layer.shape("qweight")[1] != rows:
        raise layer.misfit("scales", "qweight")
    bits, rest = divmod(zeros[1] * layer.word_bits, rows)
    if zeros[0] != groups:
        raise layer.misfit("qzeros", "scales")
    if None not in of_layers and (bits not in of_layers or rest):
        if any(
            said in _BITS and -(-rows * said // layer.word_bits) == zeros[1] for said in of_layers if said
        ):
            raise StaysError(_PADDED)
        raise layer.misfit("qzeros", "scales", f", and config.json says {of_layers[0]} bits")
    if (bits in _PLANAR_BITS and not rest) or (bits == 3 and layer.word_bits != 32):
        raise StaysError(f"codes of {bits} bits in words of {layer.word_bits}")
    if rest or bits not in _BITS:
        raise layer.misfit("qzeros", "scales")
    return bits


def _ordered(layer: PackedLayer, grid: _Grid) -> _Grid:
    """The same with the order of the inputs."""
    name, groups = layer.name("g_idx"), layer.shape("scales")[0]
    if layer.dtype("g_idx") not in ("i32", "i64"):
        raise StaysError(f"g_idx of {layer.dtype('g_idx')}")
    of_column = layer.checkpoint.read(name).astype(np.int64)
    if of_column.min() < 0 or of_column.max() >= groups:
        wrong = of_column.min() if of_column.min() < 0 else of_column.max()
        raise ImporterError(f"tensor {name!r} names group {wrong} of {groups}; download the model again")
    due = np.arange(grid.columns) // grid.group_size
    if np.array_equal(of_column, due):
        return grid
    permutation = np.argsort(of_column, kind="stable").astype(np.int64)
    if not np.array_equal(of_column[permutation], due):
        raise StaysError("groups of several sizes, which no scheme has")
    return _Grid(grid.bits, grid.columns, grid.group_size, permutation)


def _weight(layer: PackedLayer, grid: _Grid, zeros: Zeros) -> CodedWeight:
    checkpoint, dtype = layer.checkpoint, layer.dtype("scales")
    groups, rows = layer.shape("scales")
    by_groups = {"dims": [rows, groups], "axes": [1, 0]}

    def stored() -> Grouped:
        codes = unpacked(checkpoint.read(layer.name("qweight")).T, grid.bits).reshape(rows, grid.columns)
        scales = checkpoint.scales(layer.name("scales"), dtype)
        return Grouped(
            codes=codes if grid.permutation is None else np.take(codes, grid.permutation, axis=1),
            code_dtype=code_dtype(grid.bits),
            group_size=grid.group_size,
            bits=grid.bits,
            scale=GroupValues(np.ascontiguousarray(scales.T), dtype),
            zero_point=zeros.read(),
            supergroup=zeros.supergroup,
            permutation=grid.permutation,
        )

    arrays: dict[str, Mapping[str, object] | None] = {
        layer.name("qweight"): {
            "stream": "codes",
            "bits": grid.bits,
            "unit_bits": layer.word_bits,
            "unit_dims": [rows, layer.shape("qweight")[0]],
            "unit_axes": [1, 0],
        },
        layer.name("qzeros"): {**zeros.part, "bits": grid.bits, **by_groups},
        layer.name("scales"): {"stream": "scales", **by_groups},
    }
    if layer.name("g_idx") in checkpoint.arrays:
        wide = {"bits": 64} if layer.dtype("g_idx") == "i64" else {}
        arrays[layer.name("g_idx")] = {"stream": "column_groups", **wide}
    return CodedWeight(
        name=layer.name("weight"),
        # Those of a Conv1D are its weight with the inputs last.
        shape=(grid.columns, rows) if checkpoint.has_conv1d else (rows, grid.columns),
        dtype=layer.weight_dtype,
        form=f"{_FORM} int{grid.bits}",
        arrays=arrays,
        stored=stored,
        transposed=checkpoint.has_conv1d,
    )


FAMILY = GptqFamily()
