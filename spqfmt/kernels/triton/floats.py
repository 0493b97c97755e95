"""float32 -> what is stored, to nearest, ties to even."""

import triton
import triton.language as tl

F32 = tl.constexpr(0)
BF16 = tl.constexpr(1)
F16 = tl.constexpr(2)


@triton.jit
def bf16_bits(weight):
    """The bits of the nearest bfloat16, in the low half of uint32.

    By integers, for the interpreter cuts float32 off: half a unit of the last place kept, less one, plus that place's
    own bit. NaN is kept apart, since that sum could carry it over to a number.
    """
    bits = weight.to(tl.uint32, bitcast=True)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return tl.where(weight == weight, rounded, 0x7FC0)  # noqa: PLR0124  # not itself: NaN


@triton.jit
def rounded_to(weight, TO: tl.constexpr):
    """float32 weights rounded to TO and back: what a product in that dtype multiplies by."""
    if TO == BF16:
        weight = (bf16_bits(weight) << 16).to(tl.float32, bitcast=True)
    elif TO == F16:
        weight = weight.to(tl.float16).to(tl.float32)
    return weight


@triton.jit
def store(pointer, weight, mask, TO: tl.constexpr):
    """Store float32 weights; `pointer` is to float32, float16, or for BF16 to int16."""
    if TO == BF16:
        tl.store(pointer, bf16_bits(weight).to(tl.uint16).to(tl.int16, bitcast=True), mask=mask)
    elif TO == F16:
        tl.store(pointer, weight.to(tl.float16), mask=mask)
    else:
        tl.store(pointer, weight, mask=mask)
