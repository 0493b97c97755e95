// Path codes of a trellis -> codes (FORMAT.md 5.3): down each column of a tile,
//   code[r] = 2 * path[r] + (floor(code[r - 1] / 2) + code[r - 2] + code[r - 3]) mod 2.
#pragma once

#include <cstddef>
#include <cstdint>

namespace spqfmt {

constexpr size_t kHistoryRows = 3;

// A run of rows of int8 among tiles of `height` rows, at least 1: `passed` rows, fewer than that, of the tile that it begins in lie
// before it.
struct PathRows {
  uint8_t* codes;
  size_t n_rows;
  size_t n_columns;
  size_t height;
  size_t passed;
};

// Turns the path codes of columns begin to end into codes, in place; whether all were path codes, from -64 to 63.
//
// A history is kHistoryRows rows of n_columns: the last codes before some row, the latest first, zeros where its tile has fewer.
// `before` is that of the run, which may be null where no rows have passed; `after`, if it is not null, gets the one of what follows.
// They may be the same.
using UnfoldRows = bool (*)(const PathRows& rows, size_t begin, size_t end, const uint8_t* before, uint8_t* after);

bool unfold_rows_scalar(const PathRows&, size_t, size_t, const uint8_t*, uint8_t*);
bool unfold_rows_avx2(const PathRows&, size_t, size_t, const uint8_t*, uint8_t*);
bool unfold_rows_avx512(const PathRows&, size_t, size_t, const uint8_t*, uint8_t*);

// All columns, over threads. `history` is that before the run, and then that of what follows.
bool unfold(const PathRows& rows, uint8_t* history, size_t n_threads);

}  // namespace spqfmt
