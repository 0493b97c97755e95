"""Codes -> weights (FORMAT.md 5.3 to 5.6): each formula's operations one by one in float32."""

import torch

from spqfmt.kernels.device.matrix import CODE_DTYPES, DeviceGroupValues, DeviceOutliers, Matrix, UniformScales


def dequantize(codes: torch.Tensor, matrix: Matrix, channels: range, out: torch.Tensor, first: int) -> None:
    """Weights of `channels` into `out`, rounded once to its dtype."""
    weights = float_weights(codes, matrix, channels, first)
    if matrix.permutation is not None:
        restored = torch.empty_like(weights)
        restored[:, matrix.permutation.long()] = weights
        weights = restored
    out.copy_(weights)


def float_weights(codes: torch.Tensor, matrix: Matrix, channels: range, first: int) -> torch.Tensor:
    """Weights with outliers in place: float32 [len(channels), columns], or [rows, len(channels)] by columns."""
    n_rows, n_columns = matrix.shape
    if matrix.by_columns:
        stored = (
            unpack(codes, matrix.code_dtype, first, len(channels) * n_rows).view(len(channels), n_rows).t()
        )
        rows = range(n_rows)
        columns = torch.arange(channels.start, channels.stop, device=codes.device)
        if matrix.order is not None:
            columns = matrix.order[channels.start : channels.stop].long()
    else:
        stored = unpack(codes, matrix.code_dtype, first, len(channels) * n_columns).view(
            len(channels), n_columns
        )
        rows, columns = channels, torch.arange(n_columns, device=codes.device)
    levels = None if isinstance(matrix.scales, UniformScales) else matrix.scales.levels
    numbers = stored.float() if levels is None else levels[stored.long()]
    weights = _scaled(numbers, matrix, rows, columns)
    if matrix.outliers is not None:
        _replace(weights, matrix.outliers, rows, columns=columns, n_columns=n_columns)
    return weights


def unpack(packed: torch.Tensor, dtype: str, first: int, n: int) -> torch.Tensor:
    """Codes `first` to `first + n` of a packed run, int16 [n]."""
    bits, signed = CODE_DTYPES[dtype]
    number = torch.arange(first, first + n, device=packed.device)
    per_byte = 8 // bits
    codes = packed[number // per_byte].short() >> (number % per_byte * bits).short() & ((1 << bits) - 1)
    sign = 1 << (bits - 1)
    return (codes ^ sign) - sign if signed else codes


def _scaled(codes: torch.Tensor, matrix: Matrix, rows: range, columns: torch.Tensor) -> torch.Tensor:
    scales = matrix.scales
    if isinstance(scales, UniformScales):
        weights = codes * scales.row[rows.start : rows.stop, None]
        return weights if scales.column is None else weights * scales.column[columns]
    groups = columns // scales.group_size
    matrix_rows = scales.stacked_rows or matrix.shape[0]
    row = torch.arange(rows.start, rows.stop, device=codes.device)
    lines = row // matrix_rows * -(-matrix_rows // scales.rows) + row % matrix_rows // scales.rows
    scale = group_values(scales.scale, lines)[:, groups]
    if scales.zero_point is not None:
        return scale * (codes - group_values(scales.zero_point, lines)[:, groups])
    if scales.minimum is not None:
        return scale * codes - group_values(scales.minimum, lines)[:, groups]
    return scale * codes


def group_values(values: DeviceGroupValues, lines: torch.Tensor) -> torch.Tensor:
    """The values of the groups of these lines, float32 [lines, groups]."""
    found = values.values[lines]
    found = found.float() if values.table is None else values.table[found.long()]
    if values.steps is None:
        return found
    per_line, per_group = values.supergroup
    line = (lines // per_line)[:, None]
    group = torch.arange(found.shape[1], device=found.device) // per_group
    if values.zeros is not None:
        found = found - values.zeros.float()[line, group]
    found = values.steps.float()[line, group] * found
    return found if values.minimums is None else found - values.minimums.float()[line, group]


def _replace(
    weights: torch.Tensor, outliers: DeviceOutliers, rows: range, columns: torch.Tensor, n_columns: int
) -> None:
    begin = outliers.row_begin[rows.start : rows.stop + 1].long()
    here = slice(int(begin[0]), int(begin[-1]))
    row = torch.repeat_interleave(torch.arange(len(rows), device=weights.device), begin.diff())
    place = torch.full((n_columns,), -1, device=weights.device)
    place[columns] = torch.arange(len(columns), device=weights.device)
    at = place[outliers.columns[here].long()]
    inside = at >= 0
    weights[row[inside], at[inside]] = outliers.values[here][inside]
