// Codes that are stored column after column, turned to row after row, as the products take them.
#pragma once

#include <cstddef>
#include <cstdint>

namespace spqfmt {

// dst[i][j] = src[j][i] for i < width, j < n_channels: elements of `bits` (2, 4 or 8), the first in the lowest bits of a byte.
// Both hold n_channels * width elements without gaps and do not overlap. `n_threads` as in decode_verified_chunks.
void turn(const uint8_t* src, size_t n_channels, size_t width, unsigned bits, uint8_t* dst, size_t n_threads);

}  // namespace spqfmt
