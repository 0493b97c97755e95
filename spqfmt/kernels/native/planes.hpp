// Byte planes of a float array: plane p holds byte p (0 is the lowest) of every element. Exponent bytes repeat and
// are worth coding, mantissa bytes are noise and are stored raw. And elements narrower than a byte, side by side.
#pragma once

#include <cstddef>
#include <cstdint>

namespace spqfmt {

// `rotate` turns every element left by one bit first: the sign moves to bit 0 of the lowest plane and the highest
// plane becomes pure exponent. src and dst hold n_elements * itemsize bytes and do not overlap; itemsize is 1, 2, 4 or 8,
// anything else throws std::invalid_argument.
void split_planes(const uint8_t* src, size_t n_elements, size_t itemsize, bool rotate, uint8_t* dst);
void merge_planes(const uint8_t* src, size_t n_elements, size_t itemsize, bool rotate, uint8_t* dst);

// `n_bytes` of elements of 2 or 4 bits, the first in the lowest bits, of elements that have a byte each.
void pack_bits(const uint8_t* src, size_t n_bytes, unsigned bits, uint8_t* dst);

}  // namespace spqfmt
