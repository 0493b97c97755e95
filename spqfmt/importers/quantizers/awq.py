"""AWQ as AutoAWQ stores it: codes of four bits with a scale and a zero point for each group of inputs.

    NAME.qweight  I32 [in, out / 8], in each word the outputs 0 2 4 6 1 3 5 7 of eight, the first in the lowest bits
    NAME.qzeros   I32 [groups, out / 8], zero points in the same order
    NAME.scales   F16 [groups, out]

and of version gemv, in plain order, where groups fill whole words:

    NAME.qweight  I32 [out, in / 8]
    NAME.qzeros   I32 [out, groups / 8]
    NAME.scales   F16 [out, groups]

What is restored is (code - zero point) * scale in the dtype of the scales, as the library computes; that of F32 scales
is rounded to the model's dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from spqfmt.codecs.elements import Elements
from spqfmt.errors import ImporterError
from spqfmt.importers.quantizers.base import Checkpoint, CodedWeight, LeftAsArrays
from spqfmt.importers.quantizers.packed_layers import PackedLayer, StaysError
from spqfmt.importers.quantizers.words import unpacked
from spqfmt.schemes.group_numbers import GroupValues
from spqfmt.schemes.grouped import Grouped

_FORM = "AWQ"
_METHODS = ("awq", "auto-round")
_BITS = 4
_PER_WORD = 8
_GEMM = "gemm"
_GEMV = "gemv"
_VERSIONS = {_GEMM: _GEMM, "exllama": _GEMM, "ipex": _GEMM, "auto_round:auto_awq": _GEMM, _GEMV: _GEMV}
"""How what a config says is laid out."""
_OTHERS = frozenset({"gemv_fast", "gemv-fast", "marlin", "llm-awq"})
"""Versions that lay codes out in another way: these stay arrays."""


class Awq:
    """Knows the codes of AWQ."""

    def find(self, checkpoint: Checkpoint) -> Iterator[CodedWeight | LeftAsArrays]:
        """The weights of layers that have `qweight`, as `Family.find` says."""
        quantizer = checkpoint.quantizer
        for name in checkpoint.arrays:
            layer = PackedLayer.of(checkpoint, name)
            if layer is None or layer.dtype("qweight") != "i32":
                if quantizer.method in _METHODS and PackedLayer.is_codes(name):
                    yield _left(checkpoint, name)
                continue
            # By their shapes they may be GPTQ's.
            outputs = layer.shape("qweight")[1] * _PER_WORD
            if quantizer.method not in _METHODS and outputs != layer.shape("scales")[1]:
                continue
            if not quantizer.writes(_FORM, dict.fromkeys(_METHODS, quantizer.formats), name):
                continue
            try:
                make = _gemv if _version(quantizer.said, name) == _GEMV else _gemm
                yield make(layer, quantizer.said)
            except StaysError as why:
                yield LeftAsArrays(name, str(why))


def _left(checkpoint: Checkpoint, name: str) -> LeftAsArrays:
    """Codes of a version that lays them out in another way. Raises ImporterError for those that should be AWQ's."""
    try:
        _version(checkpoint.quantizer.said, name)
    except StaysError as why:
        return LeftAsArrays(name, str(why))
    raise PackedLayer.broken(checkpoint, name, _FORM)


def _version(said: Mapping[str, Any], name: str) -> str:
    """How codes are laid out. Raises StaysError, and ImporterError for what nobody knows."""
    of_auto_round = said.get("quant_method") == "auto-round"
    # AutoAWQ, and GPTQModel.
    plain = said.get("version") or said.get("checkpoint_format") or said.get("format") or _GEMM
    version = str(said.get("packing_format") if of_auto_round else plain).lower()
    if version in _OTHERS or (of_auto_round and version not in _VERSIONS):
        raise StaysError(f"the version {version!r}")
    bits = said.get("bits", said.get("w_bit", _BITS))
    if version not in _VERSIONS or bits != _BITS:
        what = f"{bits!r} bits" if version in _VERSIONS else f"version {version!r}"
        raise ImporterError(f"tensor {name!r}: config.json says AWQ of {what}, which nobody knows")
    return _VERSIONS[version]


def _group_size(layer: PackedLayer, said: Mapping[str, Any], columns: int, groups: int) -> int:
    """Inputs of a group. Raises ImporterError where there are not so many."""
    size = said.get("group_size", said.get("q_group_size", -1 if groups == 1 else columns // groups))
    size = columns if size == -1 else size
    if type(size) is not int or size < 1 or columns % size or columns // size != groups:
        raise layer.misfit("scales", "qweight", f", {columns} columns in groups of {size!r}")
    return size


def _gemm(layer: PackedLayer, said: Mapping[str, Any]) -> CodedWeight:
    (columns, words), (groups, rows) = layer.shape("qweight"), layer.shape("scales")
    if words * _PER_WORD != rows:
        raise layer.misfit("scales", "qweight")
    if layer.shape("qzeros") != (groups, words):
        raise layer.misfit("qzeros", "scales")

    def plain(key: str) -> Elements:
        """Codes or zero points [out, n], each eight outputs in their own order."""
        found = unpacked(layer.checkpoint.read(layer.name(key)), _BITS).reshape(-1, words, 2, _PER_WORD // 2)
        return np.ascontiguousarray(found.transpose(1, 3, 2, 0)).reshape(rows, -1)

    def part(stream: str, n: int) -> dict[str, object]:
        dims = [words, _PER_WORD // 2, 2, n]
        return {"stream": stream, "bits": _BITS, "dims": dims, "axes": [3, 0, 2, 1]}

    return _weight(
        layer,
        rows,
        columns,
        group_size=_group_size(layer, said, columns, groups),
        plain=plain,
        parts={
            "qweight": part("codes", columns),
            "qzeros": part("zero_points", groups),
            "scales": {"stream": "scales", "dims": [rows, groups], "axes": [1, 0]},
        },
    )


def _gemv(layer: PackedLayer, said: Mapping[str, Any]) -> CodedWeight:
    """The weight, where its groups fill whole words: else the arrays would not come back."""
    (rows, words), (lines, groups) = layer.shape("qweight"), layer.shape("scales")
    columns = words * _PER_WORD
    if lines != rows:
        raise layer.misfit("scales", "qweight")
    if layer.shape("qzeros") != (rows, groups // _PER_WORD) or groups % _PER_WORD:
        raise layer.misfit("qzeros", "scales")
    size = said.get("group_size", said.get("q_group_size"))
    if type(size) is int and size > 0 and columns // size < groups and not columns % size:
        raise StaysError("groups that do not fill whole words")

    def plain(key: str) -> Elements:
        return unpacked(layer.checkpoint.read(layer.name(key)), _BITS).reshape(rows, -1)

    return _weight(
        layer,
        rows,
        columns,
        group_size=_group_size(layer, said, columns, groups),
        plain=plain,
        parts={
            "qweight": {"stream": "codes"},
            "qzeros": {"stream": "zero_points"},
            "scales": {"stream": "scales"},
        },
    )


def _weight(
    layer: PackedLayer,
    rows: int,
    columns: int,
    *,
    group_size: int,
    plain: Callable[[str], Elements],
    parts: Mapping[str, Mapping[str, object]],
) -> CodedWeight:
    checkpoint, dtype = layer.checkpoint, layer.dtype("scales")

    def stored() -> Grouped:
        scales = checkpoint.scales(layer.name("scales"), dtype)
        by_rows = scales.T if "dims" in parts["scales"] else scales
        return Grouped(
            codes=plain("qweight"),
            code_dtype=f"u{_BITS}",
            group_size=group_size,
            bits=_BITS,
            scale=GroupValues(np.ascontiguousarray(by_rows), dtype),
            zero_point=GroupValues(plain("qzeros"), f"u{_BITS}"),
        )

    return CodedWeight(
        name=layer.name("weight"),
        shape=(columns, rows) if checkpoint.has_conv1d else (rows, columns),
        dtype=layer.weight_dtype,
        form=f"{_FORM} int{_BITS}",
        arrays={layer.name(key): part for key, part in parts.items()},
        stored=stored,
        transposed=checkpoint.has_conv1d,
    )


FAMILY = Awq()
