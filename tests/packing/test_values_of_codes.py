"""Codes that are small floats or numbers of levels, tiles of rows, and second levels of each kind: files of the package
under the reference decoder, which shares no code with it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference_decoder
import test_schemes
import torch
from numpy.typing import NDArray

import spqfmt
from spqfmt import wire
from spqfmt.codecs.elements import CARRIERS, pack_elements
from spqfmt.container.reader import Reader
from spqfmt.kernels.torch_arrays import to_numpy
from spqfmt.schemes.floats import narrow, small_float_values
from spqfmt.schemes.group_numbers import LEVELED_DTYPES, GroupValues
from spqfmt.schemes.grouped import CODE_DTYPES, Grouped

ROWS, COLUMNS = 21, 37
FLOATS = ("f32", "f16", "bf16")


def floats(rng: np.random.Generator, shape: int | tuple[int, int], dtype: str) -> NDArray[Any]:
    return narrow(rng.uniform(0.25, 4, shape).astype(np.float32), dtype)


def elements(rng: np.random.Generator, dtype: str, *shape: int) -> NDArray[Any]:
    """Any that are numbers."""
    bits = wire.DTYPES[dtype].bits
    if dtype in wire.SMALL_FLOATS:
        finite = np.flatnonzero(
            np.isfinite(small_float_values(dtype)) & (np.abs(small_float_values(dtype)) < 1e4)
        )
        return rng.choice(finite, shape).astype(np.uint8)
    low = -(1 << (bits - 1)) if dtype.startswith("i") else 0
    return rng.integers(low, low + (1 << bits), shape).astype(CARRIERS[dtype])


def values(
    rng: np.random.Generator, shape: tuple[int, int], tile: tuple[int, int] | None, direct: tuple[str, ...]
) -> GroupValues:
    if tile is None:
        dtype = str(rng.choice(direct))
        found = floats(rng, shape, dtype) if dtype in FLOATS else elements(rng, dtype, *shape)
        return GroupValues(found, dtype)
    tiles = -(-shape[0] // tile[0]), -(-shape[1] // tile[1])
    dtype = str(rng.choice(["u2", "u4", "u8", "i8", *(d for d in direct if d in wire.SMALL_FLOATS)]))
    has_levels = dtype in LEVELED_DTYPES and rng.random() < 0.5
    offset = rng.choice(["zeros", "minimums", "neither"])
    names = [str(d) for d in rng.choice(FLOATS, 4)]
    return GroupValues(
        elements(rng, dtype, *shape),
        dtype,
        steps=floats(rng, tiles, names[0]),
        zeros=floats(rng, tiles, names[1]) if offset == "zeros" else None,
        steps_dtype=names[0],
        zeros_dtype=names[1],
        levels=floats(rng, 1 << wire.DTYPES[dtype].bits, names[2]) if has_levels else None,
        minimums=floats(rng, tiles, names[3]) if offset == "minimums" else None,
        levels_dtype=names[2],
        minimums_dtype=names[3],
    )


def any_tensor(seed: int) -> Grouped:
    rng = np.random.default_rng(seed)
    code_dtype = str(rng.choice(CODE_DTYPES))
    group_rows, group_size = int(rng.choice([1, 1, 4, 30])), int(rng.choice([1, 5, 8, 64]))
    shape = -(-ROWS // group_rows), -(-COLUMNS // group_size)
    tile = (int(rng.integers(1, 6)), int(rng.integers(1, 4))) if rng.random() < 0.5 else None
    has_levels = code_dtype in LEVELED_DTYPES and rng.random() < 0.7
    offset = rng.choice(["zero_point", "minimum", "neither"])
    more = values(rng, shape, tile, FLOATS) if offset != "neither" else None
    return Grouped(
        elements(rng, code_dtype, ROWS, COLUMNS),
        code_dtype,
        group_size,
        4,
        values(rng, shape, tile, (*FLOATS, "f8_e4m3", "f8_e8m0")),
        zero_point=more if offset == "zero_point" else None,
        minimum=more if offset == "minimum" else None,
        supergroup=tile,
        permutation=rng.permutation(COLUMNS) if rng.random() < 0.3 else None,
        outliers=test_schemes.outliers(rng, (ROWS, COLUMNS), 9, "f16") if rng.random() < 0.3 else None,
        layout=test_schemes.layout(rng, (ROWS, COLUMNS), str(rng.choice(test_schemes.LAYOUTS))),
        group_rows=group_rows,
        levels=floats(rng, 1 << wire.DTYPES[code_dtype].bits, "bf16") if has_levels else None,
        levels_dtype="bf16",
    )


@pytest.mark.filterwarnings("ignore:overflow encountered", "ignore:invalid value encountered")
@pytest.mark.parametrize("dtype", ["f32", "bf16", "f64"])
@pytest.mark.parametrize("part", range(8))
def test_what_is_written_is_what_the_reference_decoder_reads(tmp_path: Path, part: int, dtype: str) -> None:
    made = {f"{seed}.weight": any_tensor(seed) for seed in range(12 * part, 12 * part + 12)}
    path = tmp_path / "m.spq"
    test_schemes.store(made, path, dtype=dtype)
    decoded = reference_decoder.decode(path.read_bytes())
    with spqfmt.open(path) as file, Reader(path) as reader:
        for name, grouped in made.items():
            expected = decoded.tensors[name].data
            assert file[name].read_bytes() == expected, name
            whole = pack_elements(narrow(grouped.dequantize(), dtype), dtype).tobytes()
            assert whole == expected, name
            some = to_numpy(file.read(name, slice(5, 18)))
            row_bytes = len(expected) // ROWS
            assert some.tobytes() == expected[5 * row_bytes : 18 * row_bytes], name
            record = reader.index.by_name[name]
            one = reader.read_rows(record, 20, 21, dtype)
            assert one.tobytes() == expected[20 * row_bytes :], name
            assert file.read(name, dtype=torch.float32).shape == (ROWS, COLUMNS)
