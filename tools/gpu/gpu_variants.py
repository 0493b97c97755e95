"""The forms of the Triton kernels that tools/gpu/gpu_code.py compiles, as the launcher does for a 4096 x 4096 layer."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from spqfmt.kernels.device.matrix import DeviceGroupValues, GroupScales, Matrix, UniformScales
from spqfmt.kernels.triton import kernels as launch
from spqfmt.kernels.triton import multiply, outliers, planes, products, rans, trellis, weights
from spqfmt.kernels.triton.arguments import TO, code_arguments, scale_arguments, unit_arguments


@dataclass(frozen=True)
class Variant:
    """A kernel as the launcher compiles it.

    A tensor stands for a pointer of its dtype, None for one that is not there. `units`: what a warp does in one turn of
    the inner loop, in runs of 32 codes (rans: of 32 symbols).
    """

    name: str
    kernel: Any
    arguments: Mapping[str, Any]
    n_warps: int = 4
    units: int | None = None


def tensor(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    """A tensor that stands for a pointer."""
    return torch.empty(shape or (1,), dtype=dtype, device="meta")


F32, F16, I64, I32, I16, U8 = map(
    tensor, (torch.float32, torch.float16, torch.int64, torch.int32, torch.int16, torch.uint8)
)
SHAPE = (4096, 4096)
N_GROUPS = 32
GROUP = DeviceGroupValues(tensor(torch.float16, SHAPE[0], N_GROUPS))
LEVEL2 = DeviceGroupValues(
    tensor(torch.uint8, SHAPE[0], N_GROUPS),
    tensor(torch.float16, 256, N_GROUPS),
    tensor(torch.float16, 256, N_GROUPS),
    (16, 1),
)
ROWS = Matrix(SHAPE, "i8", UniformScales(tensor(torch.float32, SHAPE[0])))
COLUMNS = Matrix(SHAPE, "i8", UniformScales(tensor(torch.float32, SHAPE[0]), tensor(torch.float32, SHAPE[1])))
GROUPED = Matrix(SHAPE, "u4", GroupScales(128, GROUP, GROUP))
SPQR = Matrix(SHAPE, "u4", GroupScales(128, LEVEL2, LEVEL2))
FP8 = Matrix(
    SHAPE,
    "f8_e4m3",
    GroupScales(
        128,
        DeviceGroupValues(tensor(torch.float32, N_GROUPS, N_GROUPS)),
        levels=tensor(torch.float32, 256),
        rows=128,
    ),
)
MXFP4 = Matrix(
    SHAPE,
    "f4_e2m1",
    GroupScales(
        32,
        DeviceGroupValues(tensor(torch.uint8, SHAPE[0], 128), table=tensor(torch.float32, 256)),
        levels=tensor(torch.float32, 16),
    ),
)


def variants() -> Iterator[Variant]:
    """All kernels, in the forms that matter."""
    blocks = {"stored": I32, "words": I16, "records": I32, "tables": I32, "error": I32}
    for name, out, words, pairs in (
        ("words", I32, True, False),
        ("bytes", U8, False, False),
        ("elements", I64, True, True),
        ("single elements", I16, False, True),
    ):
        arguments = {**blocks, "out": out, "first_block": 0, "WORDS": words, "PAIRS": pairs}
        yield Variant(f"rans to {name}", rans.decode_blocks, arguments, units=4)
    yield Variant("rans tables", rans.build_tables, {"records": I32, "tables": I32})
    matrices = {
        "i8 by rows": ROWS,
        "i8 by rows and columns": COLUMNS,
        "u4 groups": GROUPED,
        "u4 supergroups": SPQR,
        "fp8 in tiles": FP8,
        "mxfp4": MXFP4,
    }
    for name, matrix in matrices.items():
        yield from _by_rows(name, matrix)
    columns: dict[str, Any] = {"packed": U8, "out": I16, "order": I32, "TO": TO[torch.bfloat16]}
    columns |= dict.fromkeys(("first", "first_channel", "stop_channel", "n_rows"), 0)
    scales = scale_arguments(COLUMNS) | code_arguments(COLUMNS)
    yield Variant(
        "dequantize by columns", weights.dequantize_columns, {**columns, **scales, **launch.TILE_BY_COLUMNS}
    )
    for size, out in ((1, U8), (2, I16)):
        arguments = {
            "stored": U8,
            "scratch": U8,
            "records": I32,
            "out": out,
            "SIZE": size,
            "ROTATED": size > 1,
        }
        yield Variant("merge planes" if size > 1 else "copy bytes", planes.merge_planes, arguments)
    yield Variant("unfold paths", trellis.unfold_paths, {"records": I32, "out": U8, "error": I32}, n_warps=2)
    yield Variant(
        "outliers",
        outliers.replace,
        {"out": I16, "row_begin": I32, "columns": I32, "values": F32, "places": None, "permutation": None}
        | {"ids": None}
        | dict.fromkeys(("first_row", "first_channel", "stop_channel", "width"), 0)
        | {"BY_COLUMNS": False, "TO": TO[torch.bfloat16]},
    )


def _by_rows(name: str, matrix: Matrix) -> Iterator[Variant]:
    """What is done with codes by rows."""
    common = dict.fromkeys(("first", "first_row", "n_columns"), 0)
    common |= scale_arguments(matrix) | code_arguments(matrix) | {"packed": U8}
    tiles: dict[str, Any] = {"stop_row": 0, **unit_arguments(matrix, 0)}
    out = {"out": I16, "permutation": None, "ids": None, "TO": TO[torch.bfloat16], **products.TILE_BY_ROWS}
    yield Variant(f"dequantize, {name}", weights.dequantize_rows, common | tiles | out)
    product = {"x": tensor(torch.bfloat16), "n_tokens": 0, "y_stride": 0, "bias": None}
    for tokens, tile, to in (
        ("1 token", products.TILE_OF_ONE_TOKEN, TO[torch.float32]),
        ("16 tokens", products.TILE_OF_TOKENS, TO[torch.bfloat16]),
    ):
        units = tile["ROWS"] * tile["COLUMNS"] // 128
        arguments = common | tiles | product | tile | {"y": I16, "TO": to, "OUT": TO[torch.bfloat16]}
        arguments["PRECISION"] = "tf32"
        yield Variant(f"multiply {tokens}, {name}", multiply.multiply, arguments, units=units)
    lists = {"row_begin": I32, "columns": I32, "values": F32, "TO": TO[torch.bfloat16]}
    lists |= {"y": F32, "out": I16, "OUT": TO[torch.bfloat16]}
    arguments = common | product | lists | products.OUTLIERS_AT_ONCE
    yield Variant(f"outliers of a product, {name}", multiply.correct, arguments)
