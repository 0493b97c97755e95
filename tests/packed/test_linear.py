"""PackedLinear and PackedEmbedding against products with the dequantized matrix, for every form of a tensor."""

import copy
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from spqfmt.container.reader import Reader
from spqfmt.errors import SpqError
from spqfmt.loaders.packed import HostWeights, PackedEmbedding, PackedLinear
from spqfmt.models.treatments import TOKEN_INT8, quantize_tokens, range_clamp, ratio_clamp
from spqfmt.quantize import spqr
from spqfmt.quantize.calibrated import simulate
from spqfmt.quantize.ecq import method as ecq
from spqfmt.quantize.ecq.grid import plain_grid
from spqfmt.quantize.ecq.sweep import RowGrid
from spqfmt.quantize.feedback import factorize
from spqfmt.quantize.rtn import round_groups, round_symmetric
from spqfmt.reading.restore import restore
from spqfmt.residency.cpu import plan_residency
from spqfmt.residency.inventory import Inventory, Item
from spqfmt.residency.parts import cut
from spqfmt.residency.plan import Plan
from spqfmt.residency.rates import Rates
from spqfmt.residency.sides import read_sides, side_bytes
from spqfmt.residency.workspace import workspace_bytes
from spqfmt.schemes.codes import Layout
from spqfmt.schemes.dense import Dense
from spqfmt.schemes.floats import Scale, narrow, small_float_values
from spqfmt.schemes.group_numbers import GroupValues
from spqfmt.schemes.grouped import Grouped
from spqfmt.schemes.outliers import Outliers
from spqfmt.schemes.trellis import tiles_of, unfold_rows
from spqfmt.schemes.uniform import Uniform
from spqfmt.wire import SMALL_FLOATS

RATES = Rates(read=1e9, compute=5e9, codecs={"raw": 5e9, "rans": 2e9, "zstd": 1e9})
ROWS, COLUMNS = 70, 130


def some_outliers(generator: np.random.Generator) -> Outliers:
    rows, columns = np.nonzero(generator.random((ROWS, COLUMNS)) < 0.02)
    return Outliers(rows, columns, generator.normal(0, 5, rows.size).astype(np.float32), "f32")


def uniform(generator: np.random.Generator, dtype: str = "i8", rich: bool = True, **more: Any) -> Uniform:
    high = 2 ** (int(dtype[1]) - 1)
    codes = generator.integers(-high, high, (ROWS, COLUMNS)).astype(np.int8)
    if rich:
        more["row_scale"] = Scale(generator.uniform(0.5, 2, ROWS).astype(np.float32), "f32")
        more["column_scale"] = Scale(generator.integers(90, 160, COLUMNS).astype(np.uint8), "log8", 16, -120)
        more["outliers"] = some_outliers(generator)
    return Uniform(codes, np.float32(0.01), dtype, **more)


def level2(generator: np.random.Generator, rich: bool = True, **more: Any) -> Grouped:
    groups = -(-COLUMNS // 16)
    tiles = (-(-ROWS // 16), -(-groups // 2))

    def values() -> GroupValues:
        codes = generator.integers(0, 8, (ROWS, groups)).astype(np.uint8)
        steps = generator.uniform(0.01, 0.1, tiles).astype(np.float16)
        return GroupValues(codes, "u4", steps, generator.uniform(0, 3, tiles).astype(np.float16))

    codes = generator.integers(0, 8, (ROWS, COLUMNS)).astype(np.uint8)
    if rich:
        more |= {"outliers": some_outliers(generator), "permutation": generator.permutation(COLUMNS)}
    return Grouped(codes, "u4", 16, 3, values(), zero_point=values(), supergroup=(16, 2), **more)


def by(orientation: str, n: int, generator: np.random.Generator) -> Layout:
    return Layout(orientation, generator.permutation(n))


def random_weights(generator: np.random.Generator) -> torch.Tensor:
    return torch.from_numpy(generator.normal(0, 1, (ROWS, COLUMNS)).astype(np.float32))


def bytes_of(generator: np.random.Generator, dtype: str, *shape: int) -> Any:
    """Elements of a small float that are numbers of a common size, subnormal ones among them."""
    values = small_float_values(dtype)
    least = 0.3 if dtype == "f8_e8m0" else 0.0
    usual = np.flatnonzero(np.isfinite(values) & (np.abs(values) <= 4) & (np.abs(values) >= least))
    return generator.choice(usual, shape).astype(np.uint8)


def float_codes(
    generator: np.random.Generator, dtype: str, size: int, scale: str, rows: int = 1, **more: Any
) -> Grouped:
    """Small floats in tiles of `rows` rows and `size` columns."""
    groups = -(-ROWS // rows), -(-COLUMNS // size)
    values = (
        bytes_of(generator, scale, *groups)
        if scale in SMALL_FLOATS
        else narrow(generator.uniform(0.01, 0.1, groups).astype(np.float32), scale)
    )
    codes = bytes_of(generator, dtype, ROWS, COLUMNS)
    return Grouped(codes, dtype, size, 4, GroupValues(values, scale), group_rows=rows, **more)


def nvfp4(generator: np.random.Generator) -> Grouped:
    groups = ROWS, -(-COLUMNS // 16)
    steps = generator.uniform(0.01, 0.1, (1, 1)).astype(np.float32)
    scale = GroupValues(bytes_of(generator, "f8_e4m3", *groups), "f8_e4m3", steps, steps_dtype="f32")
    return Grouped(bytes_of(generator, "f4_e2m1", ROWS, COLUMNS), "f4_e2m1", 16, 4, scale, supergroup=groups)


def leveled(
    generator: np.random.Generator, dtype: str, size: int, levels_dtype: str = "f32", **more: Any
) -> Grouped:
    """Numbers of levels; scales of a second level that are numbers of levels, too, less a minimum."""
    groups = ROWS, -(-COLUMNS // size)
    tiles = -(-ROWS // 4), -(-groups[1] // 3)
    bits = int(dtype[1])
    scale = GroupValues(
        generator.integers(0, 256, groups).astype(np.uint8),
        "u8",
        steps=generator.uniform(0.5, 1, tiles).astype(np.float16),
        levels=generator.normal(0, 1, 256).astype(np.float32),
        minimums=generator.uniform(0, 0.1, tiles).astype(np.float16),
        minimums_dtype="f16",
    )
    levels = narrow(generator.normal(0, 1, 1 << bits).astype(np.float32), levels_dtype)
    codes = generator.integers(0, 1 << bits, (ROWS, COLUMNS)).astype(np.uint8)
    return Grouped(
        codes, dtype, size, 4, scale, supergroup=(4, 3), levels=levels, levels_dtype=levels_dtype, **more
    )


def a_trellis(generator: np.random.Generator, layout: Layout, height: int) -> Uniform:
    """Codes that are paths down rows as they are stored."""
    plain = uniform(generator, layout=layout)
    stored = plain.codes if layout.channel_order is None else plain.codes[layout.channel_order]
    codes, paths = np.empty_like(stored), np.ascontiguousarray(stored >> 2)
    unfold_rows(tiles_of(height, ROWS, layout.class_sizes), 0, paths)
    codes[slice(None) if layout.channel_order is None else layout.channel_order] = paths
    return replace(plain, codes=codes, trellis_rows=height)


FORMS: dict[str, Callable[[np.random.Generator], Any]] = {
    "dense": lambda g: Dense(random_weights(g).bfloat16().view(torch.uint16).numpy(), "bf16"),
    "i8 by row": lambda g: round_symmetric(random_weights(g), 8, per_row=True),
    "i8 rich": uniform,
    "i4": lambda g: uniform(g, "i4"),
    "i2": lambda g: uniform(g, "i2"),
    "i8 rows reordered": lambda g: uniform(g, layout=by("rows", ROWS, g)),
    "i8 columns": lambda g: uniform(g, layout=Layout("columns")),
    "i8 trellis": lambda g: a_trellis(g, Layout(), 16),
    "i8 trellis reordered": lambda g: a_trellis(g, by("rows", ROWS, g), 6),
    "i4 columns reordered": lambda g: uniform(g, "i4", layout=by("columns", COLUMNS, g)),
    "u4 groups": lambda g: round_groups(random_weights(g), 4, 32),
    "u8 groups": lambda g: round_groups(random_weights(g), 7, 48),
    "supergroups": level2,
    "supergroups reordered": lambda g: level2(g, layout=by("rows", ROWS, g)),
    "supergroups by columns": lambda g: level2(g, layout=by("columns", COLUMNS, g)),
    "mxfp4": lambda g: float_codes(g, "f4_e2m1", 32, "f8_e8m0"),
    "nvfp4": nvfp4,
    "fp8 tiles": lambda g: float_codes(g, "f8_e4m3", 64, "f32", rows=32),
    "fp8 tiles reordered": lambda g: float_codes(g, "f8_e4m3", 64, "bf16", 32, layout=by("rows", ROWS, g)),
    "fp8 by columns": lambda g: float_codes(g, "f8_e4m3fnuz", 64, "f32", 9, layout=Layout("columns")),
    "fp8 one scale": lambda g: float_codes(g, "f8_e5m2", COLUMNS, "f32", rows=1000),
    "fp8 odd tiles": lambda g: float_codes(g, "f8_e5m2fnuz", 48, "f16", 7, outliers=some_outliers(g)),
    "levels": lambda g: leveled(g, "u4", 64, permutation=g.permutation(COLUMNS)),
    "levels in bf16": lambda g: leveled(g, "u4", 32, "bf16", outliers=some_outliers(g)),
    "two bits of levels": lambda g: leveled(g, "u2", 16),
    "256 levels": lambda g: leveled(g, "u8", 32),
    "256 levels by columns": lambda g: leveled(g, "u8", 32, "bf16", layout=by("columns", COLUMNS, g)),
    "levels reordered": lambda g: leveled(g, "u4", 24, layout=by("rows", ROWS, g)),
}


def plan_of(reader: Reader, memory_bytes: int | None, *, lookups: bool, part_bytes: int = 1 << 11) -> Plan:
    record = reader.index.by_name["w"]
    items = tuple(Item(part, True, lookups) for part in cut(record, part_bytes=part_bytes))
    workspace = workspace_bytes(*record.matrix_shape, torch.bfloat16.itemsize)
    inventory = Inventory(items, 0, side_bytes([item.part for item in items]), workspace)
    if memory_bytes == 0:
        memory_bytes = plan_residency(inventory, RATES, None).smallest_bytes
    return plan_residency(inventory, RATES, memory_bytes)


def engine_of(
    path: Path, memory_bytes: int | None, dtype: torch.dtype = torch.bfloat16, part_bytes: int = 1 << 11
) -> HostWeights:
    reader = Reader(path)
    plan = plan_of(reader, memory_bytes, lookups=True, part_bytes=part_bytes)
    engine = HostWeights(plan, [reader], dtype)
    assert engine.held_bytes == plan.held_bytes
    return engine


@pytest.fixture(params=sorted(FORMS))
def stored(request: pytest.FixtureRequest, write_tensor: Callable[..., Path], generator: Any) -> Path:
    encoded = FORMS[request.param](generator).encode()
    return write_tensor(encoded, (ROWS, COLUMNS), chunk_bytes=1 << 11)


@pytest.mark.parametrize("part_bytes", [1 << 11, 1 << 20], ids=["parts", "one part"])
@pytest.mark.parametrize("memory_bytes", [None, 0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_products(stored: Path, dtype: torch.dtype, memory_bytes: int | None, part_bytes: int) -> None:
    with Reader(stored) as reader:
        record = reader.index.by_name["w"]
        matrix = restore(reader, record, None if record.scheme == "dense" else "f32").double()
    engine = engine_of(stored, memory_bytes, dtype, part_bytes)
    bias = nn.Parameter(torch.randn(ROWS, dtype=dtype), requires_grad=False)
    module = PackedLinear(record, dtype, bias, int8_activations=False)
    module.attach(engine)
    for shape in ((COLUMNS,), (1, COLUMNS), (2, 1, COLUMNS), (3, 5, COLUMNS), (2, 20, COLUMNS), (0, COLUMNS)):
        x = torch.randn(shape).to(dtype)
        y = module(x)
        assert y.dtype == dtype
        assert y.shape == (*shape[:-1], ROWS)
        exact = x.double() @ matrix.t() + bias.double()
        size = x.double().abs() @ matrix.abs().t() + bias.double().abs()
        assert ((y.double() - exact).abs() <= max(3 * torch.finfo(dtype).eps, 3e-6) * size + 1e-6).all()
    engine.close()


@pytest.mark.parametrize("part_bytes", [1 << 11, 1 << 20], ids=["parts", "one part"])
@pytest.mark.parametrize("memory_bytes", [None, 0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_gradients(stored: Path, dtype: torch.dtype, memory_bytes: int | None, part_bytes: int) -> None:
    """Of x and of a bias, as with the matrix in memory."""
    with Reader(stored) as reader:
        record = reader.index.by_name["w"]
        matrix = restore(reader, record, None if record.scheme == "dense" else "f32").double()
    engine = engine_of(stored, memory_bytes, dtype, part_bytes)
    module = PackedLinear(record, dtype, nn.Parameter(torch.zeros(ROWS, dtype=dtype)), int8_activations=False)
    module.attach(engine)
    for shape in ((COLUMNS,), (2, 3, COLUMNS), (40, COLUMNS), (0, COLUMNS)):
        x = torch.randn(shape).to(dtype).requires_grad_()
        module.bias.grad = None
        y = module(x)
        y.add_(0)  # as models do
        given = torch.randn(y.shape).to(dtype)
        y.backward(given)
        exact, size = given.double() @ matrix, given.double().abs() @ matrix.abs()
        assert x.grad.dtype == dtype
        assert ((x.grad.double() - exact).abs() <= max(3 * torch.finfo(dtype).eps, 3e-6) * size + 1e-6).all()
        expected = given.double().reshape(-1, ROWS).sum(0)
        assert torch.allclose(module.bias.grad.double(), expected, rtol=2 * torch.finfo(dtype).eps, atol=1e-5)
        # A frozen layer gives them too; without them wanted, nothing is kept for them.
        with torch.no_grad():
            assert not module(x).requires_grad
    engine.close()


def uneven(generator: np.random.Generator, octaves: int = 60) -> torch.Tensor:
    """Rows so different that float16 holds no scale of most of them."""
    exponents = generator.integers(-octaves, octaves + 1, (ROWS, 1))
    return torch.from_numpy(np.ldexp(random_weights(generator).numpy(), exponents))


def by_spqr(matrix: torch.Tensor) -> Grouped:
    return spqr.quantize_matrix(matrix, factorize(torch.eye(COLUMNS), 1.0, act_order=True), 3, 16, 0.1)


def by_ecq(matrix: torch.Tensor) -> Uniform:
    # Of 127 steps, some weights are escapes.
    rows = RowGrid.of_norms(matrix)
    return ecq.quantize_matrix(matrix, plain_grid(COLUMNS), rows, np.float32(0.02))


UNEVEN: dict[str, Callable[[np.random.Generator], Any]] = {
    "i8 by row": lambda g: round_symmetric(uneven(g), 8, per_row=True),
    "u4 groups": lambda g: round_groups(uneven(g), 4, 32),
    "u8 groups": lambda g: round_groups(uneven(g), 8, 48),
    "bf16 scales": lambda g: round_groups(uneven(g, 20) * 2.0**30, 4, 16),
    "spqr": lambda g: by_spqr(uneven(g)),
    "spqr large": lambda g: by_spqr(random_weights(g) * 2.0**70),
    "ecq": lambda g: by_ecq(uneven(g)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", UNEVEN)
def test_products_with_rows_of_any_magnitude(
    name: str, write_tensor: Callable[..., Path], generator: Any, dtype: torch.dtype
) -> None:
    made = UNEVEN[name](generator)
    path = write_tensor(made.encode(), (ROWS, COLUMNS), chunk_bytes=1 << 11)
    with Reader(path) as reader:
        record = reader.index.by_name["w"]
        matrix = restore(reader, record, "f32")
    assert torch.equal(matrix, simulate(made))
    if name.startswith("spqr"):
        assert record.by_role["outlier_values"].dtype == "f32"
    engine = engine_of(path, None, dtype)
    module = PackedLinear(record, dtype, None, int8_activations=False)
    module.attach(engine)
    for tokens in (1, 5, 40):
        x = torch.randn(tokens, COLUMNS).to(dtype)
        exact = x.double() @ matrix.double().t()
        size = x.double().abs() @ matrix.double().abs().t()
        assert ((module(x).double() - exact).abs() <= 3 * torch.finfo(dtype).eps * size + 3e-6 * size).all()
    engine.close()


@pytest.mark.parametrize("part_bytes", [1 << 11, 1 << 20], ids=["parts", "one part"])
@pytest.mark.parametrize("memory_bytes", [None, 0])
def test_rows_by_number(stored: Path, memory_bytes: int | None, part_bytes: int) -> None:
    with Reader(stored) as reader:
        record = reader.index.by_name["w"]
        expected = restore(reader, record)
    engine = engine_of(stored, memory_bytes, part_bytes=part_bytes)
    module = PackedEmbedding(record, torch.bfloat16, None)
    module.attach(engine)
    ids = torch.tensor([[0, ROWS - 1, 3], [3, 40, 20]])
    assert torch.equal(module(ids), expected[ids])
    assert torch.equal(module(ids[:0]), expected[ids[:0]])
    for wrong in (-1, ROWS):
        said = f"^w: no row for id {wrong}; it has {ROWS} rows, 0 to {ROWS - 1}$"
        with pytest.raises(IndexError, match=said):
            module(torch.tensor([1, wrong]))
    engine.close()


@pytest.mark.parametrize("part_bytes", [1 << 11, 1 << 20], ids=["parts", "one part"])
@pytest.mark.parametrize("memory_bytes", [None, 0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_weight_of_a_module_has_its_values(
    stored: Path, dtype: torch.dtype, memory_bytes: int | None, part_bytes: int
) -> None:
    with Reader(stored) as reader:
        record = reader.index.by_name["w"]
        exact = restore(reader, record, None if record.scheme == "dense" else "f32")
    engine = engine_of(stored, memory_bytes, dtype, part_bytes)
    linear = PackedLinear(record, dtype, None, int8_activations=False)
    embedding = PackedEmbedding(record, dtype, None)
    x = torch.randn(3, COLUMNS).to(dtype)
    for module in (linear, embedding):
        module.attach(engine)
        weight = module.weight
        assert (weight.shape, weight.dtype, weight.device.type) == ((ROWS, COLUMNS), dtype, "cpu")
        assert torch.equal(weight.clone(), exact.to(dtype))
        assert torch.equal(weight @ x.t(), exact.to(dtype) @ x.t())
    assert torch.equal(nn.functional.linear(x, linear.weight), linear(x))
    engine.close()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("has_factors", [False, True])
def test_parts_of_columns_are_multiplied_in_one_call_with_the_bits_that_they_give_one_by_one(
    write_tensor: Callable[..., Path], generator: Any, dtype: torch.dtype, *, has_factors: bool
) -> None:
    rows, columns, n_bytes = 256, 1027, 1 << 15
    codes = generator.normal(0, 2, (rows, columns)).round().astype(np.int8)
    log8 = Scale(generator.integers(90, 160, columns).astype(np.uint8), "log8", 16, -120)
    layout = by("columns", columns, generator)
    more = {"column_scale": log8} if has_factors else {}
    encoded = Uniform(codes, np.float32(0.01), "i8", layout=layout, **more).encode()
    path = write_tensor(encoded, (rows, columns), chunk_bytes=n_bytes)
    bias = nn.Parameter(torch.randn(rows, dtype=dtype), requires_grad=False)
    modules, residencies = [], []
    for memory_bytes in (None, 0):
        engine = engine_of(path, memory_bytes, dtype, n_bytes)
        assert len(engine.plan.parts) > 1
        module = PackedLinear(engine.plan.parts[0].item.part.record, dtype, bias, int8_activations=False)
        module.attach(engine)
        modules.append(module)
        residencies.append({part.residency for part in engine.plan.parts})
        assert (module._direct is None) == (memory_bytes == 0)
    assert residencies[0] <= {"narrow", "decoded"}
    assert "disk" in residencies[1]
    for n_tokens in (1, 2, 32):
        x = torch.randn(n_tokens, columns).to(dtype)
        assert torch.equal(*(module(x) for module in modules))
    for module in modules:
        module._engine.close()


@pytest.mark.parametrize("part_bytes", [1 << 11, 1 << 20], ids=["parts", "one part"])
@pytest.mark.parametrize("memory_bytes", [None, 0])
@pytest.mark.parametrize("name", [name for name in FORMS if name.startswith("i")])
def test_int8_activations(
    name: str,
    write_tensor: Callable[..., Path],
    generator: Any,
    memory_bytes: int | None,
    part_bytes: int,
) -> None:
    path = write_tensor(FORMS[name](generator).encode(), (ROWS, COLUMNS), chunk_bytes=1 << 11)
    with Reader(path) as reader:
        record = reader.index.by_name["w"]
        matrix = restore(reader, record, "f32").double()
        column = read_sides(reader, record).column
    engine = engine_of(path, memory_bytes, torch.float32, part_bytes)
    module = PackedLinear(record, torch.float32, None, int8_activations=True)
    module.attach(engine)
    for tokens in (1, 9):
        x = torch.randn(tokens, COLUMNS)
        x[0] = 0 if tokens > 1 else x[0]
        scale = torch.ones(COLUMNS) if column is None else torch.from_numpy(column)
        rounded = quantize_tokens(x * scale)[2] / scale
        exact = rounded.double() @ matrix.t()
        assert torch.allclose(module(x).double(), exact, rtol=1e-4, atol=1e-4 * float(exact.abs().max()))
    engine.close()


@pytest.mark.parametrize("name", ["u4 groups", "mxfp4", "levels", "i8 by row", "fp8 tiles"])
def test_few_tokens_are_rounded_where_nobody_says_how_inputs_are_taken(
    name: str, write_tensor: Callable[..., Path], generator: Any
) -> None:
    path = write_tensor(FORMS[name](generator).encode(), (ROWS, COLUMNS))
    with Reader(path) as reader:
        record = reader.index.by_name["w"]
        matrix = restore(reader, record, "f32").double()
    for dtype in (torch.float32, torch.bfloat16):
        engine = engine_of(path, None, dtype, 1 << 20)
        modules = [PackedLinear(record, dtype, None, int8_activations=rounds) for rounds in (False, None)]
        for module in modules:
            module.attach(engine)
        for tokens in (1, 32, 33):
            x = torch.randn(tokens, COLUMNS).to(dtype)
            exact, found = (module(x) for module in modules)
            rounds = dtype == torch.bfloat16 and tokens <= 32 and name in {"u4 groups", "mxfp4"}
            assert torch.equal(exact, found) != rounds, (dtype, tokens)
            near = x.double() @ matrix.t()
            size = x.double().abs() @ matrix.abs().t()
            assert ((found.double() - near).abs() <= 0.01 * size).all()
        with torch.enable_grad():
            x = torch.randn(1, COLUMNS).to(dtype)
            first = modules[0](x.clone().requires_grad_(True))
            assert torch.equal(first, modules[1](x.clone().requires_grad_(True)))
        engine.close()


def test_a_record_that_asks_for_rounded_tokens_is_not_rounded_twice(
    write_tensor: Callable[..., Path], generator: Any
) -> None:
    path = write_tensor(round_groups(random_weights(generator), 4, 32).encode(), (ROWS, COLUMNS))
    with Reader(path) as reader:
        record = reader.index.by_name["w"]
    engine = engine_of(path, None)
    asked, exact = (PackedLinear(record, torch.bfloat16, None, int8_activations=a) for a in (True, False))
    for module in (asked, exact):
        module.attach(engine)
    x = torch.randn(1, COLUMNS).bfloat16()
    assert torch.equal(asked(x), exact(quantize_tokens(x)[2]))
    engine.close()


@pytest.mark.parametrize("int8_activations", [False, True])
def test_wider_than_sixteen_bits_count(
    write_tensor: Callable[..., Path], generator: Any, int8_activations: bool
) -> None:
    rows, columns = 3, 150_001
    codes = generator.integers(-127, 128, (rows, columns)).astype(np.int8)
    codes[0], at = 127, np.array([70_000, 140_000])
    outliers = Outliers(np.array([1, 2]), at, np.array([900.0, -800.0], np.float32), "f32")
    path = write_tensor(Uniform(codes, np.float32(1), outliers=outliers).encode(), (rows, columns))
    engine = engine_of(path, None, torch.float32)
    with Reader(path) as reader:
        record = reader.index.by_name["w"]
    module = PackedLinear(record, torch.float32, None, int8_activations=int8_activations)
    module.attach(engine)
    matrix = codes.astype(np.float64)
    matrix[[1, 2], at] = 900, -800
    for tokens in (1, 3):
        x = torch.ones(tokens, columns)
        exact = x.double() @ torch.from_numpy(matrix).t()
        assert torch.allclose(module(x).double(), exact, rtol=1e-5)


@pytest.mark.parametrize(
    "record", [range_clamp(-0.5, 0.25), ratio_clamp(0.1, "tensor"), ratio_clamp(0.2, "token")]
)
def test_activation_clamp(
    record: dict[str, object], write_tensor: Callable[..., Path], generator: Any
) -> None:
    encoded = FORMS["i8 by row"](generator).encode()
    path = write_tensor(encoded, (ROWS, COLUMNS), activation_clamp=record, activation_quantization=TOKEN_INT8)
    engine = engine_of(path, None, torch.float32)
    with Reader(path) as reader:
        stored = reader.index.by_name["w"]
        matrix = restore(reader, stored, "f32")
    module = PackedLinear(stored, torch.float32, None, int8_activations=False)
    module.attach(engine)
    x = torch.randn(4, COLUMNS)
    if record["kind"] == "range":
        clamped = x.clamp(-0.5, 0.25)
    else:
        ratio, axis = (0.1, None) if record["scope"] == "tensor" else (0.2, 1)
        high = x.max() if axis is None else x.amax(1, keepdim=True)
        low = x.min() if axis is None else x.amin(1, keepdim=True)
        clamped = torch.clamp(x, ratio * high + (1 - ratio) * low, (1 - ratio) * high + ratio * low)
    assert torch.allclose(module(x), clamped @ matrix.t(), atol=1e-3)


def test_a_clamped_input_that_becomes_integers_is_rounded_to_nothing_else(
    write_tensor: Callable[..., Path], generator: Any
) -> None:
    high = 0.25097  # BF16 has 0.25 there
    encoded = FORMS["i8 by row"](generator).encode()
    path = write_tensor(
        encoded,
        (ROWS, COLUMNS),
        activation_clamp=range_clamp(-1, high),
        activation_quantization=TOKEN_INT8,
    )
    engine = engine_of(path, None, torch.bfloat16)
    with Reader(path) as reader:
        record = reader.index.by_name["w"]
        matrix = restore(reader, record, "f32")
    module = PackedLinear(record, torch.bfloat16, None, int8_activations=True)
    module.attach(engine)
    x = torch.zeros(1, COLUMNS, dtype=torch.bfloat16)
    x[0, 0] = 10
    assert torch.equal(module(x)[0], (high * matrix[:, 0]).to(torch.bfloat16))


def test_what_a_module_refuses(write_tensor: Callable[..., Path], generator: Any) -> None:
    path = write_tensor(FORMS["i8 by row"](generator).encode(), (ROWS, COLUMNS))
    with Reader(path) as reader:
        record = reader.index.by_name["w"]
    module = PackedLinear(record, torch.float32, None, int8_activations=False)
    with pytest.raises(SpqError, match="no weights are loaded"):
        module(torch.zeros(1, COLUMNS))
    module.attach(engine_of(path, None))
    assert module.weight.shape == (ROWS, COLUMNS)
    with pytest.raises(RuntimeError, match=r"^w: .*shapes cannot be multiplied"):
        module(torch.zeros(1, COLUMNS + 1))
    with pytest.raises(SpqError, match="the input is on meta"):
        module(torch.zeros(1, COLUMNS, device="meta"))
    with pytest.raises(SpqError, match="w: packed weights cannot be pickled: save_pretrained"):
        pickle.dumps(module)
    with pytest.raises(SpqError, match="w: packed weights cannot be copied"):
        copy.deepcopy(module)
