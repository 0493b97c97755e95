"""Packed codes become integers.

A tile is [channels, units, bytes, codes of a byte]: a unit is a run of codes in one group. What belongs to a unit or
to a byte is loaded once, in a shape with ones, and spread by the arithmetic. What would lie behind the end is clamped
to the last that is there, so that no load needs a mask.
"""

import triton
import triton.language as tl


@triton.jit
def elements(first, WIDTH: tl.constexpr, UNIT: tl.constexpr, PER_BYTE: tl.constexpr):
    """Numbers of a tile's WIDTH codes in their channel, from `first` on: [1, units, bytes, codes of a byte].

    Also those of the first code of each unit, [1, units, 1, 1], and of each byte, [1, units, bytes, 1].
    """
    unit = first + UNIT * tl.arange(0, WIDTH // UNIT)[None, :, None, None]
    byte = unit + PER_BYTE * tl.arange(0, UNIT // PER_BYTE)[None, None, :, None]
    return byte + tl.arange(0, PER_BYTE)[None, None, None, :], unit, byte


@triton.jit
def with_sign(code, BITS: tl.constexpr, SIGNED: tl.constexpr):
    """The low BITS bits of an int32 as a code."""
    code = code & ((1 << BITS) - 1)
    if SIGNED:
        code = (code ^ (1 << (BITS - 1))) - (1 << (BITS - 1))
    return code


@triton.jit
def at(codes, number, BITS: tl.constexpr, SIGNED: tl.constexpr):
    """Read codes of any numbers, int32."""
    PER: tl.constexpr = 8 // BITS
    byte = tl.load(codes + number // PER).to(tl.int32)
    return with_sign(byte >> ((number % PER).to(tl.int32) * BITS), BITS, SIGNED)


@triton.jit
def tile(
    codes, begin, element, byte, width, BITS: tl.constexpr, SIGNED: tl.constexpr, PER_BYTE: tl.constexpr
):
    """Codes of a tile, int32. `begin`: number of each channel's first code, int64 [channels, 1, 1, 1].

    PER_BYTE is 8 // BITS where channels begin at whole bytes, else 1: then each code finds its byte alone.
    """
    if BITS == 8 or PER_BYTE > 1:
        last = (width - 1) // PER_BYTE
        packed = tl.load(codes + (begin // PER_BYTE + tl.minimum(byte // PER_BYTE, last)))
        if BITS == 8 and SIGNED:
            code = packed.to(tl.int8, bitcast=True).to(tl.int32)
        else:
            shift = BITS * tl.arange(0, PER_BYTE)[None, None, None, :]
            code = with_sign(packed.to(tl.int32) >> shift, BITS, SIGNED)
    else:
        code = at(codes, begin + tl.minimum(element, width - 1), BITS, SIGNED)
    return code
