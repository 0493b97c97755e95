"""FORMAT.md 1 and 3.2: rounding, floats and the elements of a stream, one number at a time."""

import struct
from math import copysign, inf, isinf, isnan, ldexp, nan

from spq_reference.errors import Corrupt

# Width of one element, and whether planes are split after a rotation: the table of 3.2.
BITS = {
    "f64": 64, "f32": 32, "f16": 16, "bf16": 16, "f8_e4m3": 8, "f8_e5m2": 8,
    "f8_e4m3fnuz": 8, "f8_e5m2fnuz": 8, "f8_e8m0": 8, "f6_e2m3": 6, "f6_e3m2": 6, "f4_e2m1": 4, "c64": 64,
    "i64": 64, "i32": 32, "i16": 16, "i8": 8, "i4": 4, "i2": 2,
    "u64": 64, "u32": 32, "u16": 16, "u8": 8, "u4": 4, "u2": 2,
    "bool": 8, "log8": 8,
}  # fmt: skip
ROTATED = ("f64", "f32", "f16", "bf16")

# Exponent bits and mantissa bits of the floats narrower than binary32 that are computed with.
FLOATS = {"f32": (8, 23), "f16": (5, 10), "bf16": (8, 7)}

# Exponent bits, mantissa bits and bias of the floats of at most 8 bits.
SMALL_FLOATS = {
    "f8_e4m3": (4, 3, 7), "f8_e5m2": (5, 2, 15), "f8_e4m3fnuz": (4, 3, 8), "f8_e5m2fnuz": (5, 2, 16),
    "f8_e8m0": (8, 0, 127), "f6_e2m3": (2, 3, 1), "f6_e3m2": (3, 2, 3), "f4_e2m1": (2, 1, 1),
}  # fmt: skip


def fl(x: float) -> float:
    """Round to binary32.

    `x` is one +, - or * of two binary32 numbers, computed in binary64. That is the same as one operation rounded to
    binary32: a product of two 24-bit significands has 48 bits and is exact in the 53 of binary64; a sum may round
    twice, which changes nothing because 53 >= 2 * 24 + 2, and sums in the subnormal range of binary32 are exact.
    """
    # > Arithmetic on weights is IEEE 754 binary32, round to nearest, ties to even, one rounding per operation, never
    # > fused.
    try:
        rounded: float = struct.unpack("<f", struct.pack("<f", x))[0]
    except OverflowError:  # what struct says where IEEE 754 says infinity
        return copysign(inf, x)
    return rounded


def float_from_bits(bits: int, dtype: str = "f32") -> float:
    """Return the value of a stored float; every one of these dtypes is exact in binary32."""
    # > A float that is stored in the index is stored as the integer of its binary32 bits.
    exponent_bits, mantissa_bits = FLOATS[dtype]
    mantissa = bits & ((1 << mantissa_bits) - 1)
    exponent = bits >> mantissa_bits & ((1 << exponent_bits) - 1)
    sign = -1.0 if bits >> (exponent_bits + mantissa_bits) else 1.0
    bias = (1 << (exponent_bits - 1)) - 1
    if exponent == (1 << exponent_bits) - 1:
        return sign * (nan if mantissa else inf)
    if exponent == 0:
        return sign * ldexp(mantissa, 1 - bias - mantissa_bits)
    return sign * ldexp(mantissa + (1 << mantissa_bits), exponent - bias - mantissa_bits)


def small_float(bits: int, dtype: str) -> float:
    """Return the value of a float of at most 8 bits."""
    exponent_bits, mantissa_bits, bias = SMALL_FLOATS[dtype]
    width = 1 << BITS[dtype]
    # > | `f8_e8m0` | 8 | 0 | 127 | NaN where all bits are 1; no sign, no zero |
    if dtype == "f8_e8m0":
        # > An element of f8_e8m0 stands for `2^(e - bias)`, 0 included.
        return nan if bits == 255 else ldexp(1.0, bits - bias)
    m = bits % (1 << mantissa_bits)
    e = bits >> mantissa_bits & ((1 << exponent_bits) - 1)
    sign = -1.0 if bits >= width // 2 else 1.0
    # > | `f8_e4m3` | 4 | 3 | 7 | NaN where all bits but the sign are 1 |
    if dtype == "f8_e4m3" and bits % 128 == 127:
        return sign * nan
    # > | `f8_e5m2` | 5 | 2 | 15 | infinity, NaN as in IEEE 754 |
    if dtype == "f8_e5m2" and e == 31:
        return sign * (nan if m else inf)
    # > | `f8_e4m3fnuz` | 4 | 3 | 8 | NaN where only the sign is 1 |
    # > | `f8_e5m2fnuz` | 5 | 2 | 16 | NaN where only the sign is 1 |
    if dtype in ("f8_e4m3fnuz", "f8_e5m2fnuz") and bits == 128:
        return nan
    # > with `M` mantissa bits it stands for `2^(e - bias) * (1 + m / 2^M)`, or for `2^(1 - bias) * m / 2^M` where `e`
    # > is 0, negative where the sign is 1.
    if e == 0:
        return sign * ldexp(m, 1 - bias - mantissa_bits)
    return sign * ldexp((1 << mantissa_bits) + m, e - bias - mantissa_bits)


def bits_from_float(x: float, dtype: str) -> int:
    """Round a binary32 number to a dtype of 5.1 and return its bits."""
    # > A reader restores it by computing each element in binary32 and rounding it to that dtype (to nearest, ties to
    # > even; what rounds past the largest finite number becomes infinite).
    if dtype == "f64":  # exact
        return int(struct.unpack("<Q", struct.pack("<d", x))[0])
    exponent_bits, mantissa_bits = FLOATS[dtype]
    infinity = ((1 << exponent_bits) - 1) << mantissa_bits
    sign = 1 << (exponent_bits + mantissa_bits) if copysign(1.0, x) < 0 else 0
    if isnan(x):
        return sign | infinity | 1 << (mantissa_bits - 1)
    if isinf(x):
        return sign | infinity
    # |x| = m * 2^e, with m an integer below 2^24; the smallest binary32 number is 2^-149.
    binary32: int = struct.unpack("<I", struct.pack("<f", abs(x)))[0]
    m, e = binary32 & 0x7FFFFF, (binary32 >> 23) - 150
    if e == -150:
        e = -149
    else:
        m |= 0x800000
    # The unit in the last place of the result is 2^q; below the smallest normal number it does not shrink further.
    smallest = 2 - (1 << (exponent_bits - 1)) - mantissa_bits
    q = max(m.bit_length() + e - 1 - mantissa_bits, smallest)
    n = round_half_even(m, q - e)
    # A carry out of the mantissa goes into the exponent, where it belongs; past the largest it gives infinity.
    return sign | min(((q - smallest) << mantissa_bits) + n, infinity)


def round_half_even(m: int, shift: int) -> int:
    """Return m / 2^shift to the nearest integer, ties to even."""
    if shift <= 0:
        return m << -shift
    n, rest, half = m >> shift, m & ((1 << shift) - 1), 1 << (shift - 1)
    return n + (rest > half or (rest == half and n % 2))


def n_planes(dtype: str) -> int:
    """Return the number of planes of a stream."""
    # > A stream whose elements are wider than 8 bits is stored in as many planes as an element has bytes.
    # > All other streams have one plane.
    return max(1, BITS[dtype] // 8)


def elements(dtype: str, planes: list[bytes], n: int) -> list[int]:
    """Return the elements of a chunk from its planes: floats as their bits, all others as their values."""
    bits = BITS[dtype]
    if bits < 8:
        found = packed_elements(bits, planes[0], n)
    else:
        # > Plane `p` holds byte `p` of each element, byte 0 being the least significant.
        found = [sum(plane[i] << 8 * p for p, plane in enumerate(planes)) for i in range(n)]
    if dtype in ROTATED:
        # > Where the dtype rotates, each element, as an unsigned integer of its width, is first rotated to the left
        # > by one bit, so that the highest plane holds exponent bits and the sign lies in the lowest bit of plane 0.
        found = [element >> 1 | (element & 1) << (bits - 1) for element in found]
    if dtype == "bool" and any(element > 1 for element in found):
        # > `bool` is one byte, which MUST be 0 or 1.
        raise Corrupt("a bool is a byte other than 0 and 1")
    if dtype[0] == "i":
        # > Signed elements are two's complement.
        found = [element - (element >> (bits - 1) << bits) for element in found]
    return found


def packed_elements(bits: int, raw: bytes, n: int) -> list[int]:
    """Return n unsigned elements of 2, 4 or 6 bits."""
    # > Elements narrower than 8 bits are packed: the first element lies in the least significant bits of the first
    # > byte. Each element follows the one before it without a gap, so that one of 6 bits may lie in two bytes, its low
    # > bits in the first. Unused bits of the last byte of a chunk MUST be zero.
    found = []
    held = n_held = 0
    for byte in raw:
        held |= byte << n_held
        n_held += 8
        while n_held >= bits and len(found) < n:
            found.append(held & ((1 << bits) - 1))
            held >>= bits
            n_held -= bits
    if held:
        raise Corrupt("unused bits of a chunk's last byte are not zero")
    return found


def element_bytes(dtype: str, values: list[int]) -> bytes:
    """Return elements as they lie in a restored tensor: little-endian, row-major, packed below 8 bits."""
    # > All integers are little-endian.
    return packed_bytes(BITS[dtype], values)


def packed_bytes(bits: int, values: list[int]) -> bytes:
    """Return integers of some bits each, one after the other from the lowest bit up, as whole bytes."""
    if bits % 8 == 0:
        return b"".join((value % (1 << bits)).to_bytes(bits // 8, "little") for value in values)
    packed = bytearray()
    held = n_held = 0
    for value in values:
        held |= value % (1 << bits) << n_held
        n_held += bits
        while n_held >= 8:
            packed.append(held & 255)
            held >>= 8
            n_held -= 8
    if n_held:
        packed.append(held)
    return bytes(packed)
