"""Float dtypes <-> float32, to the bit (FORMAT.md 5.1 and 5.7)."""

from dataclasses import dataclass
from functools import cache

import numpy as np

from spqfmt import wire
from spqfmt.codecs.elements import Elements
from spqfmt.errors import CorruptError
from spqfmt.schemes.base import Float32

LOG8_TABLE = np.array(wire.LOG8_TABLE, np.uint32).view(np.float32)


def overflow_allowed() -> np.errstate:
    """FORMAT.md 5.1: what is too large becomes infinite. A file may hold such scales; that is no reason to warn."""
    return np.errstate(over="ignore", invalid="ignore")


def widen(elements: Elements, dtype: str) -> Float32:
    """f32, f16, bf16, a small float or a small integer dtype as float32; exact."""
    if dtype == "bf16":
        return (elements.astype(np.uint32) << 16).view(np.float32)
    if dtype in wire.SMALL_FLOATS:
        values: Float32 = small_float_values(dtype)[elements]
        return values
    return elements.astype(np.float32)


@cache
def small_float_values(dtype: str) -> Float32:
    """What each element of a float of at most 8 bits stands for (FORMAT.md 3.2), float32 [2^bits]; exact."""
    exponent_bits, mantissa_bits, bias = wire.SMALL_FLOATS[dtype]
    bits = np.arange(1 << wire.DTYPES[dtype].bits)
    exponent = bits >> mantissa_bits & ((1 << exponent_bits) - 1)
    mantissa = bits & ((1 << mantissa_bits) - 1)
    is_negative = bits >> (exponent_bits + mantissa_bits) == 1
    if dtype == "f8_e8m0":
        values = np.ldexp(1.0, exponent - bias)
        values[-1] = np.nan
    else:
        fraction = mantissa / (1 << mantissa_bits) + (exponent > 0)
        values = np.ldexp(fraction, np.maximum(exponent, 1) - bias)
        values = np.where(is_negative, -values, values)
    if dtype == "f8_e4m3":
        values[bits & 0x7F == 0x7F] = np.nan
    elif dtype == "f8_e5m2":
        special = np.where(mantissa > 0, np.nan, np.where(is_negative, -np.inf, np.inf))
        values = np.where(exponent == 31, special, values)
    elif dtype.endswith("fnuz"):
        values[0x80] = np.nan
    found: Float32 = values.astype(np.float32)
    found.flags.writeable = False
    return found


def narrow(values: Float32, dtype: str) -> Elements:
    """float32 rounded to f64, f32, f16 or bf16 (to nearest, ties to even), as the carrier."""
    if dtype == "bf16":
        bits = np.ascontiguousarray(values).view(np.uint32)
        rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
        return np.where(np.isnan(values), (bits >> 16) | 0x40, rounded).astype(np.uint16)
    with overflow_allowed():
        return values.astype({"f64": np.float64, "f32": np.float32, "f16": np.float16}[dtype])


@dataclass(frozen=True)
class Scale:
    """A scale for each row or column, as stored. log8 needs its two numbers."""

    values: Elements
    dtype: str
    octave_steps: int = 16
    bias: int = 0

    def to_float32(self) -> Float32:
        """The scales as float32, shape [n]."""
        if self.dtype == "log8":
            return log8_values(self.octave_steps, self.bias)[self.values]
        return widen(self.values, self.dtype)


def log8_values(octave_steps: int, bias: int) -> Float32:
    """What each of the 256 elements of a log8 stream stands for; those that are no normal number are NaN."""
    v = np.arange(256) + bias
    mantissa = LOG8_TABLE[(v % octave_steps) * (16 // octave_steps)]
    exponent = v // octave_steps
    normal = (exponent >= -126) & (exponent <= 127)
    values = np.ldexp(mantissa, np.where(normal, exponent, 0)).astype(np.float32)
    return np.where(normal, values, np.float32(np.nan))


def check_log8(elements: Elements, octave_steps: int, bias: int, what: str) -> None:
    """Every element must stand for a normal number."""
    if np.isnan(log8_values(octave_steps, bias)[elements]).any():
        raise CorruptError(f"{what}: a log8 element is no normal number")


def to_log8(values: Float32, octave_steps: int) -> Scale:
    """The nearest log8 for positive normal values; those below the largest by more than 255 steps saturate."""
    steps = np.rint(np.log2(values.astype(np.float64)) * octave_steps).astype(np.int64)
    bias = int(steps.max()) - 255
    return Scale(np.maximum(steps - bias, 0).astype(np.uint8), "log8", octave_steps, bias)
