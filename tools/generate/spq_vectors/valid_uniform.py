"""The valid vectors of the scheme uniform."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from spq_vectors import encode, expected
from spq_vectors.build import File, Record, Stream, Tensor
from spq_vectors.encode import BITS, Rans, raw, zstd_by_hand
from spq_vectors.valid import Vector, flat, matrix, numbers, vector

RANS = Rans()


def uniform(
    name: str,
    codes: NDArray[np.int64],
    dtype: str,
    codes_stream: Record,
    parameters: Record,
    rest: Sequence[Stream] = (),
    **extra: object,
) -> Tensor:
    """Return a uniform tensor by rows or columns, with the codes' stream given by keywords."""
    by_rows = parameters.get("orientation", "rows") == "rows"
    order = codes_stream.pop("order", None)
    channels = codes if by_rows else codes.T
    elements = flat(channels if order is None else channels[np.array(order)])
    stream = Stream("codes", codes_stream.pop("dtype"), elements, **codes_stream)
    shape = codes.shape[::-1] if extra.get("transposed") else codes.shape
    parameters = {"orientation": "rows", **parameters}
    return Tensor(name, shape, dtype, [stream, *rest], "uniform", parameters, extra)


def step(number: float) -> int:
    """Return the binary32 bits of a step."""
    return expected.bits_of([number], "f32")[0]


@vector
def uniform_scales() -> Vector:
    """Every dtype of codes and scales."""
    rows, columns = 5, 22
    scale_rows, scale_columns = np.linspace(0.5, 1.7, rows), np.linspace(0.9, 1.1, columns)
    tensors, contents = [], {}
    cases = [
        ("i2", "f32", None, "bf16"), ("i4", "f16", "bf16", "f16"), ("i8", "bf16", "f32", "f32"),
        ("i4", None, "f16", "f64"), ("i8", None, None, "bf16"), ("i8", (8, -40), None, "f32"),
        ("i4", (16, -100), (8, -8), "bf16"), ("i8", None, (16, -1024), "f32"),
    ]  # fmt: skip
    for number, (code_dtype, row_kind, column_kind, dtype) in enumerate(cases):
        bits = BITS[code_dtype]
        codes = matrix(number, rows, columns, -(1 << (bits - 1)), (1 << (bits - 1)) - 1)
        parameters: Record = {"step": step(0.013)}
        streams: list[Stream] = []
        scales: list[expected.F32 | None] = []
        for role, kind, values in (("row", row_kind, scale_rows), ("column", column_kind, scale_columns)):
            if kind is None:
                scales.append(None)
            elif isinstance(kind, str):
                elements = expected.bits_of([float(value) for value in values], kind)
                streams.append(Stream(f"{role}_scales", kind, elements))
                scales.append(expected.f32(elements, kind))
            else:
                elements = numbers(9, len(values), 0, 250) if kind[1] > -1024 else [255] * len(values)
                parameters[f"{role}_scale_log8"] = list(kind)
                streams.append(Stream(f"{role}_scales", "log8", elements))
                scales.append(expected.log8(elements, *kind))
        name = f"tensor.{number}"
        tensors.append(uniform(name, codes, dtype, {"dtype": code_dtype}, parameters, streams))
        weights = expected.uniform(codes, float(np.float32(0.013)), scales[0], scales[1])
        contents[name] = expected.restored(weights, dtype)
    return Vector(
        "codes i2, i4, i8; no, one or two scales of f32, f16, bf16, log8 with 8 and 16 steps; "
        "restored to f64, f32, f16, bf16",
        File([("all", tensors)], edit=drop_method),
        contents,
    )


def drop_method(index: Record) -> None:
    """Leave the methods empty: they are informative."""
    for tensor in index["tensors"]:
        tensor["method"] = ""


@vector
def uniform_rounding() -> Vector:
    """Rounding to every restored dtype."""
    codes = np.array([[1, 3, 5, 7, 127, -128, -1, 0]], np.int64)
    steps = [
        2.0**-25,
        2.0**-24,
        2.0**-20,
        2.0**-140,
        2.0**-149,
        512.0,
        513.0,
        2.0**120,
        3.4e38,
        1 + 2.0**-8,
        65519 / 127,
    ]
    tensors, contents = [], {}
    for number, size in enumerate(steps):
        for dtype in ("f16", "bf16", "f32", "f64"):
            name = f"{dtype}.{number}"
            tensors.append(uniform(name, codes, dtype, {"dtype": "i8"}, {"step": step(size)}))
            with np.errstate(over="ignore"):
                weights = expected.uniform(codes, float(np.float32(size)), None, None)
            contents[name] = expected.restored(weights, dtype)
    return Vector("ties, subnormal results, overflow to infinity", File([("all", tensors)]), contents)


@vector
def uniform_classes() -> Vector:
    """Channel order, table classes, orientation, transposition."""
    codes = matrix(20, 12, 16, -8, 7)
    codes[:, [3, 7, 9]] //= 4
    order = [3, 9, 7, *(k for k in range(16) if k not in (3, 7, 9))]
    by_columns = {"dtype": "i4", "order": order, "sizes": [24, 12, 100, 56], "encoders": [RANS, raw]}
    columns: Record = {"orientation": "columns", "class_sizes": [3, 13], "step": step(0.02)}
    rows_order = list(reversed(range(12)))
    by_rows = {"dtype": "i8", "order": rows_order, "sizes": [32, 160], "encoders": [RANS]}
    transposed = uniform("transposed", codes, "f32", {"dtype": "i4"}, {"step": step(0.5)}, transposed=True)
    tensors = [
        uniform("by_columns", codes, "bf16", by_columns, columns, [Stream("channel_order", "u16", order)]),
        uniform(
            "by_rows", codes, "f32", by_rows, {"class_sizes": [2, 10], "step": step(0.02)},
            [Stream("channel_order", "u32", rows_order)],
        ),
        transposed,
        uniform("columns_transposed", codes, "f16", {"dtype": "i4"}, {"orientation": "columns", "step": step(0.5)},
                transposed=True),
    ]  # fmt: skip
    weights = expected.uniform(codes, float(np.float32(0.02)), None, None)
    turned = np.ascontiguousarray(expected.uniform(codes, 0.5, None, None).T)
    contents = {
        "by_columns": expected.restored(weights, "bf16"),
        "by_rows": expected.restored(weights, "f32"),
        "transposed": expected.restored(turned, "f32"),
        "columns_transposed": expected.restored(turned, "f16"),
    }
    shows = (
        "orientation rows and columns, channel_order u16 and u32, class_sizes with several chunks "
        "a class, transposed"
    )
    return Vector(shows, File([("all", tensors)]), contents)


def outlier_streams(
    positions: Sequence[Sequence[int]],
    values: Sequence[Sequence[int]],
    dtype: str,
    encoder: encode.Encoder = raw,
) -> list[Stream]:
    """Return the streams of outliers at these positions, band by band."""
    gaps: list[list[int]] = []
    for band in positions:
        gaps.append([])
        last = -1
        for position in band:
            escapes, gap = divmod(position - last - 1, 255)
            gaps[-1] += [255] * escapes + [gap]
            last = position
    sizes = [len(band) for band in gaps]
    counts = [len(band) for band in positions]
    joined = [gap for band in gaps for gap in band]
    return [
        Stream("outlier_gaps", "u8", joined, [encoder], sizes),
        Stream("outlier_values", dtype, [value for band in values for value in band], [raw], counts),
    ]


def set_outliers(
    weights: expected.F32,
    rows_per_band: int,
    positions: Sequence[Sequence[int]],
    values: Sequence[expected.F32],
) -> None:
    """Replace weights by outliers."""
    columns = weights.shape[1]
    for band, (places, numbers_) in enumerate(zip(positions, values, strict=True)):
        for position, value in zip(places, numbers_, strict=True):
            weights[band * rows_per_band + position // columns, position % columns] = value


@vector
def uniform_outliers() -> Vector:
    """Outliers in several bands."""
    codes = matrix(30, 11, 300, -2, 1)
    positions = [
        [0, 254, 255, 300, 1199],
        [],
        [1, 256, 257, 513, 899],
    ]  # gaps 253, 0, 44, 255 255 255 133; 254, 255 0, ...
    values = [[0x4000 + 7 * i for i in range(len(band))] for band in positions]
    tensors, contents = [], {}
    for dtype, orientation, encoder in (
        ("f16", "rows", raw),
        ("bf16", "columns", RANS),
        ("f32", "rows", zstd_by_hand),
    ):
        bits = [[value << 16 | 0x1234 for value in band] for band in values] if dtype == "f32" else values
        streams = outlier_streams(positions, bits, dtype, encoder)
        parameters: Record = {
            "step": step(0.25),
            "orientation": orientation,
            "outliers": {"rows_per_band": 4},
        }
        tensors.append(uniform(dtype, codes, "bf16", {"dtype": "i2"}, parameters, streams))
        weights = expected.uniform(codes, 0.25, None, None)
        set_outliers(weights, 4, positions, [expected.f32(band, dtype) for band in bits])
        contents[dtype] = expected.restored(weights, "bf16")
    last = outlier_streams([[3299]], [[0xC2F0]], "bf16")
    parameters = {"step": step(0.25), "outliers": {"rows_per_band": 1000}}
    tensors.append(uniform("last", codes, "f32", {"dtype": "i2"}, parameters, last))
    weights = expected.uniform(codes, 0.25, None, None)
    weights[10, 299] = -120.0
    contents["last"] = expected.restored(weights, "f32")
    shows = "outliers f16, bf16, f32: an empty band, a short last band, gaps with several escapes, the last position"
    return Vector(shows, File([("all", tensors)]), contents)


@vector
def shared_scales() -> Vector:
    """Shared streams and activations."""
    codes = [matrix(40 + k, 6, 10, -8, 7) for k in range(3)]
    scales = expected.bits_of([0.8 + 0.05 * k for k in range(10)], "f16")
    clamp = {"kind": "range", "low": step(-6.5), "high": step(6.0)}
    ratio = {"kind": "ratio", "ratio": step(0.0009765625), "scope": "token"}
    extras: list[Record] = [
        {"activation_clamp": clamp, "activation_quantization": {"bits": 8, "scope": "token"}},
        {"activation_clamp": ratio},
        {"activation_clamp": {**ratio, "scope": "tensor"}, "transposed": False},
    ]
    streams = [
        Stream("column_scales", "f16", scales),
        Stream("column_scales", "f16", n=10, same_as=0),
        Stream("column_scales", "f16", n=10, same_as=0),
    ]
    tensors = [
        uniform(
            f"proj.{k}", codes[k], "bf16", {"dtype": "i4"}, {"step": step(0.1)}, [streams[k]], **extras[k]
        )
        for k in range(3)
    ]
    contents = {
        f"proj.{k}": expected.restored(
            expected.uniform(codes[k], float(np.float32(0.1)), None, expected.f32(scales, "f16")), "bf16"
        )
        for k in range(3)
    }
    shows = "column_scales held once and shared by same_as; activation_clamp of both kinds, activation_quantization"
    return Vector(shows, File([("layer", tensors)]), contents)
