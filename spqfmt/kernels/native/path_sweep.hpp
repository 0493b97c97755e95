// The choice of path codes (FORMAT.md 5.3, `trellis`): column after column of a block, each the cheapest of all paths down a tile of
// rows, in error and bits. rate_sweep.hpp has the same for codes that do not depend on each other.
#pragma once

#include <cstddef>
#include <cstdint>

#include "rate_sweep.hpp"

namespace spqfmt {

// Rows [begin, end) are one tile, in the order in which they are stored; else as choose_codes. Codes are v, from -127 to 127, and
// `bits[k + 128]` is what the path code k = floor(v / 2) costs. A path costs the sum over its rows of error / slope + bits. A weight that does not fit is an escape, with k = 0.
void choose_paths(const RateBlock& block, const RateCosts& costs, size_t begin, size_t end, int8_t* codes, float* errors);

// As improve_codes, whole columns of a tile at a time: the cheapest path with all other columns as they are.
void improve_paths(const RateBlock& block, const RateCosts& costs, size_t begin, size_t end, int8_t* codes, float* changes);

}  // namespace spqfmt
