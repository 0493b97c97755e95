"""Integer codes of compressed-tensors: pack-quantized with 2, 4 or 8 bits, and int-quantized.

    NAME.weight_packed      I32 [out, in * bits / 32], codes from 0, the first in the lowest bits
    NAME.weight_shape       I64 [2]
    NAME.weight_scale       F32, BF16 or F16: [out, groups], [out, 1] or [1]
    NAME.weight_zero_point  I32 [out * bits / 32, groups], packed along the other dimension; asymmetric ones have it

    NAME.weight             I8 [out, in]
    NAME.weight_scale       as above
    NAME.weight_zero_point  I8, of the shape of the scales; asymmetric ones have it

What is restored is (code - zero point) * scale, in the dtype of the scales, as the library computes; that of F32 scales
is rounded to the model's dtype.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod

import numpy as np

from spqfmt.codecs.elements import Elements
from spqfmt.errors import ImporterError
from spqfmt.importers.quantizers.base import (
    COMPRESSED_TENSORS,
    Checkpoint,
    CodedWeight,
    LeftAsArrays,
    misfit,
    missing,
)
from spqfmt.importers.quantizers.integers_config import integers_of
from spqfmt.importers.quantizers.words import unpacked
from spqfmt.schemes.group_numbers import FLOAT_DTYPES, GroupValues
from spqfmt.schemes.grouped import Grouped

_PACKED: Mapping[str, frozenset[str]] = {COMPRESSED_TENSORS: frozenset({"pack-quantized", "mixed-precision"})}
_BYTES: Mapping[str, frozenset[str]] = {
    COMPRESSED_TENSORS: frozenset({"int-quantized", "naive-quantized", "mixed-precision"})
}
_FORM = "integers"
_WORD = 32


class Integers:
    """Codes that are integers of 2, 4 or 8 bits."""

    def find(self, checkpoint: Checkpoint) -> Iterator[CodedWeight | LeftAsArrays]:
        """The weights that have scales beside such codes, as `Family.find` says."""
        arrays = checkpoint.arrays
        for name, codes in arrays.items():
            _check_complete(checkpoint, name)
            stem = name.removesuffix("_packed")
            has_scales = f"{stem}_scale" in arrays and arrays[f"{stem}_scale"].dtype in FLOAT_DTYPES
            is_matrix = stem.endswith("weight") and len(codes.shape) == 2 and 0 not in codes.shape
            if not has_scales or not is_matrix:
                continue
            is_packed = stem != name and codes.dtype == "i32" and f"{stem}_shape" in arrays
            # Other quantizers have bytes of this name, too.
            is_bytes = stem == name and codes.dtype == "i8" and bool(checkpoint.quantizer.method)
            methods = _PACKED if is_packed else _BYTES
            if not (is_packed or is_bytes) or not checkpoint.quantizer.writes(_FORM, methods, name):
                continue
            if f"{stem}_g_idx" in arrays:
                yield LeftAsArrays(name, "columns in an order of their own")
            elif is_packed:
                yield from _packed(checkpoint, stem)
            else:
                yield _weight(checkpoint, stem, name, codes.shape, bits=8)


def _check_complete(checkpoint: Checkpoint, name: str) -> None:
    """Raise ImporterError for codes without what belongs to them, where the config says that all are of this form."""
    arrays, formats = checkpoint.arrays, checkpoint.quantizer.formats
    codes = arrays[name]
    stem = name.removesuffix(".weight_packed").removesuffix(".weight")
    if stem == name:
        return
    due: tuple[str, ...]
    if formats == {"pack-quantized"} and name.endswith("_packed"):
        due, dtype = ("weight_scale", "weight_shape"), "i32"
    elif formats == {"int-quantized"} and codes.dtype == "i8" and len(codes.shape) > 1:
        due, dtype = ("weight_scale",), "i8"
    else:
        return
    for end in due:
        if f"{stem}.{end}" not in arrays:
            raise missing(f"{stem}.{end}", name)
    if codes.dtype != dtype or len(codes.shape) != 2 or 0 in codes.shape:
        raise ImporterError(
            f"tensor {name!r} of {codes.dtype} and shape {list(codes.shape)} is no matrix of {dtype}; "
            "download the model again"
        )
    scales = arrays[f"{stem}.weight_scale"].dtype
    if scales not in FLOAT_DTYPES:
        raise misfit(arrays, f"{stem}.weight_scale", name, f": scales of {scales}")


def _packed(checkpoint: Checkpoint, stem: str) -> Iterator[CodedWeight | LeftAsArrays]:
    """The weight, where its codes fill whole words: else the arrays would not come back."""
    packed, of_shape = checkpoint.arrays[f"{stem}_packed"].shape, f"{stem}_shape"
    if checkpoint.arrays[of_shape].dtype not in ("i64", "i32"):
        raise _of_dtype(checkpoint, of_shape, "i64")
    shape = tuple(checkpoint.read(of_shape).reshape(-1).tolist())
    if len(shape) != 2 or shape[0] != packed[0] or not 1 <= shape[1] <= _WORD * packed[1]:
        raise misfit(checkpoint.arrays, of_shape, f"{stem}_packed", f" as it says {list(shape)}")
    said = integers_of(checkpoint.quantizer.said, f"{stem}_packed")
    if checkpoint.quantizer.said.get("config_groups") == {}:
        raise ImporterError(
            f"tensor {f'{stem}_packed'!r} is packed, but config.json has no config_groups; download both again"
        )
    if said is not None and not any(one.packs(shape[1], packed[1]) for one in said):
        sizes = " or ".join(str(bits) for bits in sorted({one.bits for one in said})) or "no"
        why = f" as it says {list(shape)}, and config.json says {sizes} bits of integers"
        raise misfit(checkpoint.arrays, of_shape, f"{stem}_packed", why)
    bits, rest = divmod(_WORD * packed[1], shape[1])
    if f"{stem}_zero_point" in checkpoint.arrays:
        rest += shape[0] * bits % _WORD
    if rest == 0 and bits in (2, 4, 8):
        yield _weight(checkpoint, stem, f"{stem}_packed", (shape[0], shape[1]), bits=bits)
    else:
        yield LeftAsArrays(f"{stem}_packed", "codes that do not fill whole words")


def _weight(
    checkpoint: Checkpoint, stem: str, of_codes: str, shape: tuple[int, ...], *, bits: int
) -> CodedWeight:
    of_scales, of_zeros = f"{stem}_scale", f"{stem}_zero_point"
    is_packed, is_asymmetric = of_codes != stem, of_zeros in checkpoint.arrays
    rows, columns = shape
    dtype = checkpoint.arrays[of_scales].dtype
    lines, groups = _grid(checkpoint, of_scales, of_codes, shape)
    _check_config(checkpoint, of_codes, of_scales, shape, bits=bits, grid=(lines, groups))
    offset = 1 << (bits - 1)
    codes: dict[str, object] = {"stream": "codes"}
    zeros: dict[str, object] = {"stream": "zero_points"}
    if is_packed and is_asymmetric:
        due = "i32", (rows * bits // _WORD, groups)
        if (checkpoint.arrays[of_zeros].dtype, checkpoint.arrays[of_zeros].shape) != due or lines != rows:
            raise misfit(checkpoint.arrays, of_zeros, of_codes)
        zeros |= {"dims": [rows * bits // _WORD, _WORD // bits, groups], "axes": [0, 2, 1]}
    elif is_packed:
        codes |= {"add": offset}
    elif is_asymmetric:
        if checkpoint.arrays[of_zeros].shape != checkpoint.arrays[of_scales].shape:
            raise misfit(checkpoint.arrays, of_zeros, of_scales)
        if checkpoint.arrays[of_zeros].dtype != "i8":
            raise _of_dtype(checkpoint, of_zeros, "i8")
        codes, zeros = codes | {"add": offset}, zeros | {"add": offset}

    def stored() -> Grouped:
        zero_point = None
        if is_asymmetric:
            found = checkpoint.read(of_zeros)
            if is_packed:
                points = unpacked(found.T, bits).reshape(groups, rows).T
            else:
                points = found.view(np.uint8) + np.uint8(offset)
            _check_symmetric(checkpoint, of_zeros, points, offset)
            zero_point = GroupValues(np.ascontiguousarray(points).reshape(lines, groups), f"u{bits}")
        of_bytes = checkpoint.read(of_codes)
        values = unpacked(of_bytes, bits).reshape(rows, columns) if is_packed else of_bytes
        if is_packed and not is_asymmetric:
            values = values.view(np.int8) - np.int8(offset if bits < 8 else -128)
        elif is_asymmetric and not is_packed:
            values = values.view(np.uint8) + np.uint8(offset)
        return Grouped(
            codes=values,
            code_dtype=f"{'u' if is_asymmetric else 'i'}{bits}",
            group_size=-(-columns // groups),
            bits=bits,
            scale=GroupValues(checkpoint.scales(of_scales, dtype).reshape(lines, groups), dtype),
            zero_point=zero_point,
            group_rows=-(-rows // lines),
        )

    return CodedWeight(
        name=stem,
        shape=shape,
        dtype=checkpoint.dtype if dtype == "f32" else dtype,
        form=f"int{bits}",
        arrays={
            of_codes: codes,
            of_scales: {"stream": "scales"},
            **({of_zeros: zeros} if is_asymmetric else {}),
            **({f"{stem}_shape": None} if is_packed else {}),
        },
        stored=stored,
    )


def _grid(checkpoint: Checkpoint, of_scales: str, of_codes: str, shape: tuple[int, ...]) -> tuple[int, int]:
    """Lines and groups of scales."""
    found = checkpoint.arrays[of_scales].shape
    rows, columns = shape
    if prod(found) == 1:
        return 1, 1
    if found == (rows,):
        return rows, 1
    if len(found) == 2 and found[0] == rows and found[1] and not columns % found[1]:
        return found[0], found[1]
    raise misfit(checkpoint.arrays, of_scales, of_codes)


def _check_config(
    checkpoint: Checkpoint,
    of_codes: str,
    of_scales: str,
    shape: tuple[int, ...],
    *,
    bits: int,
    grid: tuple[int, int],
) -> None:
    """Raises ImporterError where no group of the config says what the arrays are."""
    said = integers_of(checkpoint.quantizer.said, of_codes)
    if said is None:
        return
    stem = of_scales.removesuffix("_scale")
    # Codes of fewer bits may have a byte each.
    fitting = [one for one in said if one.bits == bits or (of_codes == stem and one.bits < bits)]
    if not fitting:
        sizes = " or ".join(str(one.bits) for one in said) or "no"
        raise ImporterError(
            f"tensor {of_codes!r} holds integers of {bits} bits, but config.json says {sizes} bits of integers; "
            "download both again"
        )
    due = [one for one in fitting if one.shares(shape, *grid)]
    if not due:
        shares = " or ".join(dict.fromkeys(one.share for one in fitting))
        why = f", whose weight is {list(shape)}, and config.json says {shares}"
        raise misfit(checkpoint.arrays, of_scales, of_codes, why)
    of_zeros = f"{stem}_zero_point"
    if of_zeros not in checkpoint.arrays and not any(one.is_symmetric for one in due):
        raise ImporterError(
            f"tensor {of_zeros!r} is missing, but config.json says symmetric false; download both again"
        )
    # One group of all columns has them in no order.
    if grid[1] > 1 and all(one.is_ordered for one in due):
        raise ImporterError(
            f"tensor {stem + '_g_idx'!r} is missing, but config.json says actorder group; download both again"
        )


def _check_symmetric(checkpoint: Checkpoint, name: str, points: Elements, middle: int) -> None:
    """Raise ImporterError for zero points besides `middle`, which stands for none, where the config allows none."""
    said = integers_of(checkpoint.quantizer.said, name)
    if said and all(one.is_symmetric for one in said) and (points != middle).any():
        raise ImporterError(
            f"tensor {name!r} holds zero points, but config.json says symmetric true; download both again, or "
            "--method lossless keeps them"
        )


def _of_dtype(checkpoint: Checkpoint, name: str, due: str) -> ImporterError:
    return ImporterError(
        f"tensor {name!r} is of {checkpoint.arrays[name].dtype}, not {due}; download the model again"
    )


FAMILY = Integers()
