"""A scheme with products, in this module and one of loaders: weight = step * (code + 1/2), codes by rows."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from spqfmt.codecs.elements import Elements
from spqfmt.errors import CorruptError
from spqfmt.records import TensorRecord
from spqfmt.schemes import codes as codes_stream
from spqfmt.schemes import tiles
from spqfmt.schemes.base import (
    Encoded,
    Float32,
    Roles,
    StreamData,
    Streamed,
    bits_from_float,
    float_from_bits,
)
from spqfmt.schemes.floats import narrow
from spqfmt.schemes.sides import PackedScheme, Sides


@dataclass(frozen=True)
class Halves:
    codes: Elements
    step: np.float32

    def encode(self) -> Encoded:
        codes = StreamData("codes", "i8", self.codes.reshape(-1), row_elements=self.codes.shape[1])
        return Encoded("halves", {"step": bits_from_float(self.step), "orientation": "rows"}, (codes,))

    def dequantize(self) -> Float32:
        return values(self.codes, self.step)


def values(codes: Elements, step: np.float32) -> Float32:
    return step * (codes.astype(np.float32) + np.float32(0.5))


class HalvesScheme(PackedScheme):
    name = "halves"
    roles = ("codes",)
    weights = "codes"
    is_quantized = True
    parameters: Mapping[str, Any] = {"step": "scalar", **codes_stream.PARAMETERS}

    def check(self, record: TensorRecord) -> None:
        codes_stream.check(record, Roles(record, self.roles), ("i8",))
        if float_from_bits(record.parameters.get("step"), "step") <= 0:
            raise CorruptError(f"tensor {record.name!r}: step is not above 0")

    def features(self, record: TensorRecord) -> set[str]:
        return set()  # a real one has a bit in spec/registry.toml

    def verify(self, record: TensorRecord, fetch: Streamed) -> None:
        pass

    def restore(
        self, record: TensorRecord, fetch: Streamed, rows: range, columns: range, out: Elements, dtype: str
    ) -> None:
        step = float_from_bits(record.parameters["step"], "step")
        for tile in codes_stream.tiles(record, fetch, rows, columns, most=tiles.TILE_ELEMENTS):
            weights = narrow(values(tile.codes, step), dtype)
            tiles.put(out, rows, columns, tile.rows, tile.columns, weights)

    def whole_because(self, record: TensorRecord) -> str:
        return ""

    def number_bytes(self, record: TensorRecord) -> int:
        return 0

    def read_sides(self, record: TensorRecord, fetch: Streamed) -> Sides:
        return Sides(record)


SCHEME = HalvesScheme()
